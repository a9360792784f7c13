"""A member's end of the run's limits: gives permits on what was granted, and asks for more before that runs out.

A permit is usually given without leaving the loop; one message at a time, through a thread, carries what became of
the calls and what is wanted next. The bookkeeping is in engine/paid/purse.py, the other end in engine/paid/limits.py.
It does not know what the calls are.
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from engine.errors import BudgetReached, IterselectError, StepError
from engine.paid.flow import Grant, Limits, to_nano
from engine.paid.purse import REPORT_S, Outcome, Permit, Purse

__all__ = ["LeaseClient", "Permit"]


class LeaseClient:
    """Permits for the calls of one member, on one event loop.

    Args:
        call: `call(method, *args)` calls the run's Limiter and blocks for the result; it runs in a thread.
        member: name of this member, the same after a restart.
        writer: of its ledger segment, new after a restart.
        endpoint: whose limits it shares with the other members.
        limits: of that endpoint.
    """

    def __init__(self, call: Callable[..., Any], member: str, writer: str, endpoint: str, limits: Limits) -> None:
        self._call, self._purse = call, Purse(member, writer, endpoint, limits)
        self._thread = ThreadPoolExecutor(1, "lease")
        self._wake, self._sleeps_until = asyncio.Event(), -math.inf
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pump: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self._closing = False

    async def begin(self, round: int) -> None:
        """Registers for a round; the first time the limiter forgets what an earlier incarnation held."""
        purse = self._purse
        try:
            await self._ask("register", purse.member, purse.writer, purse.endpoint, purse.limits, round)
        except BaseException as error:
            self._fail(error)  # some may wait already
            raise
        purse.round = round
        if self._pump is None or isinstance(self._error, BudgetReached):
            self._error = None  # another round, another cap
        if self._pump is None:
            self._loop = asyncio.get_running_loop()
            self._pump = self._loop.create_task(self._serve())
            self._pump.add_done_callback(self._ended)

    async def acquire(self, tokens: int, usd: float) -> Permit:
        """Waits until a call may start: first come, first served.

        Args:
            tokens: estimate, in and out.
            usd: the most that the call can cost.

        Raises:
            BudgetReached: E510 (run) or E511 (round), it cannot be afforded; from then on every call raises.
            StepError: another incarnation of this member has taken its place, or the client was closed.
        """
        if self._error is not None:
            raise _fresh(self._error)
        purse, nano = self._purse, to_nano(usd)
        if not purse.queue and purse.fits(tokens, nano) and not self._paused():
            permit = purse.take(tokens, nano)
            if purse.low:
                self._nudge()
            return permit
        future = asyncio.get_running_loop().create_future()
        purse.wait(tokens, nano, future)
        self._nudge()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result(), "failed")  # it was granted in the instant of the cancellation
            raise

    def release(
        self,
        permit: Permit,
        outcome: Outcome,
        *,
        tokens_in: int = 0,
        tokens_out: int = 0,
        usd: float = 0.0,
        retry_after_s: float = 0.0,
    ) -> None:
        """Ends a call.

        Args:
            permit: from `acquire`; each is released once.
            outcome: "limited" is a 429; "failed" only counts.
            tokens_in, tokens_out, usd: what it really used.
            retry_after_s: how long a 429 asked to wait.

        Raises:
            ValueError: the permit was released before.
        """
        if permit.released:
            raise ValueError("this permit was released before")
        purse = self._purse
        purse.give(permit, outcome, tokens_in, tokens_out, to_nano(usd))
        if outcome == "limited" and self._loop is not None:
            purse.retry_at = max(purse.retry_at, self._loop.time() + retry_after_s)
        if purse.queue:
            self._start_waiting()
        if purse.queue or purse.slots > purse.share or self._sleeps_until > purse.asked_at + REPORT_S:
            self._nudge()

    async def close(self) -> None:
        """Gives everything back. Calls that still run are in doubt from then on."""
        if self._closing:
            return
        self._closing = True
        self._wake.set()
        if self._pump is not None:
            await asyncio.wait([self._pump])
        if self._error is None or isinstance(self._error, BudgetReached):
            self._fail(StepError("the client of the run's limits was closed"))
            if self._loop is not None:
                await self._ask("lease", replace(self._purse.ask(self._loop.time()), leaving=True))
        self._thread.shutdown(wait=False)

    async def _serve(self) -> None:
        """One message at a time, when the purse says so."""
        loop, purse = asyncio.get_running_loop(), self._purse
        while not self._closing:
            self._start_waiting()  # also forgets those who gave up
            now = loop.time()
            due = purse.due(now)
            if due > now:
                self._wake.clear()
                self._sleeps_until = due
                await self._sleep(due)
                self._sleeps_until = -math.inf
                continue
            grant: Grant = await self._ask("lease", purse.ask(now))
            if grant.replaced:
                raise StepError(
                    f"member {purse.member!r} was replaced by a newer process",
                    why="it was taken for dead",
                    fix="nothing: the newer process goes on with its work",
                )
            purse.apply(grant, loop.time())
            if grant.stop is not None:
                self._fail(grant.stop)

    async def _sleep(self, until: float) -> None:
        try:
            async with asyncio.timeout_at(None if until == math.inf else until):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _ask(self, method: str, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._call, method, *args)

    def _nudge(self) -> None:
        """Wakes the pump if it sleeps longer than it should."""
        if self._sleeps_until == -math.inf or self._wake.is_set() or self._loop is None:
            return
        if self._purse.due(self._loop.time()) < self._sleeps_until - 1e-3:
            self._wake.set()

    def _paused(self) -> bool:
        return self._loop is None or self._loop.time() < self._purse.paused_until

    def _start_waiting(self) -> None:
        if self._loop is not None:
            for permit, future in self._purse.starters(self._loop.time(), asyncio.Future.done):
                future.set_result(permit)

    def _ended(self, pump: asyncio.Task[None]) -> None:
        if not pump.cancelled() and (error := pump.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Everybody who waits, and whoever comes later, gets the error."""
        self._error = error
        for future in self._purse.drain():
            if not future.done():
                future.set_exception(_fresh(error))


def _fresh(error: BaseException) -> BaseException:
    """An error of its own for each caller: one that is raised again and again collects tracebacks."""
    return copy.copy(error) if isinstance(error, IterselectError) else error
