"""Scores made of other scores. A result that is not a finite number is no score."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine.scoring.base import Derived


def columns_of(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    """(names, N) float64, nan where a score is null."""
    return np.stack([table[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in names])


def finite(values_N: np.ndarray) -> pa.Array:
    """Null in place of nan and infinities."""
    return pa.array(values_N, mask=~np.isfinite(values_N))


def added(x_SN: np.ndarray) -> np.ndarray:
    """(N,) sums over the first axis, term by term, so with the same bits for any N."""
    return functools.reduce(np.add, x_SN)


class Product(Derived):
    """The product of scores, as DEITA's complexity times quality (arXiv 2312.15685)."""

    kind: Literal["product"] = "product"
    of: list[str] = Field(min_length=1, description="Names of the scores to multiply")

    @property
    def reads(self) -> Sequence[str]:
        return self.of

    def derive(self, table: pa.Table) -> pa.Array:
        return finite(columns_of(table, self.of).prod(axis=0))


class Linear(Derived):
    """A weighted sum of scores plus an intercept, as InstructMining's rules (arXiv 2307.06290)."""

    kind: Literal["linear"] = "linear"
    weights: dict[str, float] = Field(min_length=1, description="Weight of each score, by name")
    intercept: float = Field(default=0.0, description="Added to the weighted sum")

    @property
    def reads(self) -> Sequence[str]:
        return list(self.weights)

    def derive(self, table: pa.Table) -> pa.Array:
        """The terms are added in the order of the weights, so the sum has the same bits in any part."""
        total_N = np.full(len(table), self.intercept)
        for name, weight in self.weights.items():
            total_N = total_N + weight * columns_of(table, [name])[0]
        return finite(total_N)


class Weight(Derived):
    """A score as a positive weight to draw rows by; a reward or a perplexity is none."""

    kind: Literal["weight"] = "weight"
    of: str = Field(description="Name of the score")
    form: Literal["logistic", "reciprocal"] = Field(
        default="logistic",
        description="logistic: 1 / (1 + exp(-score)), for rewards; reciprocal: 1 / score, for perplexities",
    )

    @property
    def reads(self) -> Sequence[str]:
        return (self.of,)

    def derive(self, table: pa.Table) -> pa.Array:
        values_N = columns_of(table, [self.of])[0]
        with np.errstate(over="ignore", divide="ignore"):
            return finite(1.0 / (1.0 + np.exp(-values_N)) if self.form == "logistic" else 1.0 / values_N)


class Agreement(Derived):
    """The mean of several ratings of one thing, lowered where they disagree, as SelectIT's sentence level
    (arXiv 2402.16705): mean / (1 + alpha * std), std over all of them (not the sample estimate)."""

    kind: Literal["agreement"] = "agreement"
    of: list[str] = Field(min_length=1, description="Names of the scores")
    alpha: float = Field(default=0.2, ge=0.0, description="Weight of their standard deviation")

    @property
    def reads(self) -> Sequence[str]:
        return self.of

    def derive(self, table: pa.Table) -> pa.Array:
        x_SN = columns_of(table, self.of)
        mean_N = added(x_SN) / len(x_SN)
        std_N = np.sqrt(added((x_SN - mean_N) ** 2) / len(x_SN))
        return finite(mean_N / (1.0 + self.alpha * std_N))
