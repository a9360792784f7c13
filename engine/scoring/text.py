"""Scores read off a row's text: its length, its number of turns, its lexical diversity."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from engine.algorithms.lexical import THRESHOLD, mtld, words_of
from engine.recipes.base import Context
from engine.runtime import StageSpec
from engine.schema import ERROR, PROMPT, RESPONSE, TURNS
from engine.scoring.base import Measured, Score

LENGTHS = ("prompt_chars", "response_chars", "prompt_words", "response_words", "turns")
MTLD = "mtld"


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
        context.runtime.map_parts(StageSpec.of("lengths", TextLengths), context.pool, target)
        return Score.of(target, self.of)


class LexicalDiversity:
    """Stage: MTLD of each row. A row without words is an error row.

    Args:
        of: see `Mtld`.
        threshold: factor size.
    """

    columns_in = (PROMPT, RESPONSE)
    columns_out = (pa.field(MTLD, pa.float64()), pa.field(ERROR, pa.large_string()))

    def __init__(self, of: str, threshold: float) -> None:
        self.names, self.threshold = {"pair": (PROMPT, RESPONSE)}.get(of, (of,)), threshold

    def __call__(self, table: pa.Table) -> pa.Table:
        texts = ["\n".join(row) for row in zip(*(table[name].to_pylist() for name in self.names), strict=True)]
        words = [words_of(text) for text in texts]
        values = [mtld(found, self.threshold) if found else None for found in words]
        errors = [None if found else "no words" for found in words]
        return pa.table([pa.array(values, pa.float64()), pa.array(errors, pa.large_string())], names=[MTLD, ERROR])


class Mtld(Measured):
    """Lexical diversity (MTLD) of a text. Several turns: the prompt is all text before the last assistant message, the
    response that message."""

    kind: Literal["mtld"] = "mtld"
    of: Literal["prompt", "response", "pair"] = Field(default="response", description="Whose words; pair: of both")
    threshold: float = Field(default=THRESHOLD, gt=0.0, lt=1.0, description="Type-token ratio at which a factor ends")

    def measure(self, context: Context) -> Score:
        settings = {"of": self.of, "threshold": self.threshold}
        target = context.step("mtld", settings, [context.pool.fingerprint])
        stage = StageSpec.of("mtld", LexicalDiversity, **settings)
        record = context.runtime.map_parts(stage, context.pool, target)
        context.check_failures(target.folder, record.failed, record.rows)
        return Score.of(target, MTLD)
