"""Whatever members ask, do and suffer: no limit is exceeded, and every call that waits is granted or stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.paid.limits import Limits
from tests.paid.limit_world import Call, World


def most_in_any_window(starts: list[tuple[float, int]], width_s: float, weigh: Callable[[int], float]) -> float:
    most = total = 0.0
    first = 0
    for now, tokens in starts:
        total += weigh(tokens)
        while starts[first][0] < now - width_s:
            total -= weigh(starts[first][1])
            first += 1
        most = max(most, total)
    return most


CALLS = st.builds(
    Call,
    tokens=st.integers(1, 3000),
    usd=st.sampled_from([0.0, 0.01, 0.03, 0.2]),
    cost=st.floats(0, 1),
    seconds=st.floats(0.001, 5.0),
    limited=st.sampled_from([False, False, False, True]),
).map(lambda call: replace(call, cost=round(call.usd * call.cost, 9)))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    work=st.lists(st.lists(CALLS, max_size=12), min_size=1, max_size=5),
    concurrency=st.integers(1, 9),
    per_minute=st.one_of(st.none(), st.sampled_from([30.0, 600.0, 6000.0])),
    tokens_per_minute=st.one_of(st.none(), st.sampled_from([3000.0, 60_000.0, 1e6])),
    cap=st.one_of(st.none(), st.sampled_from([0.0, 0.05, 0.5, 2.0])),
    deaths=st.lists(st.tuples(st.floats(0, 20), st.integers(0, 4), st.booleans()), max_size=4),
    limiter_death=st.one_of(st.none(), st.floats(0, 10)),
    seed=st.integers(0, 2**32),
)
def test_limits_hold_and_nobody_waits_for_ever(
    tmp_path_factory: pytest.TempPathFactory,
    work: list[list[Call]],
    concurrency: int,
    per_minute: float | None,
    tokens_per_minute: float | None,
    cap: float | None,
    deaths: list[tuple[float, int, bool]],
    limiter_death: float | None,
    seed: int,
) -> None:
    limits = Limits(concurrency=concurrency, requests_per_minute=per_minute, tokens_per_minute=tokens_per_minute)
    world = World(tmp_path_factory.mktemp("ledger"), limits, cap, seed)
    work = [[replace(call) for call in calls] for calls in work]
    for number, calls in enumerate(work):
        world.join(f"m{number}", calls)
    for seconds, number, comes_back in deaths:
        if number < len(work):
            world.at(seconds, lambda p=world.processes[number], back=comes_back: world.kill(p, back))
    if limiter_death is not None and not deaths:
        world.at(limiter_death, world.restart_limiter)
    world.run()

    states = [call.state for calls in work for call in calls]
    assert set(states) <= {"done", "stopped"}
    if cap is None:
        assert "stopped" not in states
    totals = world.limiter.totals()
    assert totals["reserved_usd"] == 0 and totals["in_flight"] == 0
    for width_s in (0.1, 1.0, 10.0, 60.0):
        if per_minute is not None and limiter_death is None:  # a new limiter has forgotten how full its buckets were
            most = most_in_any_window(world.starts, width_s, lambda tokens: 1)
            assert most <= per_minute / 60 * width_s + max(1.0, per_minute / 60) + 1e-3
        exact = not any(call.limited for calls in work for call in calls)
        if tokens_per_minute is not None and limiter_death is None and exact:
            largest = max((tokens for _, tokens in world.starts), default=0)
            most = most_in_any_window(world.starts, width_s, float)
            assert most <= tokens_per_minute / 60 * (width_s + 1) + largest + 1
