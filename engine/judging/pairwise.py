"""Comparing two answers: what is asked about a row, and what the replies mean together.

It talks to a judge model through one function, so a paid endpoint and a local engine share every rule: the two orders,
the re-ask of an unreadable reply, token probabilities, canaries and suspects. Order "first" shows the reference as A,
"second" shows the model's answer as A. It knows nothing of networks, money or rounds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from engine.judging import agreement
from engine.judging.canaries import Canary
from engine.judging.defence import encode, suspect
from engine.judging.prompts import Prompt, render
from engine.judging.verdicts import parse_score_pair, parse_verdict, verdict_probabilities
from engine.paid.replies import Reply, RowFailed
from engine.schema import (
    ANSWER,
    HARD,
    ID,
    MESSAGES,
    RESPONSE,
    TOOLS,
    VERDICT,
    VERDICT_COLUMNS,
    canonical_json,
    id_words,
)

FIRST, SECOND = "first", "second"

COST_COLUMNS = [
    pa.field("tokens_in", pa.int64()),
    pa.field("tokens_out", pa.int64()),
    pa.field("usd", pa.float64()),  # price of the replies, whenever they were paid
]
JUDGED_COLUMNS = [
    *VERDICT_COLUMNS,
    pa.field("p_reference", pa.float32()),  # mean over the orders of the probability that the reference wins
    pa.field("p_tie", pa.float32()),
    pa.field(FIRST, pa.string()),  # "A" | "B" | "tie" as replied when the reference was A; null: not asked
    pa.field(SECOND, pa.string()),  # the same when the model's answer was A
    pa.field("canary", pa.bool_()),  # whether the canary that came along was judged right; null: none came
    pa.field("suspect", pa.string()),  # why the text looks like it talks to the judge; null: it does not
    *COST_COLUMNS,
]

# (messages, purpose, what tells this call apart from others that ask the same) -> reply
Ask = Callable[[Sequence[Mapping[str, str]], str, str], Awaitable[Reply]]


class Unreadable(RowFailed):
    """The judge answered, and not with a verdict."""


@dataclass(frozen=True)
class OrderVerdict:
    """One reply, read.

    Attributes:
        label: "A", "B" or "tie", as shown.
        winner: "reference", "answer" or "tie".
        p: probabilities of the three winners, None without token probabilities.
        scores: of (reference, answer), for prompts that ask for scores.
        replies: what it took.
    """

    label: str
    winner: str
    p: Mapping[str, float] | None
    scores: tuple[float, float] | None
    replies: Sequence[Reply]


class Pairwise:
    """Judges rows one at a time; any number of them at once.

    Args:
        prompt: of kind pairwise.
        orders: "both", "alternate" or "decisive".
        decisive: probability of the first order's verdict from which the second is not asked.
        suspects: "skip" or "judge" rows whose text talks to the judge.
    """

    columns_in = (ID, MESSAGES, TOOLS, RESPONSE, ANSWER)

    def __init__(self, prompt: Prompt, orders: str, decisive: float, suspects: str) -> None:
        self.prompt, self.orders, self.decisive, self.suspects = prompt, orders, decisive, suspects

    async def judge(self, row: Mapping[str, Any], canary: Canary | None, ask: Ask) -> dict[str, Any]:
        """The row's columns: JUDGED_COLUMNS, without `error`.

        Raises:
            Unreadable: no verdict could be read, or there is nothing to judge.
            whatever `ask` raises.
        """
        if not (row[ANSWER] or "").strip():
            raise Unreadable("no answer to judge")
        why = suspicion(row)
        asked = why is None or self.suspects == "judge"
        # Together, so that a batch file holds the canaries of its rows.
        verdicts, (right, replies) = await together(
            self._orders(row, ask) if asked else _nothing({}),
            self._canary(canary, row[ID], ask) if canary is not None else _nothing((None, [])),
            paid=lambda found: found[1] if isinstance(found, tuple) else [],
        )
        replies = [*replies, *(reply for verdict in verdicts.values() for reply in verdict.replies)]
        result = combined(verdicts) if verdicts else {}
        return {"suspect": why, "canary": right, **result, **cost_columns(replies)}

    async def _orders(self, row: Mapping[str, Any], ask: Ask) -> dict[str, OrderVerdict]:
        def one(order: str) -> Awaitable[OrderVerdict]:
            return self.ask_order(row_fields(row, order), order, "judge", ask)

        if self.orders == "both":
            first, second = await together(one(FIRST), one(SECOND), paid=lambda verdict: verdict.replies)
            return {FIRST: first, SECOND: second}
        starts = FIRST if id_words([row[ID]])[0] % 2 == 0 else SECOND
        verdicts = {starts: await one(starts)}
        if self.orders == "decisive" and not self._is_decisive(verdicts[starts]):
            other = SECOND if starts == FIRST else FIRST
            verdicts[other] = await one(other)
        return verdicts

    def _is_decisive(self, verdict: OrderVerdict) -> bool:
        return verdict.p is not None and verdict.p[verdict.winner] >= self.decisive

    async def ask_order(
        self, fields: Mapping[str, Any], order: str, purpose: str, ask: Ask, about: str = ""
    ) -> OrderVerdict:
        """One comparison in one order.

        Raises:
            Unreadable: two replies without a verdict, or the judge would not answer.
        """
        messages = render(self.prompt, fields)
        reply = await ask(messages, purpose, about)
        if reply.finish in ("content_filter", "refusal", "refused"):
            raise Unreadable(f"{reply.finish}: the judge would not answer", [reply])
        if not reply.text and reply.finish == "length":  # a reasoning model spends its tokens unseen
            raise Unreadable("length: no room for a verdict, raise max_tokens", [reply])
        verdict = self._read(reply, order, [reply])
        again = reply
        if verdict is None:  # one re-ask: the reply is shown back, with the form that is wanted
            again = await ask([*messages, *reminder(reply.text, self._wanted())], purpose, about)
            verdict = self._read(again, order, [reply, again])
        if verdict is None:
            raise Unreadable("unreadable: no verdict in two replies of the judge", [reply, again])
        return verdict

    def _wanted(self) -> str:
        if self.prompt.parser == "score_pair":
            return "two numbers from 1 to 10, separated by a space"
        return " or ".join(json.dumps({"verdict": label}) for label in self.prompt.labels)

    def readable(self, reply: Reply) -> bool:
        return self._read(reply, FIRST, [reply]) is not None

    def _read(self, reply: Reply, order: str, replies: Sequence[Reply]) -> OrderVerdict | None:
        winner_of = {"A": "reference", "B": "answer"} if order == FIRST else {"A": "answer", "B": "reference"}
        winner_of["tie"] = "tie"
        if self.prompt.parser == "score_pair":
            pair = parse_score_pair(reply.text)
            if pair is None:
                return None
            label = "tie" if pair[0] == pair[1] else "A" if pair[0] > pair[1] else "B"
            scores = pair if order == FIRST else (pair[1], pair[0])
            return OrderVerdict(label, winner_of[label], None, scores, replies)
        label = parse_verdict(reply.text, self.prompt.labels)
        if label is None:
            return None
        shown = verdict_probabilities(reply.tokens, self.prompt.labels) if reply.tokens else None
        p = None if shown is None else {winner: shown.get(name, 0.0) for name, winner in winner_of.items()}
        return OrderVerdict(label, winner_of[label], p, None, replies)

    async def _canary(self, canary: Canary, about: str, ask: Ask) -> tuple[bool | None, Sequence[Reply]]:
        shown = (canary.good, canary.bad) if canary.good_first else (canary.bad, canary.good)
        prompt = [{"role": "user", "content": canary.prompt}]
        fields = {"conversation": prompt, "answer_a": shown[0], "answer_b": shown[1]}
        try:
            verdict = await self.ask_order(fields, FIRST, "canary", ask, about)
        except Unreadable as error:
            return False, error.replies
        except RowFailed as error:  # the call failed: that says nothing about the judge
            return None, error.replies
        return verdict.label == ("A" if canary.good_first else "B"), verdict.replies


async def together(*work: Awaitable[Any], paid: Callable[[Any], Sequence[Reply]] = lambda result: ()) -> list[Any]:
    """Results of all of it; when one fails the others are finished first, so that no paid call is left behind.

    Args:
        paid: the replies behind a result, which a failure of another takes along.
    """
    results = await asyncio.gather(*work, return_exceptions=True)
    failures: list[RowFailed] = []
    for result in results:
        if isinstance(result, RowFailed):
            failures.append(result)
        elif isinstance(result, BaseException):
            raise result
    if failures:
        replies = [one.replies if isinstance(one, RowFailed) else paid(one) for one in results]
        raise RowFailed(str(failures[0]), [reply for some in replies for reply in some])
    return results


async def _nothing(value: Any) -> Any:
    return value


def reminder(text: str, wanted: str) -> list[dict[str, str]]:
    """The two messages of a re-ask: the reply that could not be read, and the form that is wanted."""
    return [
        {"role": "assistant", "content": encode(text[:2000])},  # it may quote an answer that plays with turns
        {"role": "user", "content": f"That reply cannot be read. Reply with only {wanted}."},
    ]


def row_fields(row: Mapping[str, Any], order: str) -> dict[str, Any]:
    """The fields of a pairwise prompt, from a row with `messages`, `tools`, `response` and `answer`."""
    pair = (row[RESPONSE], row[ANSWER]) if order == FIRST else (row[ANSWER], row[RESPONSE])
    return {"conversation": conversation(row), "answer_a": pair[0], "answer_b": pair[1]}


def conversation(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages before the answer; tool definitions, if any, as a first entry of their own."""
    turns = json.loads(row[MESSAGES])[:-1]
    return [{"role": "tools", "content": json.loads(row[TOOLS])}, *turns] if row[TOOLS] else turns


