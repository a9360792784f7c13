"""Makes paid calls: asks the ledger first, reserves, records INTENT, sends, records DONE, and only then answers.

One PaidClient lives on one event loop of one process and shares the run's limits through its LeaseClient. It owns its
retries (the openai client is told not to retry, or its second tries would be paid unseen). It knows nothing of rows,
prompts or verdicts.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from engine.errors import EnvironmentProblem, IterselectError, StepError
from engine.paid.lease_client import LeaseClient, Permit
from engine.paid.ledger import Kind, LedgerIndex, LedgerWriter, Record
from engine.paid.limits import Limits
from engine.paid.replies import BrokenReply, Reply, read_reply
from engine.paid.requests import Dialect, Request, wire_body
from engine.paid.retry import Breaker, Failure, backoff_s, classify, run_error
from engine.store import Store


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where calls go and how they are made. Plain values, so that it travels to any worker; the key does not.

    Attributes:
        price: USD per million tokens in and out; None when it is not known, which counts as nothing.
        api_key_env: name of the variable with the key; None: no key.
    """

    base_url: str
    api_key_env: str | None
    price: tuple[float, float] | None
    limits: Limits
    call_timeout_s: float
    max_attempts: int
    give_up_after_s: float

    def usd(self, tokens_in: int, tokens_out: int) -> float:
        price_in, price_out = self.price or (0.0, 0.0)
        return (tokens_in * price_in + tokens_out * price_out) / 1e6


