"""The stages that make paid calls, on the run's limits and ledger: what they share, the generator and the judge.

A stage runs its calls on an event loop in a thread of its own, so several parts can be in work at a time: while one
waits for its last replies the next keeps the endpoint busy. A call that fails makes an error row; only what concerns
every call (no money, no key, a dead endpoint, a full disk) ends the part, after what is in flight has been recorded.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from engine.artifacts import Step
from engine.config_endpoint import (
    AskingConfig,
    JudgingConfig,
    OpenAIGeneratorConfig,
    OpenAIJudgeConfig,
)
from engine.judging.canaries import canaries_for
from engine.judging.pairwise import COST_COLUMNS, JUDGED_COLUMNS, Pairwise, cost_columns
from engine.judging.prompts import Prompt
from engine.models.threads import LoopThread
from engine.paid.batch_files import BatchClient, Missing, NotAnswered
from engine.paid.client import PaidClient
from engine.paid.endpoint import Endpoint
from engine.paid.replies import Reply, RowFailed
from engine.paid.requests import Request
from engine.runtime import Group, PartWorker, StageSpec
from engine.schema import ANSWER, ANSWER_COLUMNS, ERROR, ID, MESSAGES, TOOLS, id_words
from engine.store import Store

PAID_ANSWER_COLUMNS = [*ANSWER_COLUMNS, pa.field("finish", pa.string()), *COST_COLUMNS]


@dataclass(frozen=True, kw_only=True)
class Calls:
    """What a member needs to make calls.

    Attributes:
        endpoint: where they go.
        ledger: folder of paid calls.
        run: the run's name in the ledger.
        limiter: group of one, the run's Limiter; None: no calls, the missing ones are collected for a batch.
        asks: request fields that are the same in every call: model, sampling, form of the reply.
    """

    endpoint: Endpoint
    ledger: Store
    run: str
    limiter: Group | None
    asks: Mapping[str, Any]

    def client(self, member: str) -> PaidClient | BatchClient:
        limits = self.limiter
        if limits is None:
            return BatchClient(self.endpoint.base_url, self.ledger)

        def limiter(method: str, *args: Any) -> Any:
            return limits.call(method, *args)[0]

        return PaidClient(self.endpoint, self.ledger, self.run, limiter, member)


class PaidStage:
    """What the stages share: rows in, calls, rows out.

    Args:
        calls: how calls are made.
        member: name of this process among those of the stage.
        retry: generation of `--retry-failed`; above 0 failed rows are asked anew.
    """

    columns_in: Sequence[str] = ()
    columns_out: Sequence[pa.Field] = ()

    def __init__(self, calls: Calls, member: str, retry: int = 0) -> None:
        self.calls, self.retry = calls, retry
        self.starting = asyncio.Lock()
        self.thread = LoopThread()
        self.client = self.thread.run(self._make_client(member))

    async def _make_client(self, member: str) -> PaidClient | BatchClient:
        return self.calls.client(member)  # on the loop that it will live on

    def __call__(self, table: pa.Table, round_number: int = 0) -> pa.Table:
        return self.thread.run(self._part(table, round_number))

    async def _part(self, table: pa.Table, round_number: int) -> pa.Table:
        await self.client.begin(round_number)
        rows = table.to_pylist()
        outcomes = await asyncio.gather(*map(self._in_turn, self.work(rows)), return_exceptions=True)
        return table_of(outcomes, self.columns_out)

    async def _in_turn(self, row: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        """Starts a row; one in each turn of the loop, or a new part's prompts would keep replies waiting."""
        async with self.starting:
            await asyncio.sleep(0)
        return await row

    def work(self, rows: Sequence[dict[str, Any]]) -> list[Coroutine[Any, Any, dict[str, Any]]]:
        """One coroutine per row."""
        raise NotImplementedError

    async def ask(
        self, messages: Sequence[Mapping[str, Any]], purpose: str, usable: Callable[[Reply], bool], **fields: Any
    ) -> Reply:
        """One call. When failed rows are to be retried and the reply on record is of no use, it is asked anew."""
        request = Request(messages=messages, **{**self.calls.asks, **fields})
        reply = await self.client.call(request, purpose)
        for generation in range(1, self.retry + 1):
            if usable(reply):
                break
            reply = await self.client.call(replace(request, retry=generation), purpose)
        return reply

    def missing(self, table: pa.Table, round_number: int) -> list[Missing]:
        """The calls of a part that are not in the ledger; only where calls are collected."""
        assert isinstance(self.client, BatchClient)
        self.client.missing = {}
        self(table.select(list(self.columns_in)), round_number)
        return list(self.client.missing.values())

    def close(self) -> None:
        self.thread.run(self.client.close())
        self.thread.close()


