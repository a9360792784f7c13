"""LeaseClients on real loops against a real limiter: the limits of the whole, order, rounds, endings."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from pathlib import Path

import pytest

from engine.errors import BudgetReached, EnvironmentProblem, StepError
from engine.paid.lease_client import LeaseClient
from engine.paid.ledger import LedgerIndex, LedgerWriter
from engine.paid.limits import Limiter, Limits
from engine.store import Store
from tests.paid.lease_tools import RUN, URL, Service, client, limiter, make_calls


@pytest.mark.parametrize("clients", [1, 4])
def test_clients_share_the_slots_and_all_calls_are_made(tmp_path: Path, clients: int) -> None:
    call, service = limiter(tmp_path, max_usd=100.0), Service()

    async def main() -> None:
        leases = [client(call, number) for number in range(clients)]
        for lease in leases:
            await lease.begin(0)
        assert await asyncio.gather(*(make_calls(lease, service, 600) for lease in leases)) == [600] * clients
        for lease in leases:
            await lease.close()

    started = time.monotonic()
    asyncio.run(main())
    seconds = time.monotonic() - started
    assert service.most == 16, "all slots are used and no more"
    totals = call.limiter.totals()
    assert (totals["calls"], totals["reserved_usd"], totals["in_flight"]) == (600 * clients, 0, 0)
    assert totals["cost_usd"] == pytest.approx(600 * clients * 0.0002)
    assert (totals["tokens_in"], totals["tokens_out"]) == (600 * clients * 20, 600 * clients * 10)
    assert call.messages <= clients * (20 + 100 * seconds), "far fewer messages than calls, never a busy loop"


def test_clients_on_loops_of_their_own_threads(tmp_path: Path) -> None:
    call, service = limiter(tmp_path), Service()

    async def main(number: int) -> None:
        lease = client(call, number)
        await lease.begin(0)
        assert await make_calls(lease, service, 300) == 300
        await lease.close()

    threads = [threading.Thread(target=lambda n=n: asyncio.run(main(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert service.calls == 1200 and service.most <= 16


@pytest.mark.parametrize("clients", [1, 4])
def test_the_cap_stops_all_and_is_nearly_used_up(tmp_path: Path, clients: int) -> None:
    """Reservations are five times the cost: stopping while some are out would leave most of the money."""
    call, service = limiter(tmp_path, max_usd=0.1), Service()
    writers = [LedgerWriter(Store(tmp_path)) for _ in range(clients)]

    async def main() -> int:
        leases = [client(call, number, writer.writer) for number, writer in enumerate(writers)]
        for lease in leases:
            await lease.begin(0)
        pairs = zip(leases, writers, strict=True)
        answered = sum(await asyncio.gather(*(make_calls(lease, service, 1000, ledger=w) for lease, w in pairs)))
        with pytest.raises(BudgetReached) as info:
            await leases[0].acquire(1, 0.001)
        assert info.value.code == "E510"
        for lease in leases:
            await lease.close()
        return answered

    answered = asyncio.run(main())
    assert answered * 0.0002 <= 0.1
    assert answered * 0.0002 > 0.1 - 0.001 - 1e-9, "not even one more would fit"
    assert call.limiter.totals()["cost_usd"] == pytest.approx(answered * 0.0002)


def test_a_new_round_has_new_money(tmp_path: Path) -> None:
    call = limiter(tmp_path, max_round=0.01)

    async def main() -> None:
        lease = client(call)
        await lease.begin(0)
        with pytest.raises(BudgetReached) as info:
            await lease.acquire(1, 0.02)
        assert info.value.code == "E511"
        with pytest.raises(BudgetReached):
            await lease.acquire(1, 0.001)  # at once, although it would fit
        await lease.begin(1)
        lease.release(await lease.acquire(1, 0.005), "ok", usd=0.005)
        await lease.close()

    asyncio.run(main())


def test_requests_per_minute_hold_over_all_clients(tmp_path: Path) -> None:
    call, service = limiter(tmp_path), Service()

    async def main() -> None:
        leases = [client(call, number, requests_per_minute=3000) for number in range(3)]
        for lease in leases:
            await lease.begin(0)
        await asyncio.gather(*(make_calls(lease, service, 60) for lease in leases))
        for lease in leases:
            await lease.close()

    asyncio.run(main())
    times = sorted(service.times)
    assert len(times) == 180
    for first, last in ((0, 119), (0, 179), (50, 179)):
        assert last - first + 1 <= 50 * (times[last] - times[first]) + 50 + 1 + 50 * 0.1, "but for the way of a grant"
    assert times[-1] - times[0] < 6.0, "130 after the burst need 2.6 s"
    assert call.messages < 300


def test_first_come_first_served_and_cancelled_ones_leave_nothing(tmp_path: Path) -> None:
    call = limiter(tmp_path, max_usd=1.0)

    async def main() -> None:
        lease = client(call, concurrency=1)
        order: list[int] = []

        async def one(number: int) -> None:
            permit = await lease.acquire(1, 0.01)
            order.append(number)
            await asyncio.sleep(0.002)
            lease.release(permit, "ok", usd=0.001)

        tasks = [asyncio.create_task(one(number)) for number in range(20)]
        await asyncio.sleep(0)
        await lease.begin(0)
        await asyncio.sleep(0.01)
        for number in (12, 15, 19):
            tasks[number].cancel()
        await asyncio.wait(tasks)
        assert order == [number for number in range(20) if number not in (12, 15, 19)]
        await lease.close()

    asyncio.run(main())
    totals = call.limiter.totals()
    assert (totals["reserved_usd"], totals["in_flight"]) == (0, 0)
    assert totals["cost_usd"] == pytest.approx(0.017)


def test_what_is_not_used_goes_back_without_closing(tmp_path: Path) -> None:
    call = limiter(tmp_path, max_usd=1.0)

    async def main() -> None:
        lease = client(call)
        await lease.begin(0)
        await make_calls(lease, Service(), 100)
        await asyncio.sleep(1.0)
        assert call.limiter.totals()["reserved_usd"] == 0
        before = call.messages
        await asyncio.sleep(0.6)
        assert call.messages == before, "an idle client is silent"
        other = client(call, 1)
        await other.begin(0)
        permits = [await other.acquire(1, 0.01) for _ in range(16)]
        for permit in permits:
            other.release(permit, "failed")
        await lease.close()
        await other.close()

    asyncio.run(main())
    assert call.limiter.totals()["reserved_usd"] == 0


def test_429s_bring_the_concurrency_down_and_pause_everybody(tmp_path: Path) -> None:
    call, starts = limiter(tmp_path), []

    async def main() -> None:
        leases = [client(call, number, concurrency=32) for number in range(2)]
        for lease in leases:
            await lease.begin(0)

        async def several(lease: LeaseClient) -> None:
            for _ in range(25):
                permit = await lease.acquire(1, 0.0)
                starts.append(time.monotonic())
                await asyncio.sleep(0.05)
                lease.release(permit, "limited", retry_after_s=1.0)

        await asyncio.wait_for(asyncio.gather(*(several(lease) for lease in leases for _ in range(8))), 60)
        for lease in leases:
            await lease.close()

    asyncio.run(main())
    totals = call.limiter.totals()
    assert totals["limited"] == len(starts) == 400 and totals["concurrency"] < 32
    starts.sort()
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert max(gaps) > 0.5, "nobody started anything for most of the second that was asked for"


def test_close_is_final_and_may_be_repeated(tmp_path: Path) -> None:
    call = limiter(tmp_path, max_usd=1.0)

    async def main() -> None:
        lease = client(call, concurrency=1)
        await lease.begin(0)
        permit = await lease.acquire(1, 0.1)
        waiting = asyncio.create_task(lease.acquire(1, 0.1))
        await asyncio.sleep(0.05)
        lease.release(permit, "ok", usd=0.05)
        with pytest.raises(ValueError, match="released before"):
            lease.release(permit, "ok")
        lease.release(await waiting, "ok", usd=0.05)
        last = asyncio.create_task(lease.acquire(1, 0.95))
        await asyncio.sleep(0)
        await asyncio.gather(lease.close(), lease.close())
        await lease.close()
        with pytest.raises((StepError, BudgetReached)):
            await last
        with pytest.raises((StepError, BudgetReached)):
            await lease.acquire(1, 0.1)
        await client(call, 7).close()  # never begun

    asyncio.run(main())
    totals = call.limiter.totals()
    assert (totals["reserved_usd"], totals["in_flight"]) == (0, 0)


def test_a_replaced_member_and_a_lost_limiter_end_the_waiting(tmp_path: Path) -> None:
    call = limiter(tmp_path)

    async def main() -> None:
        old = client(call)
        await old.begin(0)
        await old.acquire(1, 0.0)
        new = LeaseClient(call, "judge-0", "a newer writer", URL, Limits(concurrency=1))
        await new.begin(0)
        with pytest.raises(StepError, match="replaced"):
            await asyncio.gather(*(old.acquire(1, 0.0) for _ in range(20)))
        await old.close()
        await new.acquire(1, 0.0)
        other = client(call, 1)
        early = asyncio.create_task(other.acquire(1, 0.0))
        await asyncio.sleep(0)
        call.failing = True
        with pytest.raises(EnvironmentProblem):
            await other.begin(0)
        with pytest.raises(EnvironmentProblem):
            await early
        with pytest.raises(EnvironmentProblem):
            await new.acquire(1, 0.0)
        with pytest.raises(EnvironmentProblem):
            await new.acquire(1, 0.0)
        await new.close()

    asyncio.run(main())


def test_a_limiter_that_starts_again_is_told_what_is_held(tmp_path: Path) -> None:
    call = limiter(tmp_path, max_usd=1.0)

    async def main() -> None:
        lease = client(call)
        await lease.begin(0)
        held = [await lease.acquire(1, 0.05) for _ in range(4)]
        call.limiter = Limiter(Store(tmp_path), RUN, 1.0, None, lease_s=2.0)
        more = [await lease.acquire(1, 0.05) for _ in range(10)]
        await asyncio.sleep(0.3)
        assert call.limiter.totals()["reserved_usd"] >= 14 * 0.05 - 1e-9
        for permit in held + more:
            lease.release(permit, "ok", usd=0.01)
        await lease.close()

    asyncio.run(main())
    assert call.limiter.totals()["cost_usd"] == pytest.approx(0.14)


def test_the_ledger_decides_after_a_stop(tmp_path: Path) -> None:
    """Reported money that no ledger knows is not spent: the limiter looks before it stops anybody."""
    call = limiter(tmp_path, max_usd=0.01)

    async def main() -> None:
        lease = client(call)
        await lease.begin(0)
        lease.release(await lease.acquire(1, 0.01), "ok", usd=0.01)
        permit = await asyncio.wait_for(lease.acquire(1, 0.01), 10)
        lease.release(permit, "failed")
        await lease.close()

    asyncio.run(main())
    index = LedgerIndex(Store(tmp_path))
    index.refresh()
    assert index.totals(RUN).cost_usd == 0
