"""Selectors by a score alone: a condition on it, its best rows, its middle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from engine.algorithms.sampling import weighted_keys
from engine.schema import ROW
from engine.selecting.base import ByScore, Narrowing, Selector, Sized


class Keep(Selector):
    """The rows whose score meets every condition; the order of what is left stays."""

    kind: Literal["keep"] = "keep"
    by: str = Field(description="Name of the score")
    at_least: float | None = Field(default=None, description="Smallest value kept")
    above: float | None = Field(default=None, description="Largest value that is not kept")
    at_most: float | None = Field(default=None, description="Largest value kept")
    below: float | None = Field(default=None, description="Smallest value that is not kept")

    @model_validator(mode="after")
    def _has_condition(self) -> Keep:
        if all(value is None for value in (self.at_least, self.above, self.at_most, self.below)):
            raise ValueError("selector keep needs one of at_least, above, at_most, below")
        return self

    @property
    def reads(self) -> Sequence[str]:
        return (self.by,)

    def narrow(self, narrowing: Narrowing, num: int) -> Narrowing:
        tests = (
            (self.at_least, np.less, "below {:g}"),
            (self.above, np.less_equal, "of {:g} or less"),
            (self.at_most, np.greater, "above {:g}"),
            (self.below, np.greater_equal, "of {:g} or more"),
        )
        narrowing = narrowing.scored([self.by])
        for bound, fails, words in tests:
            if bound is not None:
                rows = [np.empty(0, np.int64)]
                for table in narrowing.parts([self.by]):
                    rows.append(table[ROW].to_numpy()[fails(table[self.by].to_numpy(), bound)])
                out_I = np.concatenate(rows)
                narrowing = narrowing.without(out_I, f"{self.by} {words.format(bound)}")
        return narrowing


class Top(ByScore):
    """The rows of highest or lowest score, equal ones by id."""

    kind: Literal["top"] = "top"

    def narrow(self, narrowing: Narrowing, num: int) -> Narrowing:
        narrowing = narrowing.scored([self.by])
        rows_I = narrowing.best(num, self.value, [self.by])
        other = "lower" if self.order == "highest" else "higher"
        return narrowing.kept(rows_I, f"{other} {self.by}", f"among the {self.order} {self.by}")


class Middle(Sized):
    """The rows around the median of a score, the most central first."""

    kind: Literal["middle"] = "middle"
    by: str = Field(description="Name of the score")

    @property
    def reads(self) -> Sequence[str]:
        return (self.by,)

    def narrow(self, narrowing: Narrowing, num: int) -> Narrowing:
        narrowing = narrowing.scored([self.by])
        ranks_I = middle_ranks(narrowing.num_left, num)
        lowest = Top(by=self.by, order="lowest")
        rows_I = narrowing.best(int(ranks_I.max(initial=-1)) + 1, lowest.value, [self.by])[ranks_I]
        return narrowing.kept(rows_I, f"far from the middle of {self.by}", f"in the middle of {self.by}")


def middle_ranks(of: int, num: int) -> np.ndarray:
    """The `num` middle ranks of 0 .. of - 1, the most central first; of two equally central ones the lower.

    Returns:
        (min(num, of),) int64.
    """
    num = min(num, of)
    first = (of - num) // 2
    ranks_N = np.arange(first, first + num)
    return ranks_N[np.argsort(np.abs(2 * ranks_N - (of - 1)), kind="stable")]


class Sample(Sized):
    """A random draw without replacement, by a hash of (seed, id); with weights, in proportion to them."""

    kind: Literal["sample"] = "sample"
    weight: str | None = Field(default=None, description="Score that rows are drawn in proportion to; rows of 0 never")

    @property
    def reads(self) -> Sequence[str]:
        return () if self.weight is None else (self.weight,)

    def narrow(self, narrowing: Narrowing, num: int) -> Narrowing:
        weight, seed = self.weight, narrowing.context.config.seed

        def keys(table: pa.Table, words_M: np.ndarray) -> np.ndarray:
            weights_M = np.ones(len(words_M)) if weight is None else table[weight].to_numpy().astype(np.float64)
            return weighted_keys(words_M, weights_M, seed, "sample")

        if weight is not None:
            narrowing = Keep(by=weight, above=0.0).narrow(narrowing, num)
        return narrowing.kept(narrowing.best(num, keys, self.reads), "not drawn", "drawn")