def suspicion(row: Mapping[str, Any]) -> str | None:
    """Why a row's text looks like it talks to the judge, None when it does not."""
    turns = json.loads(row[MESSAGES])[:-1]
    texts = [str(turn.get("content") or "") for turn in turns]
    texts += [row[TOOLS], *(canonical_json(turn["tool_calls"]) for turn in turns if turn.get("tool_calls"))]
    found = next((why for text in [*texts, row[RESPONSE]] if (why := suspect(text))), None)
    if found is None:
        found = suspect(row.get(ANSWER) or "")
        found = None if found == "repetition" else found  # weak models loop: that is what makes a row hard
    return found


def combined(verdicts: Mapping[str, OrderVerdict]) -> dict[str, Any]:
    """One verdict from one or two orders.

    The rule is `engine.judging.agreement.combined`; a verdict that is "inconsistent" changes with the order.
    """
    first, second = (verdicts[order].label if order in verdicts else None for order in (FIRST, SECOND))
    said = agreement.combined(first, second) or ""
    verdict = {"A": "reference", "B": "answer"}.get(said, said)
    p = [verdict.p for verdict in verdicts.values()]
    scores = [verdict.scores for verdict in verdicts.values()]
    return {
        VERDICT: verdict,
        HARD: {"reference": True, "answer": False}.get(verdict),
        "p_reference": _mean([None if one is None else one["reference"] for one in p]),
        "p_tie": _mean([None if one is None else one["tie"] for one in p]),
        "score_reference": _mean([None if pair is None else pair[0] for pair in scores]),
        "score_answer": _mean([None if pair is None else pair[1] for pair in scores]),
        FIRST: first,
        SECOND: second,
    }


def cost_columns(replies: Sequence[Reply]) -> dict[str, Any]:
    """What the replies cost, whenever they were paid: a rerun out of the ledger writes the same bytes."""
    return {
        "tokens_in": sum(reply.tokens_in for reply in replies),
        "tokens_out": sum(reply.tokens_out for reply in replies),
        "usd": sum(reply.usd for reply in replies),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """None when any of them is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
