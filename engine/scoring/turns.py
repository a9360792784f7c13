"""Scores with one number per turn, and the way from these to one number per row.

A row with several turns is judged turn by turn by some methods; DEITA (arXiv 2312.15685, section 3) multiplies two
scores of each turn and adds the products up. A per-turn column is a list of numbers, one per user message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from engine.scoring.arithmetic import finite
from engine.scoring.base import Derived

OverTurns = Literal["last", "sum", "mean"]


def over_turns(lists: pa.ListArray, values_T: np.ndarray, take: OverTurns) -> pa.Array:
    """One number per row from one per turn.

    Args:
        lists: (N,) the column the values were made from; null where a row has none.
        values_T: (T,) float64, one for each of its elements, in order.

    Returns:
        (N,) float64, null where the list is null or empty or the result is not finite. Turns are added in order, so
        a row's sum has the same bits beside any neighbours.
    """
    turns_N = turn_counts(lists)
    if take == "last":
        found_N = np.full(len(lists), np.nan)
        found_N[turns_N > 0] = values_T[np.cumsum(turns_N)[turns_N > 0] - 1]
        return finite(found_N)
    rows_T = np.repeat(np.arange(len(lists)), turns_N)
    total_N = np.bincount(rows_T, weights=values_T, minlength=len(lists)).astype(np.float64)  # integers of no turns
    with np.errstate(divide="ignore", invalid="ignore"):
        total_N[turns_N == 0] = np.nan
        return finite(total_N if take == "sum" else total_N / turns_N)


def turn_counts(lists: pa.ListArray) -> np.ndarray:
    """(N,) int64 elements of each list, 0 where it is null."""
    return pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)  # pyright: ignore


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.ListArray:
    """The column as a single array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column  # pyright: ignore


class TurnProduct(Derived):
    """The product of per-turn scores in each turn, then one number per row, as DEITA's sum over turns of c * q."""

    kind: Literal["turn_product"] = "turn_product"
    of: list[str] = Field(min_length=1, description="Names of per-turn scores (turns: each) to multiply turn by turn")
    take: OverTurns = Field(default="sum", description="How the turns become one number")

    @property
    def reads(self) -> Sequence[str]:
        return self.of

    @property
    def reads_lists(self) -> Sequence[str]:
        return self.of

    def derive(self, table: pa.Table) -> pa.Array:
        """Null where a score is, and where scores do not have the same number of turns."""
        columns = [one_array(table[name]) for name in self.of]
        counts_CN = np.stack([turn_counts(lists) for lists in columns])
        alike_N = pa.array((counts_CN == counts_CN[0]).all(axis=0) & (counts_CN[0] > 0))
        common = [pc.if_else(alike_N, lists, None) for lists in columns]  # pyright: ignore[reportAttributeAccessIssue]
        product_T = np.ones(int(turn_counts(common[0]).sum()))
        for lists in common:
            product_T = product_T * lists.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
        return over_turns(common[0], product_T, self.take)
