"""Whether rows meet a list of rules, as a judge model says or as recorded: one pass over the pool, the step `rules`.

The score is 1 or 0, for the overall answer; the rules that a row does not meet are carried along. Several turns: the
last response, given everything before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from engine.config import RecorderConfig
from engine.config_endpoint import OpenAICheckerConfig
from engine.paid.passes import PaidPass
from engine.paid.rules import FAILED_RULES, PASSED, rules_pass
from engine.recipes.base import Context
from engine.scoring.base import Measured, Score
from engine.scoring.recorded import recorded_numbers

CheckerConfig = Annotated[OpenAICheckerConfig | RecorderConfig, Field(discriminator="kind")]


class Rules(Measured):
    """1 for rows that pass a check of rules, 0 for others."""

    kind: Literal["rules"] = "rules"
    checker: CheckerConfig = Field(description="Who checks; a recorded answer is a number from 0 (no) to 1 (yes)")

    @property
    def carries(self) -> Sequence[str]:
        return (FAILED_RULES,) if isinstance(self.checker, OpenAICheckerConfig) else ()

    @property
    def passes(self) -> Sequence[PaidPass]:
        return (rules_pass(self.checker),) if isinstance(self.checker, OpenAICheckerConfig) else ()

    def measure(self, context: Context) -> Score:
        if isinstance(self.checker, RecorderConfig):
            return recorded_numbers(context, {**self.checker.model_dump(exclude={"kind"}), "scale": (0.0, 1.0)})
        return Score.of(rules_pass(self.checker).run(context), PASSED)
