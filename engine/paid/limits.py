"""The limits of a run's paid calls: money, requests and tokens a minute, calls at once, however many members make them.

One Limiter serves a run. Members ask for many calls at a time and report what became of earlier ones with the next
ask. An ask states what its member keeps and counters that only grow, so a lost or repeated message does no harm. The
state is lost with the process: the ledger knows what was spent, and the asks say what is held. It knows nothing of
HTTP, prompts or asyncio (engine/paid/lease_client.py is the other end); formulas are in engine/paid/flow.py.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from engine.errors import BudgetReached
from engine.paid.flow import (
    NANO,
    NO_GRANT,
    NOTHING,
    Ask,
    Grant,
    Limits,
    Member,
    Outcomes,
    Place,
    Reason,
    fair_shares,
    to_nano,
)
from engine.paid.ledger import LedgerIndex
from engine.store import Store

__all__ = ["Limiter", "Limits"]

LEASE_S = 30.0  # a member that holds something and says nothing for so long is taken for dead
YOUNG = 0.2  # of it: by then a new limiter has heard of whoever holds something (they report every 5 s)
FLUSH_S = 2.0  # what a member reported so long before it was last heard of is in the ledger
WAIT_S, LEAST_WAIT_S = 0.1, 0.05  # between two asks that wait: for somebody else, for a bucket


class Limiter:
    """The run's limits.

    Spent plus reserved money never exceeds the caps. After a member was lost, `spent` is read from the ledger, where
    calls of the others may be counted a little too early (never too late); before anybody is stopped it is read again
    with nothing in flight, which is exact.

    Args:
        ledger: folder of paid calls.
        run: 16 hex digits; only this run's calls count.
        max_usd: cap of the run, None: no cap.
        max_usd_per_round: cap of every round.
        clock: seconds that only grow.
        lease_s: how long a member that holds something may be silent.
    """

    def __init__(
        self,
        ledger: Store,
        run: str,
        max_usd: float | None,
        max_usd_per_round: float | None,
        clock: Callable[[], float] = time.monotonic,
        lease_s: float = LEASE_S,
    ) -> None:
        self._index, self._run, self._clock, self._lease_s = LedgerIndex(ledger), run, clock, lease_s
        self._cap = None if max_usd is None else to_nano(max_usd)
        self._round_cap = None if max_usd_per_round is None else to_nano(max_usd_per_round)
        self._metered = self._cap is not None or self._round_cap is not None
        self._lock = threading.Lock()  # members of a local runtime call from their own threads
        self._members: dict[str, Member] = {}
        self._retired: set[tuple[str, str]] = set()
        self._places: dict[str, Place] = {}
        self._spent, self._reported = NOTHING, NOTHING  # of the whole run, with the ledger's; to this limiter
        self._shown = NOTHING  # as spent, but never counts a report twice: for the terminal, not for the cap
        self._by_round: dict[int, int] = {}  # nano-dollars spent in the rounds that members are in
        self._recent: deque[tuple[float, str, int, Outcomes]] = deque()  # perhaps not yet in the ledger
        self._in_doubt, self._exact = 0, True
        self._young_until, self._recovering = clock() + YOUNG * lease_s, False

    def register(self, member: str, writer: str, endpoint: str, limits: Limits, round: int) -> None:
        """A member begins a round. What another incarnation of it held is dropped, and the ledger says what it spent.

        Args:
            member: its name, the same after a restart.
            writer: of its ledger segment, new after a restart.
            endpoint: whose limits it shares.
            limits: of that endpoint, for all members together.
            round: whose cap its calls count towards.
        """
        with self._lock:
            self._enter(member, writer, endpoint, limits, round)

    def lease(self, ask: Ask) -> Grant:
        """Takes a report and grants what can be granted now; never waits."""
        with self._lock:
            now = self._clock()
            self._expire(now, keep=ask.member)
            member = self._members.get(ask.member)
            if member is None:  # it expired, or this limiter is a new incarnation
                member = self._enter(ask.member, ask.writer, ask.endpoint, ask.limits, ask.round)
                self._exact = False  # what it has in flight counts twice until nothing is
                self._recovering |= ask.number > 1 and now < self._young_until
            if member is None or member.writer != ask.writer:
                return Grant(replaced=True)
            if ask.number <= member.number:
                return member.grant
            self._hear(member, ask, now)
            if ask.leaving:
                self._leave(member)
                return NO_GRANT
            grant = self._decide(member, ask, now)
            self._give(member, ask, grant, now)
            return grant

    def totals(self) -> dict[str, Any]:
        """The whole run's calls, tokens and money so far, and how it goes: what a terminal shows."""
        with self._lock:
            now = self._clock()
            self._expire(now)
            if not self._exact and self._quiet(now):
                self._read_ledger()
            shown, reported = self._shown, self._reported
            return {
                "calls": shown.ok,
                "tokens_in": shown.tokens_in,
                "tokens_out": shown.tokens_out,
                "cost_usd": shown.nano_usd / NANO,
                "reserved_usd": sum(m.nano_usd for m in self._members.values()) / NANO,
                "limited": reported.limited,
                "failed": reported.failed,
                "in_flight": sum(m.in_flight for m in self._members.values()),
                "concurrency": sum(int(place.allowed) for place in self._places.values()),
                "paused": any(place.paused_until > now for place in self._places.values()),
            }

    # members

    def _enter(self, name: str, writer: str, endpoint: str, limits: Limits, round_number: int) -> Member | None:
        now = self._clock()
        if (name, writer) in self._retired:
            return None
        member = self._members.get(name)
        if member is not None and member.writer != writer:
            self._retired.add((name, member.writer))
            del self._members[name]
            member = None
        place = self._places.setdefault(endpoint, Place(limits, now))
        place.adopt(limits, now)
        new_round = round_number not in self._by_round
        self._by_round.setdefault(round_number, 0)
        if member is None or new_round:
            self._read_ledger()  # before the member counts as live: what it has in flight is counted too
        if member is None:
            member = self._members[name] = Member(name, writer, endpoint, round_number, now)
        member.endpoint, member.round = endpoint, round_number
        rounds = {m.round for m in self._members.values()}
        self._by_round = {number: nano for number, nano in self._by_round.items() if number in rounds}
        return member

    def _expire(self, now: float, keep: str = "") -> None:
        late = [m for m in self._members.values() if m.holds and now - m.heard > self._lease_s and m.name != keep]
        for member in late:
            del self._members[member.name]
        if late:
            self._read_ledger()

    def _leave(self, member: Member) -> None:
        del self._members[member.name]
        if member.in_flight:  # it does not wait for them: they are in doubt
            self._read_ledger()

    def _hear(self, member: Member, ask: Ask, now: float) -> None:
        place = self._places[member.endpoint]
        if member.number == 0:  # its counters include what the ledger said when it entered
            member.outcomes, member.requests, member.tokens = ask.outcomes, ask.requests, ask.tokens
        change = ask.outcomes.since(member.outcomes)
        self._spent, self._reported = self._spent.plus(change), self._reported.plus(change)
        self._shown = self._shown.plus(change)
        self._by_round[member.round] += change.nano_usd
        self._forget_recent(now)
        if change.ok or change.nano_usd:
            self._recent.append((now, member.writer, member.round, change))
        if place.requests is not None:
            place.requests.level += member.requests - change.started - ask.requests  # returned unused
        if place.tokens is not None:
            place.tokens.level += member.tokens - change.started_tokens - ask.tokens + change.unused_tokens
        member.number, member.heard, member.outcomes = ask.number, now, ask.outcomes
        member.slots, member.in_flight, member.want = ask.slots, ask.in_flight, ask.in_flight + ask.waiting
        member.requests, member.tokens, member.nano_usd = ask.requests, ask.tokens, ask.nano_usd
        member.ahead_requests, member.ahead_tokens = ask.requests, ask.tokens
        member.first_tokens, member.first_nano = ask.first_tokens, ask.first_nano
        if not ask.waiting:
            member.waits_for, member.since = "", math.inf
        place.observe(change.ok + change.failed, change.limited, ask.retry_after_s, now)

    # grants

    def _decide(self, member: Member, ask: Ask, now: float) -> Grant:
        """Whole calls or nothing: one that waits must not keep from others what it cannot use."""
        place = self._places[member.endpoint]
        extra, share = self._slots(member, ask, place, now)
        left_s = self._young_until - now
        if self._recovering and left_s > 0:  # others may hold what this new limiter does not know of
            return Grant(share=share, metered=self._metered, wait_s=left_s, reason="pause")
        left_s = place.paused_until - now
        if left_s > 0:
            return Grant(share=share, metered=self._metered, wait_s=left_s, pause_s=left_s, reason="pause")
        room = min(member.slots + extra, share) - member.in_flight  # below 0 when it must come down
        short: Reason = "slots" if ask.waiting > room else ""
        calls = max(0, min(ask.waiting, room)) + ask.ahead
        if calls == 0 or member.slots + extra == 0:
            return Grant(slots=extra, share=share, metered=self._metered, wait_s=WAIT_S if short else 0.0, reason=short)
        first_tokens, first_nano = (
            (ask.first_tokens, ask.first_nano) if ask.waiting else (ask.call_tokens, ask.call_nano)
        )
        requests, tokens, wait_s = self._rate(member, place, calls, first_tokens, ask.call_tokens, now)
        if requests == 0:
            return Grant(share=share, metered=self._metered, wait_s=wait_s, reason="rate")
        nano = self._money(member, first_nano, max(first_nano, requests * ask.call_nano), now)
        if nano is None:
            stop = self._stop(member, first_nano, now) if ask.waiting else None
            return Grant(share=share, metered=self._metered, wait_s=WAIT_S, reason="money", stop=stop)
        if wait_s == 0.0 and short:
            wait_s = WAIT_S
        reason: Reason = "rate" if requests < calls else short
        return Grant(
            slots=extra,
            share=share,
            requests=requests,
            tokens=tokens,
            nano_usd=nano,
            metered=self._metered,
            wait_s=wait_s,
            reason=reason,
        )

    def _give(self, member: Member, ask: Ask, grant: Grant, now: float) -> None:
        """Books a grant."""
        place = self._places[member.endpoint]
        member.grant = grant
        member.slots += grant.slots
        member.nano_usd += grant.nano_usd
        at_once = min(grant.requests, ask.waiting, max(0, member.slots - member.in_flight))
        if place.requests is not None:
            place.requests.level -= grant.requests
            member.requests += grant.requests
            member.ahead_requests += grant.requests - at_once
        if place.tokens is not None:
            place.tokens.level -= grant.tokens
            member.tokens += grant.tokens
            if at_once < grant.requests:
                member.ahead_tokens += max(0, grant.tokens - max(ask.first_tokens, at_once * ask.call_tokens))
        member.asks_by = now + grant.wait_s + 1.0 if ask.waiting else now
        starved = grant.reason == "slots" and member.slots == 0
        if ask.waiting and grant.requests == 0 and (starved or grant.reason in ("rate", "money")):
            member.waits_for, member.since = grant.reason, min(member.since, now)
        elif grant.reason != "pause":
            member.waits_for, member.since = "", math.inf

    def _slots(self, member: Member, ask: Ask, place: Place, now: float) -> tuple[int, int]:
        """Slots to give, and the member's share while somebody else lacks some."""
        allowed = int(place.allowed)
        others = [m for m in self._members.values() if m.endpoint == member.endpoint]
        wants = {m.name: m.want if m is member or m.asks_by >= now else min(m.want, m.slots) for m in others}
        order = sorted(others, key=lambda m: (m.since if m.slots == 0 else math.inf, -m.slots, m.name))
        held = sum(m.slots for m in others)
        pressed = held > allowed or any(wants[m.name] > m.slots for m in others if m is not member)
        free = max(0, allowed - held)
        if pressed:
            share = fair_shares(allowed, wants, [m.name for m in order])[member.name]
            return max(0, min(share - member.slots, free)), share
        return max(0, min(member.want + ask.ahead_slots - member.slots, free)), allowed

    def _rate(
        self, member: Member, place: Place, calls: int, first_tokens: int, call_tokens: int, now: float
    ) -> tuple[int, int, float]:
        """(requests, tokens, seconds until more): all zero but the last when not even the first call may start."""
        here = [m for m in self._members.values() if m.endpoint == member.endpoint]
        before = [m for m in self._waiting_longer(member, "rate", now) if m.endpoint == member.endpoint]
        hungry = 1 + sum(m.waits_for == "rate" and m.asks_by >= now and m is not member for m in here)
        wait_s = 0.0
        if place.requests is not None:
            place.requests.refill(now, sum(m.ahead_requests for m in here))
            left = place.requests.level - len(before) + 1e-6  # a sum of floats that is a hair below a whole request
            if left < 1:
                return 0, 0, max(LEAST_WAIT_S, place.requests.seconds_until(len(before) + 1))
            wanted, calls = calls, min(calls, int(max(1.0, left / hungry)))
            if calls < wanted:
                wait_s = max(LEAST_WAIT_S, place.requests.seconds_until(calls + 1))
        if place.tokens is None:
            return calls, 0, wait_s
        bucket = place.tokens
        bucket.refill(now, sum(m.ahead_tokens for m in here))
        kept = sum(min(m.first_tokens, bucket.burst) for m in before)
        need = min(first_tokens, bucket.burst)  # a larger call goes when the bucket is full, and leaves it in debt
        if bucket.level - kept < need - 1e-6:
            return 0, 0, max(LEAST_WAIT_S, bucket.seconds_until(kept + need))
        tokens = max(first_tokens, calls * call_tokens)
        most = max(first_tokens, int((bucket.level - kept) / hungry))
        if most < tokens:
            calls = max(1, calls * most // tokens)
            tokens = most
            wait_s = max(wait_s, LEAST_WAIT_S, bucket.seconds_until(most + min(call_tokens, bucket.burst)))
        return calls, tokens, wait_s

    def _waiting_longer(self, member: Member, reason: Reason, now: float) -> Iterator[Member]:
        turn = (member.since, member.name)
        for other in self._members.values():
            if other.waits_for == reason and other.asks_by >= now and (other.since, other.name) < turn:
                yield other

    # money

    def _room(self, round_number: int) -> tuple[float, float]:
        """Nano-dollars that are neither spent nor reserved: of the run, of the round."""
        held = sum(m.nano_usd for m in self._members.values())
        held_round = sum(m.nano_usd for m in self._members.values() if m.round == round_number)
        run = math.inf if self._cap is None else self._cap - self._spent.nano_usd - held
        spent_round = self._by_round[round_number]
        return run, math.inf if self._round_cap is None else self._round_cap - spent_round - held_round

    def _money(self, member: Member, first: int, wanted: int, now: float) -> int | None:
        if not self._metered:
            return wanted
        kept = sum(other.first_nano for other in self._waiting_longer(member, "money", now))
        room = int(min(self._room(member.round))) - kept
        if first > max(room, 0):
            return None
        active = sum(m.want > 0 for m in self._members.values()) or 1
        return max(first, min(wanted, room // active))

    def _stop(self, member: Member, first: int, now: float) -> BudgetReached | None:
        """The error once it is certain that the call will never fit: reservations are several times the real cost."""
        if first <= max(0, min(self._room(member.round))):
            return None  # it fits, but others wait longer
        if not self._quiet(now) or (self._in_doubt and now < self._young_until):
            return None
        self._read_ledger()
        of_run, of_round = self._room(member.round)
        if first <= max(0, min(of_run, of_round)):
            return None
        whose, code, option = "the run", "E510", "max_usd (--max-usd)"
        cap, spent = self._cap or 0, self._spent.nano_usd
        if first <= max(0, of_run):
            whose, code, option = f"round {member.round}", "E511", "max_usd_per_round"
            cap, spent = self._round_cap or 0, self._by_round[member.round]
        usd = [f"${nano / NANO:.6f}" for nano in (spent, cap, first)]
        return BudgetReached(
            f"{whose} has spent {usd[0]} of {usd[1]}; the next call could cost {usd[2]}",
            fix=f"raise paid.{option} and run the same command again: answered calls are kept",
            code=code,
        )

    def _quiet(self, now: float) -> bool:
        """Nothing is reserved anywhere, and all that was reported is in the ledger."""
        self._forget_recent(now)
        return not self._recent and not any(m.nano_usd or m.in_flight for m in self._members.values())

    def _live(self, now: float) -> dict[str, float]:
        """Writer -> when heard, of those that may have calls in flight. One that holds nothing has none: an intent of
        its without an end means that it died."""
        return {m.writer: m.heard for m in self._members.values() if m.holds or now - m.heard < FLUSH_S}

    def _forget_recent(self, now: float) -> None:
        """Drops reports of which the ledger knows: the member lived on, or else its calls are in doubt there."""
        live = self._live(now)
        while self._recent:
            at, writer, _, _ = self._recent[0]
            if live.get(writer, now) - at < FLUSH_S:
                return
            self._recent.popleft()

    def _read_ledger(self) -> None:
        """Spent is what the ledger says, and what was reported so lately that it may not be there yet."""
        now = self._clock()
        self._exact = self._quiet(now)
        live = self._live(now).keys()
        self._index.refresh()
        totals = self._index.totals(self._run, live=live)
        tokens = {"tokens_in": totals.tokens_in, "tokens_out": totals.tokens_out}
        spent = Outcomes(ok=totals.calls, nano_usd=to_nano(totals.cost_usd), **tokens)
        for _, _, _, change in self._recent:
            spent = spent.plus(change)
        if self._exact or self._shown == NOTHING:
            self._shown = spent
        self._spent, self._in_doubt = spent, totals.in_doubt
        for number in self._by_round:
            cost = to_nano(self._index.totals(self._run, round=number, live=live).cost_usd)
            self._by_round[number] = cost + sum(c.nano_usd for _, _, of, c in self._recent if of == number)
