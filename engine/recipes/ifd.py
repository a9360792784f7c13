"""Instruction-following difficulty: the responses that the prompt helps least, while it still helps.

"From Quantity to Quality: Boosting LLM Performance with Self-Guided Data Selection for Instruction Tuning" (Cherry; Li
et al., NAACL 2024, arXiv 2308.12032), section 2.2:

    IFD = s(A|Q) / s(A)

with s the mean NLL of the response's tokens, after the prompt and after the response marker alone. A value of 1 or more
says that the prompt does not help: prompt and response do not belong together, and the row is left out. The highest of
the rest are selected. `ratio: perplexity` is exp(s(A|Q) - s(A)), as Superfiltering has it; the two rank differently.

Needs: a causal language model, best the one that will be tuned. No labels, no judge, no vectors.
Cost: two forward passes per row, over prompt plus response and over the response.
Known bias: prefers short prompts and open-ended, creative responses; translations, sums and extractions score low,
because there the prompt helps most. Scores of very short responses are noise.

Differs from the paper in: the model is scored as it is, without the pre-experience tuning on 1,000 clustered rows (as
in the authors' second version; that tuning is not available here yet). Both passes score exactly the same tokens, from
one tokenisation of the response; the published code may be off by one where prompt and response merge. The budget is a
share of the pool, where the published script takes its share of what is left after the filter. Instruction and input
are one prompt, so `template: alpaca` (the paper's) has no separate "### Input:". The model's own chat template is the
default. Several turns: the last response, given everything before it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine.recipes.base import Context, Selection
from engine.schema import ERROR
from engine.token_scoring import LanguageModelConfig, not_scored, note_shortfall, rank_rows, score_step, token_scores

IFD = "ifd"


class IfdConfig(LanguageModelConfig):
    """What every form of the score can be told."""

    ratio: Literal["loss", "perplexity"] = Field(
        default="loss", description="IFD as the ratio of the two mean losses, or of the two perplexities"
    )
    max_ifd: float | None = Field(
        default=1.0, gt=0.0, description="Rows with this IFD or more are left out as misaligned; null keeps them"
    )
    truncated: Literal["drop", "keep"] = Field(
        default="drop", description="Rows whose response was cut at max_tokens: leave them out, or score what is left"
    )


class Config(IfdConfig):
    name: Literal["ifd"] = "ifd"
    model: str = Field(default="Qwen/Qwen2.5-0.5B", description="The base model that will be tuned: path or id")
    max_tokens: int = Field(
        default=2048, ge=8, description="Longest prompt plus response; a longer response is cut, at its end"
    )


def ifd_scores(conditioned_N: np.ndarray, alone_N: np.ndarray, ratio: str) -> np.ndarray:
    """IFD of rows.

    Args:
        conditioned_N: (N,) mean NLL after the prompt, in nats.
        alone_N: (N,) mean NLL of the same tokens without it.
        ratio: "loss": the quotient (Cherry, equation 4); "perplexity": the quotient of their exponentials.

    Returns:
        (N,) float64; nan where it is not defined, or too large for a number.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        a_N, b_N = conditioned_N.astype(np.float64), alone_N.astype(np.float64)
        found_N = a_N / b_N if ratio == "loss" else np.exp(a_N - b_N)
    return np.where(np.isfinite(found_N), found_N, np.nan)


def left_out(table: pa.Table, max_ifd: float | None, truncated: str) -> list[str | None]:
    """Why each row of a part cannot be chosen."""

    def reason(error: str | None, ifd: float | None, cut: int | None) -> str | None:
        if error is not None:
            return not_scored(error)
        if cut and truncated == "drop":
            return "the response is longer than max_tokens"
        if ifd is None:
            return "no IFD: the response alone is certain"
        return f"IFD of {max_ifd:g} or more" if max_ifd is not None and ifd >= max_ifd else None

    columns = (table[name].to_pylist() for name in (ERROR, IFD, "tokens_cut"))
    return [reason(*row) for row in zip(*columns, strict=True)]


def select(context: Context) -> Selection:
    config = context.config.recipe
    assert isinstance(config, IfdConfig)

    def arithmetic(table: pa.Table) -> pa.Array:
        conditioned_N, alone_N = (table[name].to_numpy() for name in ("nll_conditioned", "nll_alone"))
        return pa.array(ifd_scores(conditioned_N, alone_N, config.ratio), from_pandas=True)

    tokens = token_scores(context, config)
    scores = score_step(context, tokens, IFD, arithmetic, {"ratio": config.ratio})
    settings = {"max_ifd": config.max_ifd, "truncated": config.truncated}
    ranked = rank_rows(context, scores, IFD, lambda table: left_out(table, **settings), context.budget, 1)
    note_shortfall(context, len(ranked.rows))
    reason = "among the highest IFD" + (f" below {config.max_ifd:g}" if config.max_ifd is not None else "")
    selected = context.select_rows("selected", ranked.rows, reason, {"scores": scores.fingerprint, **settings})
    return Selection(selected, scores, "lower IFD", ranked.reasons)
