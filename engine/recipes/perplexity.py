"""Perplexity of the response given its prompt: the lowest, the highest, or the middle of the pool. A baseline.

    perplexity = exp(s(A|Q))

with s the mean NLL of the response's tokens. Low keeps what the model would have said, high what surprises it. The
middle avoids both ends, the trivial and the broken: "When Less is More: Investigating Data Pruning for Pretraining LLMs
at Scale" (Marion et al. 2023, arXiv 2309.04564) finds it best for pretraining data. High and low perplexity are also
the usual baselines of selection papers (Active Instruction Tuning, arXiv 2311.00288).

Needs: a causal language model. Cost: the passes of recipe `ifd`, which share their step.
Known bias: low prefers long, formulaic responses; high prefers short ones, rare languages, code and noise.

Differs from the paper in: Marion et al. score whole documents; here the response is scored given its prompt. The middle
is the budget's worth of ranks around the median.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine.recipes.base import Context, Selection
from engine.schema import ERROR
from engine.token_scoring import LanguageModelConfig, not_scored, note_shortfall, rank_rows, score_step, token_scores

NLL = "nll_conditioned"


class Config(LanguageModelConfig):
    name: Literal["perplexity"] = "perplexity"
    band: Literal["low", "mid", "high"] = Field(default="mid", description="Which part of the pool to take")


def middle_ranks(of: int, num: int) -> np.ndarray:
    """The `num` middle ranks of 0 .. of - 1, the most central first; of two equally central ones the lower.

    Returns:
        (min(num, of),) int64.
    """
    num = min(num, of)
    first = (of - num) // 2
    ranks_N = np.arange(first, first + num)
    return ranks_N[np.argsort(np.abs(2 * ranks_N - (of - 1)), kind="stable")]


def perplexities(table: pa.Table) -> pa.Array:
    """exp of the mean NLL, float64, null in error rows."""
    with np.errstate(over="ignore"):
        return pa.array(np.exp(table[NLL].to_numpy().astype(np.float64)), from_pandas=True)


def left_out(table: pa.Table) -> list[str | None]:
    """Why each row of a part cannot be chosen."""
    return [not_scored(error) for error in table[ERROR].to_pylist()]


def select(context: Context) -> Selection:
    config = context.config.recipe
    assert isinstance(config, Config)
    tokens = token_scores(context, config)
    scores = score_step(context, tokens, "perplexity", perplexities, {})
    if config.band == "mid":
        record = tokens.require()
        ranks_I = middle_ranks(record.rows - record.failed, context.budget)
        ranked = rank_rows(context, scores, NLL, left_out, int(ranks_I.max(initial=0)) + 1, -1)
        rows_I = ranked.rows[ranks_I]
    else:
        ranked = rank_rows(context, scores, NLL, left_out, context.budget, 1 if config.band == "high" else -1)
        rows_I = ranked.rows
    note_shortfall(context, len(rows_I))
    settings = {"scores": scores.fingerprint, "band": config.band}
    selected = context.select_rows("selected", rows_I, f"in the {config.band} band of perplexity", settings)
    return Selection(selected, scores, f"outside the {config.band} band of perplexity", ranked.reasons)
