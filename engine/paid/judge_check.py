"""Measures a judge on pairs with known verdicts: asks it in both orders, some pairs several times, through the ledger.

What the numbers mean is engine.judging.check's business; this file only asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.config_endpoint import OpenAIJudgeConfig
from engine.judging.check import Totals, check_report
from engine.judging.gold import Pair
from engine.judging.pairwise import FIRST, SECOND, OrderVerdict, Pairwise, Unreadable, together
from engine.judging.prompts import load_prompt
from engine.paid.client import CallFailed, PaidClient
from engine.paid.ledger import LedgerIndex
from engine.paid.limits import Limiter
from engine.paid.replies import Reply
from engine.paid.requests import Request
from engine.paid.service import endpoint_of
from engine.paid.stages import LoopThread, judge_asks
from engine.store import Store

RUN = "c4ec" * 4  # the name of all checks in the ledger
REPEATED_PAIRS = 100  # how many pairs are asked several times for the self-consistency


def check_judge(
    pairs: Sequence[Pair], config: OpenAIJudgeConfig, ledger: Store, repeats: int, max_usd: float | None
) -> dict[str, Any]:
    """Asks the judge about every pair and reports how far it agrees.

    Args:
        pairs: with known verdicts.
        config: of the judge.
        ledger: calls made before are taken from here, new ones are recorded here.
        repeats: how often the first order of the first 100 pairs is asked in all; 1: once, no self-consistency.
        max_usd: most that all checks recorded in this ledger may spend together.

    Returns:
        `engine.judging.check.check_report`, and `now`: calls and USD of this very check.

    Raises:
        BudgetReached, EnvironmentProblem: as `PaidClient.call`; what was answered is in the ledger.
    """
    limiter = Limiter(ledger, RUN, max_usd, None)
    thread = LoopThread()
    try:
        return thread.run(_check(pairs, config, ledger, repeats, limiter))
    finally:
        thread.close()


async def _check(
    pairs: Sequence[Pair], config: OpenAIJudgeConfig, ledger: Store, repeats: int, limiter: Limiter
) -> dict[str, Any]:
    prompt = load_prompt(config.prompt, "pairwise")
    asks = judge_asks(config, prompt)
    pairwise = Pairwise(prompt, "both", config.decisive, "judge")

    def call(method: str, *args: Any) -> Any:
        return getattr(limiter, method)(*args)

    client = PaidClient(endpoint_of(config), ledger, RUN, call, "check-0")
    before = _spent(ledger)
    try:
        await client.begin(0)

        async def one(pair: Pair, order: str, again: int) -> OrderVerdict | str:
            async def ask(messages: Sequence[Mapping[str, str]], purpose: str, about: str) -> Reply:
                return await client.call(replace(Request(messages=messages, **asks), retry=again), purpose)

            answers = (pair.answer_a, pair.answer_b) if order == FIRST else (pair.answer_b, pair.answer_a)
            fields = {"conversation": pair.conversation, "answer_a": answers[0], "answer_b": answers[1]}
            try:
                return await pairwise.ask_order(fields, order, "check", ask)
            except (CallFailed, Unreadable) as error:
                return str(error)

        asked = [(number, order, 0) for number in range(len(pairs)) for order in (FIRST, SECOND)]
        asked += [(n, FIRST, again) for n in range(min(len(pairs), REPEATED_PAIRS)) for again in range(1, repeats)]
        found = await together(*(one(pairs[number], order, again) for number, order, again in asked))
    finally:
        await client.close()
    after = _spent(ledger)
    report = _report(pairs, dict(zip(asked, found, strict=True)))
    return {**report, "now": {name: round(after[name] - before[name], 9) for name in after}}


def _report(pairs: Sequence[Pair], found: Mapping[tuple[int, str, int], OrderVerdict | str]) -> dict[str, Any]:
    orders = {order: [found[number, order, 0] for number in range(len(pairs))] for order in (FIRST, SECOND)}
    repeats: list[list[str]] = [[] for _ in pairs]
    for (number, order, _), one in found.items():
        if order == FIRST and isinstance(one, OrderVerdict):
            repeats[number].append(one.label)
    errors = [
        next((one for one in both if isinstance(one, str)), None)
        for both in zip(orders[FIRST], orders[SECOND], strict=True)
    ]
    replies = [reply for one in found.values() if isinstance(one, OrderVerdict) for reply in one.replies]
    totals = Totals(
        calls=len(replies),
        tokens_in=sum(reply.tokens_in for reply in replies),
        tokens_out=sum(reply.tokens_out for reply in replies),
        usd=sum(reply.usd for reply in replies),
    )
    several = [labels if len(labels) > 1 else [] for labels in repeats]
    return check_report(pairs, _labels(orders[FIRST]), _labels(orders[SECOND]), errors, several, totals)


def _labels(verdicts: Sequence[OrderVerdict | str]) -> list[str | None]:
    return [one.label if isinstance(one, OrderVerdict) else None for one in verdicts]


def _spent(ledger: Store) -> dict[str, float]:
    index = LedgerIndex(ledger)
    index.refresh()
    totals = index.totals(RUN)
    return {"calls": totals.calls, "usd": totals.cost_usd}
