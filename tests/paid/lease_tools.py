"""A limiter in this process, clients of it, and something for their calls to do."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.errors import BudgetReached, EnvironmentProblem
from engine.paid.lease_client import LeaseClient
from engine.paid.ledger import Kind, LedgerWriter, Record
from engine.paid.limits import Limiter, Limits
from engine.store import Store

RUN = "0123456789abcdef"
URL = "http://judge/v1"


class Service:
    """What the calls would reach: counts them, and how many there are at once, over all clients."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls = self.now = self.most = 0
        self.times: list[float] = []

    async def work(self, seconds: float) -> None:
        with self.lock:
            self.calls += 1
            self.now += 1
            self.most = max(self.most, self.now)
            self.times.append(time.monotonic())
        await asyncio.sleep(seconds)
        with self.lock:
            self.now -= 1


class Counted:
    """The way to a limiter in this process, with the number of messages."""

    def __init__(self, limiter: Limiter) -> None:
        self.limiter, self.messages, self.failing = limiter, 0, False

    def __call__(self, method: str, *args: Any) -> Any:
        assert threading.current_thread() is not threading.main_thread(), "it blocks: never on the loop"
        self.messages += 1
        if self.failing:
            raise EnvironmentProblem("a member died more than 100 times", code="E335")
        return getattr(self.limiter, method)(*args)


def limiter(folder: Path, max_usd: float | None = None, max_round: float | None = None) -> Counted:
    return Counted(Limiter(Store(folder), RUN, max_usd, max_round))


def client(call: Callable[..., Any], number: int = 0, writer: str = "", **limits: Any) -> LeaseClient:
    of_endpoint = Limits(**{"concurrency": 16, **limits})
    return LeaseClient(call, f"judge-{number}", writer or f"writer-{number}", URL, of_endpoint)


def answered_call(usd: float) -> Record:
    facts: dict[str, Any] = {"purpose": "judge", "round": 0, "run": RUN, "tokens_in": 20, "tokens_out": 10}
    return Record(kind=Kind.DONE, key=uuid.uuid4().hex * 2, payload={}, cost_usd=usd, **facts)


async def make_calls(
    lease: LeaseClient,
    service: Service,
    count: int,
    usd: float = 0.001,
    cost: float = 0.0002,
    ledger: LedgerWriter | None = None,
) -> int:
    """Calls at once; how many were answered before the money ended."""

    async def one(number: int) -> bool:
        try:
            permit = await lease.acquire(100, usd)
        except BudgetReached:
            return False
        await service.work(random.Random(number).uniform(0.0, 0.004))
        lease.release(permit, "ok", tokens_in=20, tokens_out=10, usd=cost)
        if ledger is not None:
            ledger.write([answered_call(cost)])
        return True

    return sum(await asyncio.gather(*(one(number) for number in range(count))))
