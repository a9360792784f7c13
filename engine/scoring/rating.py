"""Ratings of single rows, by a judge model or recorded: one pass over the pool, the step `ratings`.

A reply without a rating on the prompt's scale is asked about once more and is then an error row, never a score. Several
turns: as the rater's `turns` says (engine/paid/rating.py); a recorded rating is the row's, whatever it was made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from engine.artifacts import rows_digest
from engine.config import RecorderConfig
from engine.config_endpoint import OpenAIRaterConfig
from engine.paid.passes import PaidPass
from engine.paid.rating import RATING, RATINGS, rating_pass
from engine.recipes.base import Context
from engine.schema import ROW
from engine.scoring.base import Measured, Score
from engine.scoring.recorded import recorded_numbers
from engine.scoring.some_rows import asked_rows, over_pool


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
    rows: Literal["all", "left"] = Field(
        default="all",
        description="left: only rows that are left when the first selector that reads it comes are rated, and paid",
    )

    @model_validator(mode="after")
    def _has_each(self) -> Rating:
        if self.each and (isinstance(self.rater, RecordedRaterConfig) or self.rater.turns == "last"):
            raise ValueError("`each` needs a rater that rates every turn: kind openai, turns mean or sum")
        return self

    @property
    def is_list(self) -> bool:
        return self.each

    @property
    def passes(self) -> Sequence[PaidPass]:
        return (rating_pass(self.rater),) if isinstance(self.rater, OpenAIRaterConfig) else ()

    @property
    def waits(self) -> bool:
        return self.rows == "left" and isinstance(self.rater, OpenAIRaterConfig)

    def measure_left(self, context: Context, rows_I: np.ndarray) -> Score:
        def keep(part: int) -> pa.Array:
            rows_M = context.pool.read(part, [ROW])[ROW].to_numpy()
            near = rows_I[slice(*np.searchsorted(rows_I, [rows_M[0], rows_M[-1] + 1]))]
            return pa.array(np.isin(rows_M, near))

        assert isinstance(self.rater, OpenAIRaterConfig)
        asked = asked_rows(context, {"rows": rows_digest(rows_I)}, [], keep)
        found = rating_pass(self.rater).run(context, asked)
        column = RATINGS if self.each else RATING
        return Score.of(over_pool(context, "ratings_left", found, [column]), column)

    def measure(self, context: Context) -> Score:
        if isinstance(self.rater, RecordedRaterConfig):
            return recorded_numbers(context, self.rater.model_dump(exclude={"kind"}))
        return Score.of(rating_pass(self.rater).run(context), RATINGS if self.each else RATING)
