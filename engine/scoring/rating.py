"""Ratings of single rows, by a judge model or recorded: one pass over the pool, the step `ratings`.

A reply without a rating on the prompt's scale is asked about once more and is then an error row, never a score. Several
turns: as the rater's `turns` says (engine/paid/rating.py); a recorded rating is the row's, whatever it was made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from engine.config import RecorderConfig
from engine.config_endpoint import OpenAIRaterConfig
from engine.paid.passes import PaidPass
from engine.paid.rating import RATING, RATINGS, rating_pass
from engine.recipes.base import Context
from engine.scoring.base import Measured, Score
from engine.scoring.recorded import recorded_numbers


class RecordedRaterConfig(RecorderConfig):
    """Ratings that were made elsewhere."""

    scale: tuple[float, float] | None = Field(
        default=None, description="Lowest and highest rating; one outside is an error row, never a score"
    )


RaterConfig = Annotated[OpenAIRaterConfig | RecordedRaterConfig, Field(discriminator="kind")]


class Rating(Measured):
    """A number for each row, on the scale of a prompt."""

    kind: Literal["rating"] = "rating"
    rater: RaterConfig = Field(description="Who rates")
    each: bool = Field(
        default=False, description="A list with the rating of each turn; the rater's `turns` must be mean or sum"
    )

    @model_validator(mode="after")
    def _has_each(self) -> Rating:
        if self.each and (isinstance(self.rater, RecordedRaterConfig) or self.rater.turns == "last"):
            raise ValueError("`each` needs a rater that rates every turn: kind openai, turns mean or sum")
        return self

    @property
    def passes(self) -> Sequence[PaidPass]:
        return (rating_pass(self.rater),) if isinstance(self.rater, OpenAIRaterConfig) else ()

    def measure(self, context: Context) -> Score:
        if isinstance(self.rater, RecordedRaterConfig):
            return recorded_numbers(context, self.rater.model_dump(exclude={"kind"}))
        return Score.of(rating_pass(self.rater).run(context), RATINGS if self.each else RATING)
