"""Stages that ask one prompt about each row and read the replies: a rating, a checklist, whatever a subclass reads.

What they share: rows whose text talks to the judge are not asked about, an unreadable reply is asked about once more,
and a row without a readable reply is an error row, never a value. It knows nothing of recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.judging.pairwise import reminder, suspicion
from engine.judging.prompts import Prompt, render
from engine.paid.replies import Reply, RowFailed
from engine.paid.stages import Calls, PaidStage
from engine.schema import MESSAGES, RESPONSE, TOOLS

REFUSALS = ("content_filter", "refusal", "refused")


@dataclass(frozen=True)
class Reading:
    """What was read, and the replies that it took."""

    value: Any
    replies: Sequence[Reply]


class PromptStage(PaidStage):
    """Base of the stages. A subclass has `about`, `read`, `wanted` and its columns.

    Args:
        prompt: of the kind that the subclass can read.
        suspects: "skip" rows whose text talks to the judge (error rows), or "judge" them like any other.
    """

    columns_in = (MESSAGES, TOOLS, RESPONSE)
    purpose = "rating"  # how the ledger names its calls
    sought = "score"  # what an unreadable reply lacks

    def __init__(self, calls: Calls, member: str, retry: int, *, prompt: Prompt, suspects: str) -> None:
        super().__init__(calls, member, retry)
        self.prompt, self.suspects = prompt, suspects

    def work(self, rows: Sequence[dict[str, Any]]) -> list[Coroutine[Any, Any, dict[str, Any]]]:
        return [self._row(row) for row in rows]

    async def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        why = self.suspicion_of(row) if self.suspects == "skip" else None
        if why is not None:
            raise RowFailed(f"suspect: its text talks to the judge ({why})")
        return await self.about(row)

    def suspicion_of(self, row: Mapping[str, Any]) -> str | None:
        """Why the text that would be shown looks like it talks to the judge, None when it does not."""
        return suspicion(row)

    async def about(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row's columns but `error`, from one or several readings.

        Raises:
            RowFailed: the row gets an error instead.
        """
        raise NotImplementedError

    def read(self, reply: Reply) -> Any | None:
        """What a reply says; None when it cannot be read."""
        raise NotImplementedError

    @property
    def wanted(self) -> str:
        """The form of a reply, as a re-ask names it."""
        raise NotImplementedError

    async def reading(self, fields: Mapping[str, Any], read: Callable[[Reply], Any | None] | None = None) -> Reading:
        """What the judge says about the prompt's fields.

        Args:
            read: instead of the stage's own `read`, where what can be read depends on the row.

        Raises:
            RowFailed: it would not answer, or two replies could not be read.
        """
        messages = render(self.prompt, fields)
        read = read or self.read
        first = await self._ask(messages, read)
        if first.finish in REFUSALS:
            raise RowFailed(f"{first.finish}: the judge would not answer", [first])
        value = read(first)
        if value is not None:
            return Reading(value, [first])
        second = await self._ask([*messages, *reminder(first.text, self.wanted)], read)
        value = read(second)
        if value is None:
            raise RowFailed(f"unreadable: no {self.sought} in two replies of the judge", [first, second])
        return Reading(value, [first, second])

    async def _ask(self, messages: Sequence[Mapping[str, str]], read: Callable[[Reply], Any | None]) -> Reply:
        return await self.ask(messages, self.purpose, lambda reply: read(reply) is not None)
