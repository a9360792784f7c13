"""Scores from token log-probabilities: IFD, perplexity, and what they are made of.

    IFD = s(A|Q) / s(A)              "loss": Cherry (Li et al., NAACL 2024, arXiv 2308.12032), equation 4
    IFD = exp(s(A|Q) - s(A))         "perplexity": Superfiltering (Li et al., ACL 2024, arXiv 2402.00530)
    perplexity = exp(s(A|Q))

with s the mean NLL of the response's tokens, after the prompt and after the response marker alone. All of them come
from one pass over the pool, the step `token_scores`. Several turns: the last response, given everything before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine.recipes.base import Context
from engine.scoring.arithmetic import finite
from engine.scoring.base import Measured, Score
from engine.token_scoring import LanguageModelConfig, token_scores

NLL, ALONE = "nll_conditioned", "nll_alone"
CARRIED = (NLL, ALONE, "tokens_prompt", "tokens_response", "tokens_cut")


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


def _perplexity(table: pa.Table) -> pa.Array:
    with np.errstate(over="ignore"):
        return finite(np.exp(table[NLL].to_numpy().astype(np.float64)))


def _ifd(ratio: str) -> Callable[[pa.Table], pa.Array]:
    return lambda table: finite(ifd_scores(table[NLL].to_numpy(), table[ALONE].to_numpy(), ratio))


COMPUTED = {"ifd": _ifd("loss"), "ifd_perplexity": _ifd("perplexity"), "perplexity": _perplexity}


class TokenScore(LanguageModelConfig, Measured):
    """A number from the pass of a causal language model."""

    kind: Literal["token_score"] = "token_score"
    value: Literal[
        "ifd", "ifd_perplexity", "perplexity", "nll_conditioned", "nll_alone", "tokens_prompt", "tokens_response",
        "tokens_cut",
    ] = Field(default="ifd", description="Which one; ifd_perplexity: IFD as a ratio of perplexities")  # fmt: skip

    @property
    def carries(self) -> Sequence[str]:
        return CARRIED if self.value in COMPUTED else ()

    def measure(self, context: Context) -> Score:
        tokens = token_scores(context, self)
        if self.value not in COMPUTED:
            return Score.of(tokens, self.value)
        return Score(tokens, (NLL, ALONE), COMPUTED[self.value], {"value": self.value})
