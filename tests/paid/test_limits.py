"""The limiter under a clock of the test's own, one message at a time: money, concurrency, rates, 429s, lost members."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.paid.flow import Ask, Grant, Outcomes, Place, fair_shares, to_nano
from engine.paid.ledger import Kind, LedgerWriter
from engine.paid.limits import FLUSH_S, LEASE_S, YOUNG, Limiter, Limits
from engine.store import Store
from tests.paid.limit_world import RUN, URL, Clock, record


class Desk:
    """A limiter, its clock and messages to it."""

    def __init__(self, folder: Path, max_usd: float | None = None, max_round: float | None = None, **limits: Any):
        self.clock, self.store = Clock(), Store(folder)
        self.limits = Limits(**{"concurrency": 8, **limits})
        self.caps = (max_usd, max_round)
        self.limiter = self.start()
        self.numbers: dict[str, int] = {}

    def start(self) -> Limiter:
        return Limiter(self.store, RUN, *self.caps, clock=self.clock)

    def register(self, member: str, writer: str, round_number: int = 0) -> None:
        self.limiter.register(member, writer, URL, self.limits, round_number)

    def message(self, member: str, writer: str, usd: float = 0.0, held_usd: float = 0.0, **more: Any) -> Ask:
        self.numbers[writer] = self.numbers.get(writer, 0) + 1
        nano = to_nano(usd)
        return Ask(
            member=member,
            writer=writer,
            endpoint=URL,
            limits=self.limits,
            round=0,
            number=self.numbers[writer],
            first_nano=nano,
            call_nano=nano,
            nano_usd=to_nano(held_usd),
            **{"slots": more.get("in_flight", 0), **more},
        )

    def ask(self, member: str, writer: str, **more: Any) -> Grant:
        return self.limiter.lease(self.message(member, writer, **more))


# the pure parts


@given(st.integers(0, 60), st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_shares_are_max_min_fair(total: int, wanted: list[int]) -> None:
    wants = {str(number): want for number, want in enumerate(wanted)}
    shares = fair_shares(total, wants, list(wants))
    assert sum(shares.values()) == min(total, sum(wanted))
    assert all(shares[name] <= wants[name] for name in wants)
    unmet = [shares[name] for name in wants if shares[name] < wants[name]]
    if unmet:
        assert max(shares.values()) <= min(unmet) + 1
        assert max(unmet) <= math.ceil(total / sum(want > 0 for want in wanted)) or max(unmet) <= max(wanted)


def run_windows(place: Place, share: float, windows: int, start: float = 0.0, per_window: int = 100) -> float:
    draws, now = random.Random(1), start
    for _ in range(windows):
        for _ in range(10):
            now += 0.06
            limited = sum(draws.random() < share for _ in range(per_window // 10))
            place.observe(per_window // 10 - limited, limited, 0.0, now)
    return now


@pytest.mark.parametrize("concurrency", [8, 64, 512])
def test_stray_429s_cost_almost_nothing(concurrency: int) -> None:
    place = Place(Limits(concurrency=concurrency), 0.0)
    run_windows(place, 0.02, 200)
    assert place.allowed >= 0.9 * concurrency
    place.observe(99, 1, 5.0, 1000.0)
    place.observe(20, 0, 0.0, 1001.0)
    assert place.paused_until <= 1001.0, "one 429 pauses nobody"


def test_a_storm_brings_concurrency_to_the_floor_and_it_recovers() -> None:
    place = Place(Limits(concurrency=64), 0.0)
    now = run_windows(place, 1.0, 4)
    assert place.allowed < 32
    now = run_windows(place, 1.0, 20, now)
    assert place.allowed == 1.0
    run_windows(place, 0.0, 21, now)
    assert place.allowed == 64.0


def test_a_mild_storm_settles_below_the_limit() -> None:
    """An endpoint that answers 429 above 20 calls at once: the window must hover there and neither collapse."""
    place, now, widths = Place(Limits(concurrency=100), 0.0), 0.0, []
    for _ in range(200):
        now += 0.6
        width = int(place.allowed)
        place.observe(20, max(0, width - 20), 0.0, now - 0.55)
        place.observe(0, 0, 0.0, now)
        widths.append(width)
    assert 10 <= sum(widths[50:]) / 150 <= 32


def test_half_of_429_pauses_until_the_latest_wish_capped(tmp_path: Path) -> None:
    for wish, pause in ((7.0, 7.0), (5000.0, 120.0)):
        desk = Desk(tmp_path / str(wish), concurrency=64)
        desk.register("m", "w")
        desk.ask("m", "w", waiting=40)
        desk.ask("m", "w", in_flight=40, outcomes=Outcomes(started=50, ok=5, limited=5), retry_after_s=wish)
        desk.clock.now += 0.6
        grant = desk.ask("m", "w", waiting=9, outcomes=Outcomes(started=50, ok=25, limited=25), retry_after_s=1.0)
        assert grant.reason == "pause" and grant.pause_s == pytest.approx(pause - 0.6) and grant.slots == 0
        desk.clock.now += grant.wait_s + 1e-3
        assert desk.ask("m", "w", waiting=9, outcomes=Outcomes(started=50, ok=25, limited=25)).slots == 9


# money


def test_one_waits_while_money_may_come_back_and_then_gets_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path, max_usd=1.0)
    desk.register("a", "wa")
    desk.register("b", "wb")
    assert desk.ask("a", "wa", waiting=1, usd=0.8).nano_usd == to_nano(0.8)
    grant = desk.ask("b", "wb", waiting=1, usd=0.5)
    assert (grant.slots, grant.nano_usd, grant.reason, grant.stop) == (0, 0, "money", None) and grant.wait_s > 0
    desk.ask("a", "wa", outcomes=Outcomes(started=1, ok=1, nano_usd=to_nano(0.1)))
    assert desk.ask("b", "wb", waiting=1, usd=0.5).nano_usd == to_nano(0.5)
    assert desk.limiter.totals()["cost_usd"] == pytest.approx(0.1)
    assert desk.limiter.totals()["reserved_usd"] == pytest.approx(0.5)


def test_it_stops_only_when_nothing_is_in_flight_and_the_ledger_agrees(tmp_path: Path) -> None:
    desk = Desk(tmp_path, max_usd=1.0)
    desk.register("a", "wa")
    writer = LedgerWriter(desk.store)
    assert desk.ask("a", "wa", waiting=1, usd=0.9).slots == 1
    writer.write([record(Kind.DONE, 0.9)])
    spent = Outcomes(started=1, ok=1, nano_usd=to_nano(0.9))
    early = desk.ask("a", "wa", waiting=1, usd=0.2, outcomes=spent)
    assert early.stop is None and early.reason == "money", "the last report may not be in the ledger yet"
    desk.clock.now += FLUSH_S
    stop = desk.ask("a", "wa", waiting=1, usd=0.2, outcomes=spent).stop
    assert stop is not None and stop.code == "E510" and stop.exit_code == 5
    assert "$0.900000 of $1.000000" in str(stop) and "paid.max_usd (--max-usd)" in stop.fix
    assert desk.ask("a", "wa", waiting=1, usd=0.1, outcomes=spent).nano_usd == to_nano(0.1), "a cheaper one fits"


def test_a_rounds_cap_has_its_own_code_and_starts_anew(tmp_path: Path) -> None:
    desk = Desk(tmp_path, max_usd=10.0, max_round=1.0)
    LedgerWriter(desk.store).write([record(Kind.DONE, 0.9, round_number=0)])
    desk.register("a", "wa", 0)
    stop = desk.ask("a", "wa", waiting=1, usd=0.2).stop
    assert stop is not None and stop.code == "E511" and "paid.max_usd_per_round" in stop.fix
    desk.register("a", "wa", 1)
    assert desk.ask("a", "wa", waiting=1, usd=0.2).nano_usd == to_nano(0.2)
    LedgerWriter(desk.store).write([record(Kind.SPOILED, 9.5, round_number=2)])
    desk.register("a", "wa", 2)
    stop = desk.ask("a", "wa", waiting=1, usd=0.2).stop
    assert stop is not None and stop.code == "E510", "both are reached: the run's decides"


def test_no_cap_no_limit_but_totals(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.register("a", "wa")
    grant = desk.ask("a", "wa", waiting=3, usd=1e6)
    assert grant.slots == 3 and not grant.metered
    desk.ask("a", "wa", outcomes=Outcomes(3, 0, 0, 1, 1, 1, 20, 10, to_nano(5e5)))
    totals = desk.limiter.totals()
    assert (totals["calls"], totals["limited"], totals["failed"], totals["cost_usd"]) == (1, 1, 1, 5e5)
    assert (totals["tokens_in"], totals["tokens_out"]) == (20, 10)


@pytest.mark.parametrize("how", ["replaced", "expired", "left"])
def test_what_a_lost_member_held_is_free_and_its_calls_in_doubt_are_spent(tmp_path: Path, how: str) -> None:
    desk = Desk(tmp_path, max_usd=1.0)
    writer, other = LedgerWriter(desk.store), LedgerWriter(desk.store)
    desk.register("a", writer.writer)
    desk.register("b", other.writer)
    desk.ask("a", writer.writer, waiting=2, usd=0.3)
    writer.write([record(Kind.INTENT, 0.3, "1" * 64), record(Kind.INTENT, 0.3, "2" * 64)])
    writer.write([record(Kind.DONE, 0.05, "1" * 64)])
    desk.ask("b", other.writer, waiting=1, usd=0.1)
    other.write([record(Kind.INTENT, 0.1, "3" * 64)])
    assert desk.limiter.totals()["reserved_usd"] == pytest.approx(0.7)
    if how == "replaced":
        desk.register("a", "new")
    elif how == "expired":
        desk.clock.now += LEASE_S - 1
        desk.ask("b", other.writer, in_flight=1, held_usd=0.1)
        desk.clock.now += 2
    else:
        desk.ask("a", writer.writer, in_flight=1, leaving=True)
    totals = desk.limiter.totals()
    assert totals["reserved_usd"] == pytest.approx(0.1), "only what the living one holds"
    assert totals["cost_usd"] == pytest.approx(0.35), "one answered, one in doubt; the living one's call is not"
    grant = desk.ask("a", writer.writer, waiting=1, usd=0.1)
    assert grant.replaced == (how == "replaced")


def test_one_that_was_taken_for_dead_comes_back_with_what_it_holds(tmp_path: Path) -> None:
    desk = Desk(tmp_path, max_usd=1.0)
    desk.register("a", "wa")
    desk.register("b", "wb")
    desk.ask("a", "wa", waiting=1, usd=0.7)
    desk.clock.now += LEASE_S + 1
    desk.ask("b", "wb")
    assert desk.limiter.totals()["reserved_usd"] == 0
    desk.ask("a", "wa", in_flight=1, held_usd=0.7, outcomes=Outcomes(started=1))
    assert desk.limiter.totals()["reserved_usd"] == pytest.approx(0.7)
    assert desk.ask("b", "wb", waiting=1, usd=0.5).nano_usd == 0


def test_a_new_limiter_learns_from_the_ledger_and_from_the_asks(tmp_path: Path) -> None:
    desk = Desk(tmp_path, max_usd=1.0)
    writer = LedgerWriter(desk.store)
    desk.register("a", writer.writer)
    desk.register("b", "wb")
    desk.ask("a", writer.writer, waiting=2, usd=0.3)
    desk.ask("b", "wb")
    writer.write([record(Kind.INTENT, 0.3, "1" * 64), record(Kind.DONE, 0.2, "1" * 64)])
    writer.write([record(Kind.INTENT, 0.3, "2" * 64)])
    desk.limiter = desk.start()
    grant = desk.ask("b", "wb", waiting=1, usd=0.7)
    assert grant.nano_usd == 0 and grant.stop is None, "the one in doubt may belong to somebody who lives"
    done = Outcomes(started=2, ok=1, nano_usd=to_nano(0.2))
    desk.ask("a", writer.writer, in_flight=1, held_usd=0.3, outcomes=done)
    writer.write([record(Kind.DONE, 0.1, "2" * 64)])
    desk.ask("a", writer.writer, outcomes=done._replace(ok=2, nano_usd=to_nano(0.3)))
    desk.clock.now += YOUNG * LEASE_S
    assert desk.ask("b", "wb", waiting=1, usd=0.7).stop is None, "now that nothing is in flight the ledger says 0.3"
    assert desk.ask("b", "wb", waiting=1, usd=0.7).nano_usd == to_nano(0.7)
    assert desk.limiter.totals()["cost_usd"] == pytest.approx(0.3)


def test_a_message_that_comes_twice_counts_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path, max_usd=1.0)
    desk.register("a", "wa")
    ask = desk.message("a", "wa", waiting=2, usd=0.3)
    assert desk.limiter.lease(ask) == desk.limiter.lease(ask)
    assert desk.limiter.totals()["reserved_usd"] == pytest.approx(0.6)
    report = desk.message("a", "wa", outcomes=Outcomes(started=2, ok=2, nano_usd=to_nano(0.2)))
    desk.limiter.lease(report)
    desk.limiter.lease(report)
    desk.limiter.lease(ask)  # late
    assert desk.limiter.totals()["cost_usd"] == pytest.approx(0.2)
    assert desk.limiter.totals()["reserved_usd"] == 0


# concurrency


def test_one_member_gets_all_and_comes_down_when_another_wants(tmp_path: Path) -> None:
    desk = Desk(tmp_path, concurrency=9)
    desk.register("a", "wa")
    desk.register("b", "wb")
    assert desk.ask("a", "wa", waiting=50).slots == 9
    grant = desk.ask("b", "wb", waiting=3)
    assert grant.slots == 0 and grant.share == 3, "it wants less than half"
    grant = desk.ask("a", "wa", in_flight=9, slots=9, waiting=41)
    assert grant.slots == 0 and grant.share == 6
    desk.ask("a", "wa", in_flight=7, waiting=41)
    assert desk.ask("b", "wb", waiting=3).slots == 2
    desk.ask("a", "wa", in_flight=6, waiting=41)
    assert desk.ask("b", "wb", in_flight=2, waiting=1).slots == 1
    desk.ask("b", "wb")
    assert desk.ask("a", "wa", in_flight=6, waiting=41).slots == 3


def test_fewer_slots_than_members_go_round(tmp_path: Path) -> None:
    desk = Desk(tmp_path, concurrency=1)
    turns = []
    for name in "abc":
        desk.register(name, "w" + name)
    running = dict.fromkeys("abc", 0)
    for step in range(60):
        name = "abc"[step % 3]
        desk.clock.now += 0.05
        grant = desk.ask(name, "w" + name, waiting=5 - running[name], in_flight=running[name])
        assert sum(running.values()) + grant.slots <= 1
        if grant.slots:
            turns.append(name)
        running[name] = grant.slots if not running[name] else int(grant.share > 0)
    assert {turns.count(name) for name in "abc"} <= {len(turns) // 3, len(turns) // 3 + 1} and len(turns) >= 9


# rates


def test_a_call_of_more_than_a_minutes_tokens_goes_alone(tmp_path: Path) -> None:
    desk = Desk(tmp_path, tokens_per_minute=6000)
    desk.register("a", "wa")
    grant = desk.ask("a", "wa", waiting=1, first_tokens=10_000, call_tokens=10_000)
    assert grant.tokens == 10_000
    started = Outcomes(started=1, started_tokens=10_000)
    grant = desk.ask("a", "wa", waiting=1, first_tokens=1, call_tokens=1, in_flight=1, outcomes=started)
    assert grant.tokens == 0 and grant.wait_s == pytest.approx((10_000 - 100 + 1) / 100)
    desk.clock.now += grant.wait_s
    assert desk.ask("a", "wa", waiting=1, first_tokens=1, call_tokens=1, in_flight=1, outcomes=started).tokens == 1


def test_tokens_that_were_not_used_come_back(tmp_path: Path) -> None:
    desk = Desk(tmp_path, tokens_per_minute=60_000)
    desk.register("a", "wa")
    assert desk.ask("a", "wa", waiting=1, first_tokens=1000, call_tokens=1000).tokens == 1000
    done = Outcomes(started=1, started_tokens=1000, unused_tokens=900, ok=1)
    assert desk.ask("a", "wa", waiting=1, first_tokens=900, call_tokens=900, outcomes=done).tokens == 900


def test_a_member_that_waits_for_a_rate_is_not_overtaken_for_ever(tmp_path: Path) -> None:
    desk = Desk(tmp_path, requests_per_minute=60, tokens_per_minute=60_000)
    for name in "ab":
        desk.register(name, "w" + name)
    calls = dict.fromkeys("ab", 0)
    for _ in range(400):
        desk.clock.now += 0.1
        for name, tokens in (("a", 10), ("b", 900)):  # the greedy one always asks just before
            done = Outcomes(calls[name], calls[name] * tokens, 0, calls[name])
            grant = desk.ask(name, "w" + name, waiting=9, first_tokens=tokens, call_tokens=tokens, outcomes=done)
            calls[name] += min(grant.requests, grant.slots)
    assert min(calls.values()) >= 15 and sum(calls.values()) <= 41
