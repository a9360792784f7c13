"""Makes paid calls: asks the ledger first, reserves, records INTENT, sends, records DONE, and only then answers.

One PaidClient lives on one event loop of one process and shares the run's limits through its LeaseClient. It owns its
retries (the openai client is told not to retry, or its second tries would be paid unseen). It knows nothing of rows,
prompts or verdicts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

from engine.errors import IterselectError, StepError
from engine.paid.endpoint import Endpoint, api_key, openai_clients
from engine.paid.lease_client import LeaseClient, Permit
from engine.paid.ledger import Kind, LedgerIndex, LedgerWriter, Record
from engine.paid.replies import BrokenReply, Reply, RowFailed, read_reply
from engine.paid.requests import Dialect, Request, wire_body
from engine.paid.retry import Breaker, Failure, backoff_s, classify, run_error
from engine.store import Store


class CallFailed(RowFailed):
    """A call that will not be answered; its row becomes an error row."""

    def __init__(self, failure: Failure, attempts: int) -> None:
        super().__init__(failure.text(attempts))
        self.failure, self.attempts = failure, attempts


@dataclass
class Flight:
    """A call under way.

    Attributes:
        most_in, most_usd: upper bounds of its prompt's tokens and of what it costs.
        in_doubt: an INTENT stands in the ledger that nothing has answered yet.
    """

    key: str
    request: Request
    purpose: str
    most_in: int
    most_usd: float
    in_doubt: bool = False


@dataclass
class Pool:
    """One client and how many calls it has under way; the idlest takes the next, so none runs out of connections."""

    client: Any
    in_flight: int = 0


class GroupCommit:
    """Collects records while the last group is being written: one fsync for all calls that wait for one."""

    def __init__(self, writer: LedgerWriter) -> None:
        self.writer = writer
        self.thread = ThreadPoolExecutor(1, "ledger")
        self.records: list[Record] = []
        self.waiting: list[asyncio.Future[None]] = []
        self.task: asyncio.Task[None] | None = None

    async def write(self, *records: Record) -> None:
        """Returns when the records are durable."""
        future = asyncio.get_running_loop().create_future()
        self.records += records
        self.waiting.append(future)
        if self.task is None:
            self.task = asyncio.create_task(self._flush())
        await future

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self.waiting:
            records, waiting = self.records, self.waiting
            self.records, self.waiting = [], []
            try:
                await loop.run_in_executor(self.thread, self.writer.write, records)
            except Exception as error:  # raised again in every call that waits for the group
                for future in waiting:
                    if not future.done():
                        future.set_exception(error)
            else:
                for future in waiting:
                    if not future.done():  # its call was cancelled meanwhile
                        future.set_result(None)
        self.task = None

    async def close(self) -> None:
        if self.task is not None:
            await self.task
        await asyncio.get_running_loop().run_in_executor(self.thread, self.writer.close)
        self.thread.shutdown()


class PaidClient:
    """Calls of one process.

    Args:
        endpoint: where they go.
        ledger: folder of the ledger.
        run: 16 hex digits that name the run in the ledger.
        limiter: `limiter(method, *args)` calls the run's Limiter and blocks for the result.
        member: name of this process among those that share the limiter.

    Raises:
        EnvironmentProblem: E362, the key's variable is not set here.
    """

    def __init__(self, endpoint: Endpoint, ledger: Store, run: str, limiter: Callable[..., Any], member: str) -> None:
        self.endpoint, self.run = endpoint, run
        self.writer = LedgerWriter(ledger)
        self.index = LedgerIndex(ledger)
        self.lease = LeaseClient(limiter, member, self.writer.writer, endpoint.base_url, endpoint.limits)
        self.breaker = Breaker(endpoint.give_up_after_s)
        self.dialect = Dialect()
        self.round = -1
        self.flights: dict[str, tuple[Flight, asyncio.Task[Reply]]] = {}  # under way, or too young for the index
        self.ratio = 0.3  # tokens per byte of a prompt, learned from what is billed
        self.fatal: BaseException | None = None
        self.stopping = asyncio.Event()
        self.commit: GroupCommit | None = None
        self.refreshing = asyncio.Lock()
        # Few wait for a permit at a time: a call that is made again is not behind all of the others, or its part would
        # end after theirs and all parts at once.
        self.line = asyncio.Semaphore(endpoint.limits.concurrency)
        self._key = api_key(endpoint)
        self._pools = [Pool(client) for client in openai_clients(endpoint, self._key)]

    async def begin(self, round_number: int) -> None:
        """Called before the calls of a part: reads what other processes have added to the ledger meanwhile."""
        if self.commit is None:
            self.commit = GroupCommit(self.writer)
        async with self.refreshing:
            ended = [key for key, (_, task) in self.flights.items() if task.done()]
            await asyncio.to_thread(self.index.refresh)
            for key in ended:  # the index has them now
                self.flights.pop(key, None)
        if round_number != self.round:
            self.round = round_number
            await self.lease.begin(round_number)

    async def call(self, request: Request, purpose: str) -> Reply:
        """The answer to a request, out of the ledger if it is there.

        Raises:
            CallFailed: this request cannot be answered.
            BudgetReached: E510, E511, E512.
            EnvironmentProblem: the endpoint refuses all calls or does not answer; the disk is full.
        """
        key = request.key(self.endpoint.base_url)
        found = self.index.done(key)
        if found is not None:
            return Reply.of_ledger(found)
        if key in self.flights:  # the same request, asked for twice
            return replace(await asyncio.shield(self.flights[key][1]), calls=0)
        if self.fatal is not None:
            raise self.fatal
        most_in = request.most_tokens_in()
        flight = Flight(key, request, purpose, most_in, self.endpoint.usd(most_in, request.max_tokens))
        task = asyncio.create_task(self._paid(flight))
        self.flights[key] = flight, task
        task.add_done_callback(lambda done: self._landed(key, done))
        return await asyncio.shield(task)

    def _landed(self, key: str, task: asyncio.Task[Reply]) -> None:
        if task.cancelled() or task.exception() is not None:
            self.flights.pop(key, None)  # it may be tried again

    def _stop(self, error: BaseException) -> None:
        self.fatal = self.fatal or error
        self.stopping.set()

    async def close(self) -> None:
        """Waits for what is in flight, sends nothing more, seals the segment, gives the leases back."""
        self._stop(StepError("the run was stopped"))
        under_way = [(flight, task) for flight, task in self.flights.values() if not task.done()]
        for flight, task in under_way:
            if not flight.in_doubt:  # it only waits for its turn
                task.cancel()
        await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)
        await self.lease.close()
        if self.commit is not None:
            await self.commit.close()
        for pool in self._pools:
            await pool.client.close()

    async def _paid(self, flight: Flight) -> Reply:
        try:
            reply = await self._attempts(flight)
        except IterselectError as error:  # what is wrong for one is wrong for all
            self._stop(error)
            raise
        self.ratio += 0.05 * (reply.tokens_in / max(1, flight.most_in) - self.ratio)
        return reply

    async def _attempts(self, flight: Flight) -> Reply:
        attempts = waits = 0
        likely = round(flight.most_in * self.ratio) + flight.request.max_tokens
        while True:
            if self.fatal is not None:
                raise self.fatal
            await self.breaker.wait()
            async with self.line if attempts == 0 else nullcontext():
                permit = await self.lease.acquire(likely, flight.most_usd)
            sent_as = self.dialect
            try:
                result = await self._attempt(flight, sent_as)
            except BaseException:
                self.lease.release(permit, "failed", usd=flight.most_usd if flight.in_doubt else 0.0)
                raise
            self._release(permit, flight, result)
            if isinstance(result, Reply):
                return replace(result, attempts=attempts + 1)
            if self._refused_form(result, sent_as):
                continue
            if result.what == "run":
                raise run_error(result, self.endpoint.base_url, self.endpoint.api_key_env)
            if result.what == "limited":  # to be told to wait is no failure of the row
                waits += 1
                self.breaker.limited(result, self.endpoint.base_url)
            else:
                attempts += 1
                if result.what == "row" or attempts >= self.endpoint.max_attempts:
                    raise CallFailed(result, attempts)
                self.breaker.failed(result, self.endpoint.base_url)
            with suppress(TimeoutError):
                pause_s = backoff_s(attempts + waits, result.retry_after_s)
                await asyncio.wait_for(self.stopping.wait(), pause_s)

    async def _attempt(self, flight: Flight, sent_as: Dialect) -> Reply | Failure:
        """Sends once, between an INTENT and what became of it.

        A write that fails leaves the INTENT in doubt, and so the call charged at its upper bound.
        """
        flight.in_doubt = True  # from here on: the write may succeed although this is cancelled
        await self._write(self._record(Kind.INTENT, flight, flight.most_usd, {"model": flight.request.model}))
        if self.fatal is not None:
            await self._write(self._record(Kind.SPOILED, flight, 0.0, {"why": "stopped"}))
            flight.in_doubt = False
            raise self.fatal
        result = await self._send(wire_body(flight.request, sent_as))
        if isinstance(result, Reply):
            self.breaker.ok()
            if not result.usage:
                bytes_out = len(result.text.encode())
                tokens = round(flight.most_in * self.ratio), round(bytes_out * self.ratio)
                result = replace(result, tokens_in=tokens[0], tokens_out=tokens[1])
            result = replace(result, usd=self.endpoint.usd(result.tokens_in, result.tokens_out))
            payload = {"asked": flight.request.model, "prompt": flight.request.prompt, **result.payload()}
            tokens = (result.tokens_in, result.tokens_out)
            await self._write(self._record(Kind.DONE, flight, result.usd, payload, tokens))
        else:
            spent = flight.most_usd if result.maybe_paid else 0.0
            await self._write(self._record(Kind.SPOILED, flight, spent, {"why": result.code}))
        flight.in_doubt = False
        return result

    def _release(self, permit: Permit, flight: Flight, result: Reply | Failure) -> None:
        """Gives the permit back, after what it paid for is on record."""
        if isinstance(result, Reply):
            tokens = {"tokens_in": result.tokens_in, "tokens_out": result.tokens_out}
            self.lease.release(permit, "ok", usd=result.usd, **tokens)
            return
        outcome = "limited" if result.what == "limited" else "failed"
        spent = flight.most_usd if result.maybe_paid else 0.0
        self.lease.release(permit, outcome, usd=spent, retry_after_s=result.retry_after_s or 0.0)
        if result.what in ("row", "run"):
            self.breaker.ok()  # it answers, if only to refuse

    def _refused_form(self, failure: Failure, sent_as: Dialect) -> bool:
        """Whether the endpoint refused the form of the request and is to be asked in another."""
        if failure.code not in ("http_400", "http_403", "http_422"):  # some models answer 403 to logprobs
            return False
        if self.dialect == sent_as:
            weaker = self.dialect.after_refusal(failure.message)
            if weaker is None:
                return False
            self.dialect = weaker
        return True  # another call has learned it meanwhile, or this one just did

    async def _send(self, body: dict[str, Any]) -> Reply | Failure:
        import httpx2
        import openai

        pool = min(self._pools, key=lambda pool: pool.in_flight)
        pool.in_flight += 1
        try:
            async with asyncio.timeout(self.endpoint.call_timeout_s):
                response = await pool.client.post("/chat/completions", cast_to=httpx2.Response, body=body)
        except TimeoutError:
            return Failure("again", "timeout", f"no answer in {self.endpoint.call_timeout_s:g} s", maybe_paid=True)
        except openai.APIStatusError as error:
            failure = classify(error.status_code, error.body, error.response.headers)
            return replace(failure, message=failure.message.replace(self._key, "***"))
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            never_sent = (
                httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.LocalProtocolError,
                httpx2.UnsupportedProtocol, httpx2.ProxyError,
            )  # fmt: skip
            what = type(cause).__name__
            return Failure("again", "connection", what, maybe_paid=not isinstance(cause, never_sent))
        finally:
            pool.in_flight -= 1
        try:
            return read_reply(response.content, response.headers.get("x-request-id", ""))
        except BrokenReply as error:
            return Failure("again", "broken_reply", str(error), maybe_paid=True)

    async def _write(self, record: Record) -> None:
        assert self.commit is not None
        await self.commit.write(record)

    def _record(
        self, kind: Kind, flight: Flight, usd: float, payload: dict[str, Any], tokens: Sequence[int] = (0, 0)
    ) -> Record:
        return Record(
            kind=kind, key=flight.key, payload={"t": time.time(), **payload}, purpose=flight.purpose,
            round=max(self.round, 0), run=self.run, cost_usd=usd, tokens_in=tokens[0], tokens_out=tokens[1],
        )  # fmt: skip
