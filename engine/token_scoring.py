"""What the methods that stand on token log-probabilities share: the pass over the pool, the scores, the ranking.

The pass is one step, `steps/token_scores-<8 hex>`, known by the pool, the model and how texts are laid out, so recipes
that agree on these share it. What a recipe adds is arithmetic on its columns. It knows no method.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine.algorithms.ranking import top_rows
from engine.artifacts import Part, Source, Step
from engine.backends import pinned
from engine.config import RecipeConfig
from engine.errors import DataError
from engine.recipes.base import Context
from engine.runtime import StageSpec, run_pass
from engine.schema import ERROR, ID, ROW, id_words

# A score column of one part, float64; null where there is none. And why a row cannot be chosen, null where it can.
Arithmetic = Callable[[pa.Table], pa.Array]
Exclusion = Callable[[pa.Table], list[str | None]]


class LanguageModelConfig(RecipeConfig):
    """Settings of the pass. Two recipes with the same ones share it."""

    model: str = Field(
        default="openai-community/gpt2", description="Causal language model that reads the pool: path or id"
    )
    max_tokens: int = Field(
        default=1024, ge=8, description="Longest prompt plus response; a longer response is cut, at its end"
    )
    template: Literal["chat", "alpaca", "plain"] = Field(
        default="chat",
        description="How prompt and response become one text; chat: the model's own template, plain if it has none",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 where the processor has it; logits are float32 in any case"
    )


@dataclass(frozen=True)
class Ranked:
    """The best of the rows that can be chosen.

    Attributes:
        rows: (I,) int64 rows of the pool, best first.
        reasons: (row, reason) of the rows that cannot be chosen.
    """

    rows: np.ndarray
    reasons: pa.Table


def token_scores(context: Context, config: LanguageModelConfig) -> Step:
    """The step `token_scores`, parallel to the pool's parts: `row` and TOKEN_SCORE_COLUMNS.

    Raises:
        EnvironmentProblem: E320, the model is not here.
        TooManyFailures: E600, more rows than `max_failed` have no score.
    """
    from engine.models.encoder import resolve_precision
    from engine.models.token_scores import TOKEN_SCORE_COLUMNS, TokenScores

    # A GPU rounds differently, so the device is part of what is hashed.
    device = "cuda" if context.config.runtime.gpus else "cpu"
    names = ("model", "max_tokens", "template")
    chosen = {**{name: getattr(config, name) for name in names}, "device": device}
    chosen["precision"] = resolve_precision(config.precision, device)
    settings, identity = pinned("token_scores", chosen)
    target = context.step("token_scores", identity, [context.pool.fingerprint])
    stage = StageSpec(
        name="token_scores",
        factory=TokenScores,
        kwargs={**settings, "weights": identity["model"]},
        columns_in=TokenScores.columns_in,
        columns_out=TOKEN_SCORE_COLUMNS,
        resources=context.resources(),
    )
    record = context.runtime.map_parts(stage, context.pool, target)
    context.check_failures(target.folder, record.failed, record.rows)
    return target


def score_step(
    context: Context, tokens: Source, column: str, arithmetic: Arithmetic, settings: Mapping[str, Any]
) -> Step:
    """The step `scores`: every column of `tokens` and the method's own, before the errors.

    Args:
        tokens: from `token_scores`.
        column: name of the method's score.
        arithmetic: its values, from a part's token scores; nothing that is not finite.
        settings: what determines them besides `tokens`.
    """
    target = context.step("scores", {"column": column, **settings}, [tokens.fingerprint])

    def compute(todo: list[int]) -> Iterator[Part]:
        for part in todo:
            started = time.perf_counter()
            table = tokens.read(part)
            table = table.add_column(
                table.schema.get_field_index(ERROR), pa.field(column, pa.float64()), arithmetic(table)
            )
            failed = len(table) - table[ERROR].null_count
            yield target.commit(part, table, seconds=time.perf_counter() - started, failed=failed)

    run_pass(context.runtime.observer, tokens, target, compute)
    return target


def rank_rows(context: Context, scores: Step, column: str, excluded: Exclusion, num: int, sign: int) -> Ranked:
    """The best rows by a score, equal scores by id, one part in memory at a time.

    Args:
        scores: from `score_step`.
        column: the score; a row without one must be excluded.
        excluded: why each row of a part cannot be chosen.
        num: rows wanted; fewer are given when fewer can be chosen.
        sign: 1 for the highest scores, -1 for the lowest.

    Raises:
        DataError: E470, no row can be chosen.
    """
    best_I, words_I, value_I = np.empty(0, np.int64), np.empty(0, np.uint64), np.empty(0)
    out_rows, out_reasons = [], []
    for part in scores.require().parts:
        table = scores.read(part.index)
        reasons = excluded(table)
        free_N = np.array([reason is None for reason in reasons], bool)
        row_N = table[ROW].to_numpy()
        out_rows += row_N[~free_N].tolist()
        out_reasons += [reason for reason in reasons if reason is not None]
        ids = context.pool.read(part.index, [ID])[ID].filter(pa.array(free_N))
        best_I = np.concatenate([best_I, row_N[free_N]])
        words_I = np.concatenate([words_I, id_words(ids)])
        value_I = np.concatenate([value_I, sign * table[column].to_numpy()[free_N]])
        kept = top_rows(value_I, words_I, num)
        best_I, words_I, value_I = best_I[kept], words_I[kept], value_I[kept]
    if not len(best_I):
        common = max(set(out_reasons), key=out_reasons.count)
        raise DataError(
            "no row of the pool can be chosen", where=scores.folder, why=f"most often: {common}", code="E470"
        )
    return Ranked(
        best_I, pa.table([pa.array(out_rows, pa.int64()), pa.array(out_reasons, pa.string())], [ROW, "reason"])
    )


def not_scored(error: str | None) -> str | None:
    """The reason of a row that failed."""
    return None if error is None else f"not scored: {error}"


def note_shortfall(context: Context, found: int) -> None:
    """Tells the user when fewer rows than the budget could be chosen."""
    if found < context.budget:
        context.runtime.observer.note(f"{found:,} rows can be chosen, fewer than the budget of {context.budget:,}")
