"""Scores from digit logits: the rating a language model would give, weighed by how sure it is.

    expectation = sum_k k p_k                                        DEITA (arXiv 2312.15685, section 3)
    token       = B 1/(K-1) sum_k |p_B - p_k|,  B = argmax_k p_k     SelectIT (arXiv 2402.16705, token level)

with p the probabilities of the digits 1..K after a rating prompt (engine/models/digit_scores.py). `token_twice` puts p
through another softmax before, as SelectIT's published code does, which brings all margins near zero. All of them
come from one pass over the pool per model and prompt, the step `digits`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine.config_base import PathOrName
from engine.models.digit_prompts import load_digit_prompt
from engine.recipes.base import Context
from engine.scoring.arithmetic import added
from engine.scoring.base import Measured, Score
from engine.scoring.turns import OverTurns, one_array, over_turns, turn_counts
from engine.token_scoring import CausalModelConfig, digits

P = "p"


def expectation(p_TK: np.ndarray) -> np.ndarray:
    """(T,) mean rating of T distributions over the digits 1 to K."""
    return added(p_TK.T * np.arange(1, p_TK.shape[1] + 1)[:, None])


def token_score(p_TK: np.ndarray) -> np.ndarray:
    """(T,) the likeliest rating times its mean margin over the others; of equally likely ones the lowest."""
    best_T = p_TK.argmax(axis=1)
    margin_T = added((p_TK.max(axis=1, keepdims=True) - p_TK).T)
    return (best_T + 1) * margin_T / (p_TK.shape[1] - 1)


def token_score_twice(p_TK: np.ndarray) -> np.ndarray:
    """(T,) as `token_score`, of the softmax of the probabilities."""
    weight_TK = np.exp(p_TK)
    return token_score(weight_TK / added(weight_TK.T)[:, None])


VALUES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "expectation": expectation,
    "token": token_score,
    "token_twice": token_score_twice,
}


class Digits(CausalModelConfig, Measured):
    """A rating read off a language model's next-token probabilities. A row whose prompt does not fit has none."""

    kind: Literal["digits"] = "digits"
    max_tokens: int = Field(
        default=2048, ge=8, description="Longest rating prompt; a row with a longer one has no score, nothing is cut"
    )
    prompt: PathOrName = Field(default="quality", description="What is asked: a bundled prompt, or the path of a file")
    template: Literal["chat", "plain"] = Field(
        default="plain",
        description="How it is asked; chat: in the model's own chat template, plain if it has none",
    )
    value: Literal["expectation", "token", "token_twice"] = Field(
        default="expectation",
        description="The mean rating; or SelectIT's token-level score; twice: with a second softmax, as its code",
    )
    turns: Literal["last", "sum", "mean", "each"] = Field(
        default="last",
        description="last: the last response, given all before it; otherwise every turn is rated by itself: the sum, "
        "the mean, or a list with a number for each",
    )

    @property
    def is_list(self) -> bool:
        return self.turns == "each"

    def measure(self, context: Context) -> Score:
        prompt = load_digit_prompt(self.prompt)
        step = digits(context, self, prompt.model_dump(), self.template, "last" if self.turns == "last" else "each")
        settings = {"value": self.value, "turns": self.turns}
        return Score(step, (P,), lambda table: values_of(table, prompt.scale, self.value, self.turns), settings)


def values_of(table: pa.Table, scale: int, value: str, turns: OverTurns | Literal["each"]) -> pa.Array:
    """The score of each row of a part of the step `digits`; a list per row for `each`."""
    lists = one_array(table[P])
    numbers = lists.flatten().flatten().to_numpy(zero_copy_only=False)
    values_T = VALUES[value](numbers.reshape(-1, scale).astype(np.float64))
    if turns != "each":
        return over_turns(lists, values_T, turns)
    ends_N = np.cumsum([0, *turn_counts(lists)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends_N), pa.array(values_T), mask=lists.is_null())
