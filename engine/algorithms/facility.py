"""Facility location: the rows that stand for all others best, picked greedily.

f(S) = sum over all rows i of the largest similarity of i to a row of S; each pick adds most to f. Submodular, so the
greedy S reaches 1 - 1/e of the best there is (Nemhauser, Wolsey and Fisher 1978). Used by Superfiltering (arXiv
2402.00530) for diversity. Two ways to the next pick:

- lazy (Minoux 1978), the same picks as trying every row: what a row adds only falls, so its last value is a bound, and
  only rows whose bound is above the best found so far are tried again. The first bounds take one pass of N^2 products.
- stochastic (Mirzasoleiman et al. 2015, arXiv 1409.7938): lazy among a random sample of N/m ln(1/epsilon) rows per
  pick; 1 - 1/e - epsilon of the best there is, on average. A row joins a pick's sample by its hash.

What a row adds is a sum of integers from exact similarities (`exact`), so no result depends on shards or order. Bounds
may be rounded, upwards: they are made from similarities in float32, which a shard keeps for the rows asked about last
(`columns`), as the rows near the top for one pick mostly are for the next. The first pick has the largest inner product
with the sum of all rows. Ties go to the smaller id word. Never an N x N matrix.
"""

# Shape letters: N rows of a shard, D dimensions, B rows of a block, T rows of a tile, K shards or groups.

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engine.algorithms.columns import SCAN_ROWS, Columns, columns_for
from engine.algorithms.exact import ONE, largest_similarity, similarity_columns, similarity_to_sum
from engine.algorithms.greedy import LEAST, Each, Frontier, Picks, best_rows, share
from engine.errors import ConfigError
from engine.schema import seeded_hash

FIRST_WIDTH, MAX_WIDTH, BOUND_ROWS = 64, 512, 64  # rows offered, at first and at most; bounded anew at a time
UNKNOWN = int(np.iinfo(np.int64).max)  # the bound of a row that was never tried


@dataclass(frozen=True)
class Sampling:
    """Stochastic greedy: each row is tried for a pick with probability ln(1/epsilon) / m."""

    chance: float
    seed: int

    @staticmethod
    def of(epsilon: float, num: int, seed: int) -> Sampling:
        return Sampling(min(1.0, math.log(1 / epsilon) / num), seed)


class FacilityPool(Protocol):
    """The rows to pick from and to stand for: one shard, several in process, or a group of members."""

    def first(self) -> Picks:
        """The row, of those that may be picked, with the largest inner product with the sum of all rows."""
        ...

    def blocks(self, num: int) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """All rows that may be picked, `num` at a time: (B,) row numbers and (B, D) vectors."""
        ...

    def frontier(self, width: int, picked: int, sampling: Sampling | None) -> Frontier:
        """About `width` of the rows of largest bound, not picked, not tried since the last pick and in the sample.

        `state` holds the bounds, and the number of picks there were when each was found.
        """
        ...

    def gain(self, row: int, x_D: np.ndarray) -> int:
        """What a row would add to f, in units of 2^-32."""
        ...

    def bounds(self, rows_B: np.ndarray, x_BD: np.ndarray) -> np.ndarray:
        """(B,) int64, at least what each row would add."""
        ...

    def settle(self, rows_B: np.ndarray, bounds_B: np.ndarray, picked: int, exact: bool) -> None:
        """Remembers what rows would add after `picked` picks: exactly, then they are not offered again, or at most."""
        ...

    def add(self, picks: Picks) -> None: ...