class CallFailed(Exception):
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
        self.flying: dict[str, tuple[Flight, asyncio.Task[Reply]]] = {}
        self.ratio = 0.3  # tokens per byte of a prompt, learned from what is billed
        self.fatal: BaseException | None = None
        self.commit: GroupCommit | None = None
        self.refreshing = asyncio.Lock()
        self._openai = _openai_client(endpoint)

    async def begin(self, round_number: int) -> None:
        """Called before the calls of a part: reads what other processes have added to the ledger meanwhile."""
        if self.commit is None:
            self.commit = GroupCommit(self.writer)
        async with self.refreshing:
            await asyncio.to_thread(self.index.refresh)
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
        if key in self.flying:  # the same request, asked for twice
            return replace(await asyncio.shield(self.flying[key][1]), calls=0)
        most_in = request.most_tokens_in()
        flight = Flight(key, request, purpose, most_in, self.endpoint.usd(most_in, request.max_tokens))
        task = asyncio.create_task(self._paid(flight))
        self.flying[key] = flight, task
        task.add_done_callback(lambda done: self.flying.pop(key, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Waits for what is in flight, sends nothing more, seals the segment, gives the leases back."""
        self.fatal = self.fatal or StepError("the run was stopped")
        tasks = [task for _, task in self.flying.values()]
        for flight, task in list(self.flying.values()):
            if not flight.in_doubt:  # it only waits for its turn
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.lease.close()
        if self.commit is not None:
            await self.commit.close()
        await self._openai.close()

    async def _paid(self, flight: Flight) -> Reply:
        try:
            reply = await self._attempts(flight)
        except IterselectError:
            if flight.in_doubt:  # it ends between two attempts: nothing is in flight and nothing more was paid
                await self._write(self._record(Kind.SPOILED, flight, 0.0, {"why": "stopped"}))
            raise
        self.ratio += 0.05 * (reply.tokens_in / max(1, flight.most_in) - self.ratio)
        return reply

    async def _attempts(self, flight: Flight) -> Reply:
        request, attempts = flight.request, 0
        likely = round(flight.most_in * self.ratio) + request.max_tokens
        while True:
            await self.breaker.wait()
            permit = await self.lease.acquire(likely, flight.most_usd)
            try:
                if self.fatal is not None:
                    raise self.fatal
                if not flight.in_doubt:
                    await self._write(self._intent(flight))
                    flight.in_doubt = True
                attempts += 1
                result = await self._attempt(request, permit, flight.most_usd)
            except BaseException:
                if not permit.released:
                    self.lease.release(permit, "failed")
                raise
            if isinstance(result, Reply):
                reply = replace(result, attempts=attempts)
                await self._write(self._done(flight, reply))
                return reply
            if isinstance(result, Dialect):
                self.dialect, attempts = result, attempts - 1
                continue
            spent = flight.most_usd if result.maybe_paid else 0.0  # closed: it waits for long and is not in flight
            await self._write(self._record(Kind.SPOILED, flight, spent, {"why": result.code}))
            flight.in_doubt = False
            if result.what == "run":
                self.fatal = run_error(result, self.endpoint.base_url, self.endpoint.api_key_env)
                raise self.fatal
            if result.what == "row" or attempts >= self.endpoint.max_attempts:
                raise CallFailed(result, attempts)
            if result.what == "again":
                self.breaker.failed(result, self.endpoint.base_url)
            await asyncio.sleep(backoff_s(attempts, result.retry_after_s))

    async def _attempt(self, request: Request, permit: Permit, most_usd: float) -> Reply | Failure | Dialect:
        """Sends once and releases the permit."""
        sent_as = self.dialect
        result = await self._send(wire_body(request, sent_as))
        if isinstance(result, Reply):
            self.breaker.ok()
            if not result.usage:
                likely = round(request.most_tokens_in() * self.ratio), round(len(result.text.encode()) * self.ratio)
                result = replace(result, tokens_in=likely[0], tokens_out=likely[1])
            result = replace(result, usd=self.endpoint.usd(result.tokens_in, result.tokens_out))
            self.lease.release(permit, "ok", tokens_in=result.tokens_in, tokens_out=result.tokens_out, usd=result.usd)
            return result
        outcome = "limited" if result.what == "limited" else "failed"
        spent = most_usd if result.maybe_paid else 0.0
        self.lease.release(permit, outcome, usd=spent, retry_after_s=result.retry_after_s or 0.0)
        if result.what != "again":
            self.breaker.ok()  # it answers, if only to refuse
        if result.code in ("http_400", "http_403", "http_422"):  # some models answer 403 where logprobs are asked for
            other = self.dialect if self.dialect != sent_as else self.dialect.after_refusal(result.message)
            return other or result
        return result

    async def _send(self, body: dict[str, Any]) -> Reply | Failure:
        import httpx2
        import openai

        try:
            async with asyncio.timeout(self.endpoint.call_timeout_s):
                response = await self._openai.post("/chat/completions", cast_to=httpx2.Response, body=body)
        except TimeoutError:
            return Failure("again", "timeout", f"no answer in {self.endpoint.call_timeout_s:g} s", maybe_paid=True)
        except openai.APIStatusError as error:
            return classify(error.status_code, error.body, error.response.headers)
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            never_sent = isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout))
            what = type(cause).__name__
            return Failure("again", "connection", what, maybe_paid=not never_sent)
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

    def _intent(self, flight: Flight) -> Record:
        return self._record(Kind.INTENT, flight, flight.most_usd, {"model": flight.request.model})

    def _done(self, flight: Flight, reply: Reply) -> Record:
        payload = {"asked": flight.request.model, "prompt": flight.request.prompt, **reply.payload()}
        return self._record(Kind.DONE, flight, reply.usd, payload, (reply.tokens_in, reply.tokens_out))


def _openai_client(endpoint: Endpoint) -> Any:
    import httpx2
    from openai import AsyncOpenAI

    key = "not-needed"
    if endpoint.api_key_env is not None:
        key = os.environ.get(endpoint.api_key_env, "")
        if not key:
            raise EnvironmentProblem(
                f"the environment variable {endpoint.api_key_env} is not set",
                why="it names the key of the endpoint; on a cluster it must be set where the calls are made",
                fix=f"export {endpoint.api_key_env}=..., or set api_key_env: null for a server that needs no key",
                code="E362",
            )
    room = endpoint.limits.concurrency
    return AsyncOpenAI(
        api_key=key,
        base_url=endpoint.base_url,
        max_retries=0,
        timeout=endpoint.call_timeout_s,
        http_client=httpx2.AsyncClient(
            limits=httpx2.Limits(max_connections=room, max_keepalive_connections=room),
            timeout=endpoint.call_timeout_s,
            follow_redirects=False,  # a redirect would carry the key to another host
        ),
    )