class OpenAIGenerator(PaidStage):
    """Stage: the endpoint's answer to each conversation.

    Args:
        system: system message for rows that have none.
    """

    columns_in = (MESSAGES, TOOLS)
    columns_out = PAID_ANSWER_COLUMNS

    def __init__(self, calls: Calls, member: str, retry: int, system: str | None) -> None:
        super().__init__(calls, member, retry)
        self.system = system

    def work(self, rows: Sequence[dict[str, Any]]) -> list[Coroutine[Any, Any, dict[str, Any]]]:
        return [self._answer(row) for row in rows]

    async def _answer(self, row: dict[str, Any]) -> dict[str, Any]:
        messages = json.loads(row[MESSAGES])[:-1]
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        tools = json.loads(row[TOOLS]) if row[TOOLS] else ()
        reply = await self.ask(messages, "answer", lambda reply: bool(reply.text), tools=tools)
        found = {"finish": reply.finish, **cost_columns([reply])}
        if not reply.text:
            return {ERROR: f"empty answer, finish reason {reply.finish}", **found}
        return {ANSWER: reply.text, **found}


class OpenAIJudge(PaidStage):
    """Stage: verdicts on the model's answers.

    Args:
        prompt: of kind pairwise.
        orders, decisive, suspects: as engine.judging.pairwise.Pairwise.
        canaries: share of rows that bring a canary along.
        seed: of the draw of canaries.
    """

    columns_in = Pairwise.columns_in
    columns_out = JUDGED_COLUMNS

    def __init__(
        self, calls: Calls, member: str, retry: int, *, prompt: Prompt, orders: str, decisive: float, suspects: str,
        canaries: float, seed: int,
    ) -> None:  # fmt: skip
        super().__init__(calls, member, retry)
        self.pairwise = Pairwise(prompt, orders, decisive, suspects)
        self.canaries, self.seed = canaries, seed

    def work(self, rows: Sequence[dict[str, Any]]) -> list[Coroutine[Any, Any, dict[str, Any]]]:
        canaries = canaries_for(id_words([row[ID] for row in rows]), self.canaries, self.seed) if rows else []
        return [self.pairwise.judge(row, canary, self._ask_judge) for row, canary in zip(rows, canaries, strict=True)]

    async def _ask_judge(self, messages: Sequence[Mapping[str, str]], purpose: str, about: str) -> Reply:
        return await self.ask(messages, purpose, self.pairwise.readable, about=about)


def table_of(outcomes: Sequence[dict[str, Any] | BaseException], columns: Sequence[pa.Field]) -> pa.Table:
    """A stage's result from what became of its rows; the columns of a row that failed say why and what it cost.

    Raises:
        the first exception that concerns more than a row.
    """
    results = []
    for outcome in outcomes:
        if isinstance(outcome, NotAnswered):
            outcome = {ERROR: str(outcome)}
        elif isinstance(outcome, RowFailed):
            outcome = {ERROR: str(outcome), **cost_columns(outcome.replies)}
        elif isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return pa.Table.from_pylist(results, schema=pa.schema(list(columns)))


def generator_asks(config: OpenAIGeneratorConfig | AskingConfig | OpenAIJudgeConfig) -> dict[str, Any]:
    """Request fields of a generator's calls; those that ask a prompt have them too."""
    return {
        "model": config.model,
        "temperature": config.temperature,
        "seed": config.sampling_seed,
        "extra": config.extra_body,
        "max_tokens": config.max_tokens,
    }


def prompt_asks(config: AskingConfig | OpenAIJudgeConfig, prompt: Prompt) -> dict[str, Any]:
    """Request fields of calls that ask a prompt."""
    return {
        **generator_asks(config),
        "schema": prompt.schema,
        "structured": config.structured,
        "prompt": f"{prompt.spec} {prompt.sha}",
    }


def judge_asks(config: OpenAIJudgeConfig, prompt: Prompt) -> dict[str, Any]:
    """Request fields of a judge's calls, with probabilities where the reply is one verdict."""
    return {**prompt_asks(config, prompt), "logprobs": config.logprobs and prompt.parser != "score_pair"}


def judge_settings(config: JudgingConfig, prompt: Prompt, seed: int) -> dict[str, Any]:
    """Arguments of a judge's stage besides its calls."""
    names = ("orders", "decisive", "suspects", "canaries")
    return {"prompt": prompt, "seed": seed, **{name: getattr(config, name) for name in names}}


class PaidWorker(PartWorker):
    """A member that makes paid calls. Its calls count towards the round whose step it works for."""

    def __init__(self, stage: StageSpec, number: int) -> None:
        numbered = {**stage.kwargs, "member": f"{stage.name}-{number}"}
        super().__init__(replace(stage, kwargs=numbered))

    def compute(self, table: pa.Table, target: Step) -> pa.Table:
        assert isinstance(self.call, PaidStage)
        return self.call(table, round_of(target))

    def close(self) -> None:
        assert isinstance(self.call, PaidStage)
        self.call.close()


def round_of(step: Step) -> int:
    """Number of the round that a step belongs to, from 1; 0 outside of rounds."""
    found = re.match(r"rounds/(\d+)/", step.name)
    return int(found[1]) + 1 if found else 0
