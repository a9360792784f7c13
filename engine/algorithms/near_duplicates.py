"""A greedy filter of near-duplicates: walk the rows in a given order, keep one unless it is too similar to one kept.

DEITA's "Repr filter" (Liu et al. 2024, arXiv 2312.15685): the paper's text says distance, its code compares cosine
similarity; a row is kept only if its largest cosine to the rows kept before it is below the threshold. The published
code also rejects rows close to a rejected row of the same batch; here blocks give what one row at a time gives:
a block is compared with all rows kept by one matrix product, then walked in order.
"""

# Shape letters: D dimensions, B rows of a block.

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from engine.algorithms.exact import ONE, largest_similarity, similarities
from engine.algorithms.greedy import Picks

MAX_BLOCK = 1024


class KeptPool(Protocol):
    """Gives rows by their number, and compares vectors with the rows kept so far."""

    def vectors(self, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B,) uint64 id words and (B, D) float16 vectors, in the order asked for."""
        ...

    def largest_kept(self, x_BD: np.ndarray) -> np.ndarray:
        """(B,) int64 largest similarity to a kept row, in units of 2^-32; the smallest int64 when none is kept."""
        ...

    def add(self, picks: Picks) -> None: ...


class ArrayKept:
    """One shard in memory. Arguments as `greedy.ArrayGreedy`; keeps which of its rows are kept."""

    def __init__(self, x_ND: np.ndarray, rows_N: np.ndarray, words_N: np.ndarray) -> None:
        self.x_ND, self.rows_N, self.words_N = x_ND, rows_N, words_N
        self.kept = np.empty(0, dtype=np.int64)

    def vectors(self, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at_B = np.searchsorted(self.rows_N, rows_B)
        return self.words_N[at_B], self.x_ND[at_B]

    def largest_kept(self, x_BD: np.ndarray) -> np.ndarray:
        return largest_similarity(x_BD, self.x_ND[self.kept])

    def add(self, picks: Picks) -> None:
        self.add_rows(picks.rows, picks.x)

    def add_rows(self, rows_P: np.ndarray, x_PD: np.ndarray) -> None:
        at_P = np.searchsorted(self.rows_N, rows_P).clip(max=len(self.rows_N) - 1)
        self.kept = np.concatenate([self.kept, at_P[self.rows_N[at_P] == rows_P]])


def cosine_filter(
    pool: KeptPool, order_M: np.ndarray, threshold: float, num: int, kept: int = 0, start: int = 0
) -> Iterator[Picks]:
    """Keeps rows until there are `num` or the order ends; yields them in blocks, with the similarity each had.

    Args:
        pool: holds what is kept so far.
        order_M: (M,) int64 row numbers, best first.
        threshold: rows with a similarity of at least this to a kept row are left out.
        num: rows wanted, those kept already included.
        kept: rows kept already.
        start: place in the order to go on from.
    """
    limit = round(threshold * ONE)
    while kept < num and start < len(order_M):
        rows_B = order_M[start : start + min(MAX_BLOCK, max(16, 2 * (num - kept)))]
        start += len(rows_B)
        words_B, x_BD = pool.vectors(rows_B)
        largest_B = pool.largest_kept(x_BD)
        at = keep_in_order(largest_B, similarities(x_BD, x_BD), limit, num - kept)
        block = Picks(rows_B[at], words_B[at], largest_B[at], x_BD[at])
        if len(at):
            pool.add(block)
            yield block
            kept += len(at)


def keep_in_order(largest_B: np.ndarray, similar_BB: np.ndarray, limit: int, room: int) -> np.ndarray:
    """Positions kept in a block, at most `room`; raises `largest_B` to the similarity with rows kept before."""
    kept: list[int] = []
    for b in range(len(largest_B)):
        if len(kept) == room:
            break
        if largest_B[b] < limit:
            kept.append(b)
            np.maximum(largest_B[b + 1 :], similar_BB[b, b + 1 :], out=largest_B[b + 1 :])
    return np.array(kept, dtype=np.int64)
