"""Measures a judge on pairs with known verdicts: asks it in both orders, some pairs several times, through the ledger.

What the numbers mean is engine.judging.check's business; this file only asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.config_endpoint import OpenAIJudgeConfig
from engine.errors import ConfigError
from engine.judging.check import Totals, check_report
from engine.judging.gold import Pair
from engine.judging.pairwise import FIRST, SECOND, OrderVerdict, Pairwise, Unreadable, together
from engine.judging.prompts import load_prompt, render
from engine.paid.client import CallFailed, PaidClient
from engine.paid.estimate import ASKED_AGAIN, CASES, TOKENS_PER_BYTE, VERDICT_TOKENS, text_bytes
from engine.paid.ledger import LedgerIndex
from engine.paid.limits import Limiter
from engine.paid.prices import price_of, usd_of
from engine.paid.replies import Reply
from engine.paid.requests import Request
from engine.paid.service import check_money, endpoint_of
from engine.paid.stages import judge_asks
from engine.store import Store

RUN = "c4ec" * 4  # the name of all checks in the ledger
REPEATED_PAIRS = 100  # how many pairs are asked several times for the self-consistency

Asked = tuple[int, str, int]  # number of the pair, order, and which repetition


def plan_check(pairs: Sequence[Pair], config: OpenAIJudgeConfig, ledger: Store, repeats: int) -> dict[str, Any]:
    """What `check_judge` would have to ask and pay; asks nobody.

    Returns:
        `calls` that the ledger does not have, and `usd` by case (None without a price).

    Raises:
        ConfigError: E265, the judge is set to batches.
    """
    check_online(config)
    prompt = load_prompt(config.prompt, "pairwise")
    asks, index = judge_asks(config, prompt), LedgerIndex(ledger)
    index.refresh()
    missing: dict[str, int] = {}
    for number, order, again in _asked(pairs, repeats):
        request = Request(messages=render(prompt, _fields(pairs[number], order)), **{**asks, "retry": again})
        key = request.key(config.base_url)
        if index.done(key) is None:
            missing[key] = text_bytes(request)
    price, usd = price_of(config), None
    if price is not None:
        tokens_out = {**VERDICT_TOKENS, "high": config.max_tokens}
        usd = {
            case: (1 + ASKED_AGAIN[case])
            * sum(usd_of(price, size * TOKENS_PER_BYTE[case], tokens_out[case]) for size in missing.values())
            for case in CASES
        }
    return {"calls": len(missing), "usd": usd}


def check_judge(
    pairs: Sequence[Pair],
    config: OpenAIJudgeConfig,
    ledger: Store,
    repeats: int,
    max_usd: float | None,
    told: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Asks the judge about every pair and reports how far it agrees.

    Args:
        pairs: with known verdicts.
        config: of the judge.
        ledger: calls made before are taken from here, new ones are recorded here.
        repeats: how often the first order of the first 100 pairs is asked in all; 1: once, no self-consistency.
        max_usd: most that all checks recorded in this ledger may spend together.
        told: called for each verdict, of which there are two a pair and the repetitions.

    Returns:
        `engine.judging.check.check_report`, and `now`: calls and USD (None without a price) of this very check.

    Raises:
        ConfigError: E260, there is a cap and nobody knows the price; E265, the judge is set to batches.
        BudgetReached, EnvironmentProblem: as `PaidClient.call`; what was answered is in the ledger.
    """
    check_online(config)
    check_money((max_usd,), config)
    return asyncio.run(_check(pairs, config, ledger, repeats, Limiter(ledger, RUN, max_usd, None), told))


def check_online(config: OpenAIJudgeConfig) -> None:
    """A check is made online; whoever has set batches expects another price."""
    if config.mode == "batch":
        fix = "add mode=online, which costs the full price"
        raise ConfigError("a check cannot be made in batches", fix=fix, code="E265")


async def _check(
    pairs: Sequence[Pair],
    config: OpenAIJudgeConfig,
    ledger: Store,
    repeats: int,
    limiter: Limiter,
    told: Callable[[], None],
) -> dict[str, Any]:
    prompt = load_prompt(config.prompt, "pairwise")
    asks = judge_asks(config, prompt)
    pairwise = Pairwise(prompt, "both", config.decisive, "judge")
    before = _spent(ledger)

    def call(method: str, *args: Any) -> Any:
        return getattr(limiter, method)(*args)

    client = PaidClient(endpoint_of(config), ledger, RUN, call, "check-0")

    async def one(pair: Pair, order: str, again: int) -> OrderVerdict | str:
        async def ask(messages: Sequence[Mapping[str, str]], purpose: str, about: str) -> Reply:
            return await client.call(replace(Request(messages=messages, **asks), retry=again), purpose)

        try:
            return await pairwise.ask_order(_fields(pair, order), order, "check", ask)
        except (CallFailed, Unreadable) as error:
            return str(error)
        finally:
            told()

    asked = _asked(pairs, repeats)
    try:
        await client.begin(0)
        found = await together(*(one(pairs[number], order, again) for number, order, again in asked))
    finally:
        await client.close()
    after, price = _spent(ledger), price_of(config)
    report = _report(pairs, dict(zip(asked, found, strict=True)), price is not None)
    usd = None if price is None else round(after["usd"] - before["usd"], 9)
    return {**report, "now": {"calls": after["calls"] - before["calls"], "usd": usd}}


def _asked(pairs: Sequence[Pair], repeats: int) -> list[Asked]:
    both = [(number, order, 0) for number in range(len(pairs)) for order in (FIRST, SECOND)]
    return both + [(n, FIRST, again) for n in range(min(len(pairs), REPEATED_PAIRS)) for again in range(1, repeats)]


def _fields(pair: Pair, order: str) -> dict[str, Any]:
    a, b = (pair.answer_a, pair.answer_b) if order == FIRST else (pair.answer_b, pair.answer_a)
    return {"conversation": pair.conversation, "answer_a": a, "answer_b": b}


def _report(pairs: Sequence[Pair], found: Mapping[Asked, OrderVerdict | str], priced: bool) -> dict[str, Any]:
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
        usd=sum(reply.usd for reply in replies) if priced else None,
    )
    several = [labels if len(labels) > 1 else [] for labels in repeats]
    return check_report(pairs, _labels(orders[FIRST]), _labels(orders[SECOND]), errors, several, totals)


def _labels(verdicts: Sequence[OrderVerdict | str]) -> list[str | None]:
    return [one.label if isinstance(one, OrderVerdict) else None for one in verdicts]


def _spent(ledger: Store) -> dict[str, Any]:
    index = LedgerIndex(ledger)
    index.refresh()
    totals = index.totals(RUN)
    return {"calls": totals.calls, "usd": totals.cost_usd}
