"""Scores read off a row's text: its length, its number of turns."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from engine.recipes.base import Context
from engine.runtime import StageSpec
from engine.schema import ERROR, PROMPT, RESPONSE, TURNS
from engine.scoring.base import Measured, Score

LENGTHS = ("prompt_chars", "response_chars", "prompt_words", "response_words", "turns")


class TextLengths:
    """Stage: LENGTHS of each row, int32. The prompt is everything before the last assistant message."""

    columns_in = (PROMPT, RESPONSE, TURNS)
    columns_out = (*[pa.field(name, pa.int32()) for name in LENGTHS], pa.field(ERROR, pa.large_string()))

    def __call__(self, table: pa.Table) -> pa.Table:
        columns = {}
        for name in (PROMPT, RESPONSE):
            columns[f"{name}_chars"] = pc.utf8_length(table[name])  # pyright: ignore[reportAttributeAccessIssue]
            columns[f"{name}_words"] = pa.array([len(text.split()) for text in table[name].to_pylist()])
        columns["turns"] = table[TURNS]
        columns[ERROR] = pa.nulls(len(table), pa.large_string())
        return pa.table(columns)


class Length(Measured):
    """How long a row is. Several turns: the prompt is all text before the last assistant message, the response that
    message."""

    kind: Literal["length"] = "length"
    of: Literal["prompt_chars", "response_chars", "prompt_words", "response_words", "turns"] = Field(
        default="response_chars", description="What is counted; words are separated by white space"
    )

    def measure(self, context: Context) -> Score:
        target = context.step("lengths", {}, [context.pool.fingerprint])
        stage = StageSpec(
            name="lengths", factory=TextLengths, columns_in=TextLengths.columns_in, columns_out=TextLengths.columns_out
        )
        context.runtime.map_parts(stage, context.pool, target)
        return Score.of(target, self.of)
