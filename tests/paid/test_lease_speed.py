"""How fast permits come, in process and through a Ray actor; printed, never asserted: machines differ."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from engine.paid.lease_client import LeaseClient
from engine.paid.limits import Limiter
from engine.store import Store
from tests.paid.lease_tools import RUN, client, limiter


async def pairs_per_second(lease: LeaseClient, seconds: float, together: int = 64) -> float:
    """acquire + release pairs by many tasks, each of which gives way to the others after every pair."""
    count, end = 0, time.monotonic() + seconds

    async def repeat() -> None:
        nonlocal count
        while time.monotonic() < end:
            permit = await lease.acquire(100, 1e-6)
            await asyncio.sleep(0)
            lease.release(permit, "ok", tokens_in=50, tokens_out=20, usd=2e-7)
            count += 1

    await asyncio.gather(*(repeat() for _ in range(together)))
    return count / seconds


LIMITED = {"requests_per_minute": 1e9, "tokens_per_minute": 1e11}


@pytest.mark.parametrize("limits", [{"concurrency": 64}, {"concurrency": 64, **LIMITED}, {"concurrency": 16}])
def test_how_fast_permits_come(tmp_path: Path, limits: dict[str, Any]) -> None:
    """Nothing is left over at the end; the speed is printed."""
    call = limiter(tmp_path, max_usd=1e6)

    async def main() -> None:
        lease = client(call, **limits)
        await lease.begin(0)
        speed = await pairs_per_second(lease, 1.0)
        print(f"\n{limits}: {speed:,.0f} acquire + release pairs a second, {call.messages} messages")
        await lease.close()

    asyncio.run(main())
    assert call.limiter.totals()["reserved_usd"] == 0


@pytest.mark.ray
def test_two_processes_share_a_limiter_actor(ray_cluster: Any, tmp_path: Path) -> None:
    import ray

    store = Store(tmp_path)
    actor: Any = ray.remote(Limiter).options(num_cpus=0).remote(store, RUN, 50.0, None)

    @ray.remote(num_cpus=0)
    def member(number: int, limiter: Any) -> tuple[list[tuple[float, float]], float]:
        def call(method: str, *args: Any) -> Any:
            return ray.get(getattr(limiter, method).remote(*args))

        async def main() -> tuple[list[tuple[float, float]], float]:
            lease, spans = client(call, number, concurrency=6), []
            await lease.begin(0)

            async def one() -> None:
                permit = await lease.acquire(100, 0.001)
                started = time.time()
                await asyncio.sleep(0.01)
                spans.append((started, time.time()))
                lease.release(permit, "ok", tokens_in=1, tokens_out=1, usd=0.0002)

            await asyncio.gather(*(one() for _ in range(400)))
            speed = await pairs_per_second(lease, 1.0, together=6)
            await lease.close()
            return spans, speed

        return asyncio.run(main())

    results = ray.get([member.remote(number, actor) for number in range(2)])
    edges = [edge for spans, _ in results for started, ended in spans for edge in ((started, 1), (ended, -1))]
    at_once = most = 0
    for _, change in sorted(edges):
        at_once += change
        most = max(most, at_once)
    assert len(edges) == 1600 and most <= 6
    totals = ray.get(actor.totals.remote())
    assert totals["calls"] >= 800 and totals["reserved_usd"] == 0 and totals["in_flight"] == 0
    print("\npairs a second through a Ray actor, two processes:", [f"{speed:,.0f}" for _, speed in results])
    ray.kill(actor)