class ArrayFacility:
    """One shard in memory.

    Args:
        x_ND: (N, D) float16 unit vectors.
        rows_N: (N,) int64 row numbers, ascending.
        words_N: (N,) uint64 from `schema.id_words`.
        total_D: (D,) float64, the sum of all rows of all shards.
        free_N: (N,) bool, rows that may be picked; all when None. f is over all rows in any case.
        columns: most columns of the similarity matrix to keep; what `columns_for` this shard alone says when None.
    """

    def __init__(
        self,
        x_ND: np.ndarray,
        rows_N: np.ndarray,
        words_N: np.ndarray,
        total_D: np.ndarray,
        free_N: np.ndarray | None = None,
        columns: int | None = None,
    ) -> None:
        self.x_ND, self.rows_N, self.words_N, self.total_D = x_ND, rows_N, words_N, total_D
        self.alive_N = np.ones(len(x_ND), dtype=bool) if free_N is None else free_N.copy()
        self.best_N = np.full(len(x_ND), LEAST)
        self.bound_N = np.full(len(x_ND), UNKNOWN)
        self.found_N = np.full(len(x_ND), -1)  # how many picks there were when the bound was found
        self.tried_N = np.full(len(x_ND), -1)  # and when it was exact
        self.columns = Columns(x_ND, columns or columns_for(len(x_ND)))

    def first(self) -> Picks:
        scores_N = np.where(self.alive_N, similarity_to_sum(self.x_ND, self.total_D), LEAST)
        at = best_rows(scores_N, self.words_N, 1)[0]
        return Picks(self.rows_N[at], self.words_N[at], scores_N[at], self.x_ND[at])

    def blocks(self, num: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        free_M = np.flatnonzero(self.alive_N)
        for start in range(0, len(free_M), num):
            at_B = free_M[start : start + num]
            yield self.rows_N[at_B], self.x_ND[at_B]

    def frontier(self, width: int, picked: int, sampling: Sampling | None) -> Frontier:
        open_N = self.alive_N & (self.tried_N != picked)
        if sampling is not None and sampling.chance < 1:
            drawn_N = seeded_hash(self.words_N, sampling.seed, f"facility/{picked}")
            open_N &= drawn_N < np.uint64(int(sampling.chance * 2**64))
        at_M = np.flatnonzero(open_N)
        at_B, boundary = best_rows(self.bound_N[at_M], self.words_N[at_M], min(width, len(at_M)))
        at_B = at_M[at_B]
        state_SB = np.stack([self.bound_N[at_B], self.found_N[at_B]])
        return Frontier(self.rows_N[at_B], self.words_N[at_B], state_SB, self.x_ND[at_B], boundary)

    def gain(self, row: int, x_D: np.ndarray) -> int:
        at_M, similar_M = self._raised(row, x_D)
        return int((similar_M - self.best_N[at_M]).clip(min=0).sum())

    def bounds(self, rows_B: np.ndarray, x_BD: np.ndarray) -> np.ndarray:
        return np.ceil(self.columns.sums_above(self.best_N / ONE, rows_B, x_BD) * ONE).astype(np.int64)

    def _raised(self, row: int, x_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of all rows that are more similar to a row than to any pick, and maybe of others; how similar."""
        at_M = np.flatnonzero(self.columns.may_exceed(self.best_N / ONE, row, x_D))
        return at_M, similarity_columns(self.x_ND, x_D[None], at_M)[:, 0].numpy().astype(np.int64)

    def settle(self, rows_B: np.ndarray, bounds_B: np.ndarray, picked: int, exact: bool) -> None:
        at_B = np.searchsorted(self.rows_N, rows_B).clip(max=len(self.rows_N) - 1)
        mine_B = self.rows_N[at_B] == rows_B
        at_M = at_B[mine_B]
        self.bound_N[at_M], self.found_N[at_M] = bounds_B[mine_B], picked
        if exact:
            self.tried_N[at_M] = picked

    def add(self, picks: Picks) -> None:
        self.add_rows(picks.rows, picks.x)

    def add_rows(self, rows_P: np.ndarray, x_PD: np.ndarray) -> None:
        at_P = np.searchsorted(self.rows_N, rows_P).clip(max=len(self.rows_N) - 1)
        self.alive_N[at_P[self.rows_N[at_P] == rows_P]] = False
        if len(rows_P) == 1:
            at_M, similar_M = self._raised(int(rows_P[0]), x_PD[0])
            self.best_N[at_M] = np.maximum(self.best_N[at_M], similar_M)
        else:
            np.maximum(self.best_N, largest_similarity(self.x_ND, x_PD), out=self.best_N)


class MergedFacility:
    """Several shards in one process, seen as one."""

    def __init__(self, shards: Sequence[ArrayFacility], each: Each = map) -> None:
        self.shards, self.each = list(shards), each

    def first(self) -> Picks:
        return best_pick(list(self.each(lambda shard: shard.first(), self.shards)))

    def blocks(self, num: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for shard in self.shards:
            yield from shard.blocks(num)

    def frontier(self, width: int, picked: int, sampling: Sampling | None) -> Frontier:
        wanted = share(width, len(self.shards))
        return Frontier.merge(list(self.each(lambda shard: shard.frontier(wanted, picked, sampling), self.shards)))

    def gain(self, row: int, x_D: np.ndarray) -> int:
        return sum(self.each(lambda shard: shard.gain(row, x_D), self.shards))

    def bounds(self, rows_B: np.ndarray, x_BD: np.ndarray) -> np.ndarray:
        return np.sum(list(self.each(lambda shard: shard.bounds(rows_B, x_BD), self.shards)), axis=0)

    def settle(self, rows_B: np.ndarray, bounds_B: np.ndarray, picked: int, exact: bool) -> None:
        for shard in self.shards:
            shard.settle(rows_B, bounds_B, picked, exact)

    def add(self, picks: Picks) -> None:
        self.add_rows(picks.rows, picks.x)

    def add_rows(self, rows_P: np.ndarray, x_PD: np.ndarray) -> None:
        list(self.each(lambda shard: shard.add_rows(rows_P, x_PD), self.shards))


def best_pick(found: Sequence[Picks]) -> Picks:
    """The best of several single picks."""
    return max(found, key=lambda pick: (int(pick.scores[0]), -int(pick.words[0])))


def facility_location(
    pool: FacilityPool, num: int, picked: int = 0, sampling: Sampling | None = None
) -> Iterator[Picks]:
    """Picks until there are `num`; yields them one at a time, with what each adds to f.

    Args:
        pool: holds what has been picked so far.
        num: picks wanted, the earlier ones included; at most the rows there are.
        picked: picks made already.
        sampling: None for lazy greedy over all rows.
    """
    primed = False
    for turn in range(picked, num):
        if turn and not primed and sampling is None:
            for rows_B, x_BD in pool.blocks(SCAN_ROWS):
                pool.settle(rows_B, pool.bounds(rows_B, x_BD), turn, exact=False)
            primed = True
        pick = next_pick(pool, turn, sampling) if turn else pool.first()
        pool.add(pick)
        yield pick


def next_pick(pool: FacilityPool, picked: int, sampling: Sampling | None) -> Picks:
    """The row that adds most, of the sample if there is one; of all rows when the sample is empty."""
    best: Picks | None = None
    width = FIRST_WIDTH
    while True:
        frontier = pool.frontier(width, picked, sampling)
        if best is None and not len(frontier.rows):
            sampling = None
            continue
        best = best_of(pool, frontier, picked, best)
        if beats(best, *frontier.boundary):
            return best
        width = min(MAX_WIDTH, 4 * width)


def best_of(pool: FacilityPool, frontier: Frontier, picked: int, best: Picks | None) -> Picks:
    """The row of a frontier that adds most, or the best found before.

    Of the rows that can be better than the best found, that of the largest bound is tried if its bound is of this
    pick; otherwise those of the largest bounds from earlier picks get new ones.
    """
    bounds_B, found_B = frontier.state.copy()
    while True:
        hopeful_B = bounds_B > LEAST
        if best is not None:
            score, word = int(best.scores[0]), best.words[0]
            hopeful_B &= (bounds_B > score) | ((bounds_B == score) & (frontier.words < word))
        open_M = np.flatnonzero(hopeful_B)
        if best is not None and not len(open_M):
            return best
        open_M = open_M[np.lexsort((frontier.words[open_M], -bounds_B[open_M]))]
        stale_M = open_M[found_B[open_M] < picked][:BOUND_ROWS]
        if found_B[open_M[0]] < picked:
            rows_M = frontier.rows[stale_M]
            bounds_B[stale_M], found_B[stale_M] = pool.bounds(rows_M, frontier.x[stale_M]), picked
            pool.settle(rows_M, bounds_B[stale_M], picked, exact=False)
        else:
            at = open_M[:1]
            gain = np.array([pool.gain(int(frontier.rows[at[0]]), frontier.x[at[0]])])
            pool.settle(frontier.rows[at], gain, picked, exact=True)
            bounds_B[at] = LEAST  # not again
            found = Picks(frontier.rows[at], frontier.words[at], gain, frontier.x[at])
            best = found if best is None else best_pick([best, found])


def beats(best: Picks, bound: int, word: int) -> bool:
    """Whether a single pick is at least as good as any row of that bound and word."""
    return (int(best.scores[0]), -int(best.words[0])) >= (bound, -word)


def check_rows(rows: int, max_rows: int, what: str, fix: str) -> None:
    """Refuses sets for which one pass of N^2 products would take too long.

    Raises:
        ConfigError: E222, with the way out.
    """
    if rows > max_rows:
        raise ConfigError(
            f"{what} has {rows:,} rows; max_rows is {max_rows:,}",
            why=f"it takes at least {rows:,}^2 = {float(rows) ** 2:.1e} inner products",
            fix=fix,
            code="E222",
        )
