"""Greedy selection by a score that every pick changes: k-center, herding, and the bins of Dataset Quantization.

- k-center, farthest point first (Gonzalez 1985; Sener and Savarese 2018): the next pick is the row whose largest
  similarity to the seeds and picks is smallest.
- Herding (Welling 2009; Chen, Welling and Smola 2010): the next pick x minimises |mean(D) - mean(S + x)|.
- Graph-cut bins (Dataset Quantization, Zhou et al. 2023, arXiv 2308.10524): bin after bin, the next pick maximises
  sum_D x.p - 2 sum_S x.p, where D are the rows no earlier bin took and S the bin's picks. Linear in x: no N x N matrix.

`greedy` is written once, over a small protocol: one array, several in process, or a group of members. Each shard keeps
a few integers per row. A pick needs no pass of its own: the shards offer their best rows, a *frontier*, and picks are
made among those for as long as no other row can be better, since a pick raises a score by at most `drift`. The result
is that of one pick at a time. Scores are integers from exact similarities (`exact`) and ties go to the smaller id
word, so the result is the same for any number of shards, any order of the rows and any size of the frontier.
"""

# Shape letters: N rows of a shard, D dimensions, S integers kept per row, P picks, K seeds, B rows of a frontier,
# T rows of a tile.

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from engine.algorithms.exact import BLOCK_COLUMNS, LARGEST, ONE, similarities, similarity_tiles, similarity_to_sum

if TYPE_CHECKING:
    import torch

NO_WORD = int(np.iinfo(np.uint64).max)
LEAST = int(np.iinfo(np.int64).min)


class Rule(Protocol):
    """A greedy method: what is kept per row, and how picks change it."""

    @property
    def width(self) -> int:
        """Rows of a frontier: many where picks change scores slowly, so that many picks are made among them."""
        ...

    @property
    def drift(self) -> int:
        """Most that one pick can raise the score of another row."""
        ...

    @property
    def forgets_picked(self) -> bool:
        """Whether nothing is asked of a row once it is picked, so that it need not be kept up to date."""
        ...

    def start(self, x_ND: np.ndarray) -> np.ndarray:
        """(S, N) int64 before any pick."""
        ...

    def add(self, state_ST: np.ndarray, similar_TP: torch.Tensor) -> None:
        """Takes P picks into account, in place. Similarities are whole numbers in units of 2^-32."""
        ...

    def scores(self, state_SN: np.ndarray, picked: int) -> np.ndarray:
        """(N,) int64, the larger the better, after `picked` picks."""
        ...

    def pause(self, picked: int) -> int:
        """The number of picks, above `picked`, at which `fold` is called."""
        ...

    def fold(self, state_SN: np.ndarray) -> None: ...


@dataclass(frozen=True)
class KCenter:
    """Keeps the largest similarity to a seed or pick; -2 before there is any."""

    width: int = 1024
    drift: int = 0
    forgets_picked: bool = False

    def start(self, x_ND: np.ndarray) -> np.ndarray:
        return np.full((1, len(x_ND)), -2 * ONE)

    def add(self, state_ST: np.ndarray, similar_TP: torch.Tensor) -> None:
        np.maximum(state_ST[0], similar_TP.amax(dim=1).numpy().astype(np.int64), out=state_ST[0])

    def scores(self, state_SN: np.ndarray, picked: int) -> np.ndarray:
        return -state_SN[0]

    def pause(self, picked: int) -> int:
        return NO_WORD

    def fold(self, state_SN: np.ndarray) -> None:
        """Never called."""


@dataclass(frozen=True)
class Herding:
    """Keeps x.mean(D), the sum of x.s over the picks, and x.x.

    |mean(D) - (sum_S + x) / (n + 1)|^2 is smallest where 2 (n + 1) x.mean(D) - 2 x.sum_S - x.x is largest.

    Args:
        total_D: (D,) float64, the sum of all rows of the pool.
        rows: how many those are.
    """

    total_D: np.ndarray
    rows: int
    width: int = 64
    drift: int = int(4 * LARGEST * ONE)
    forgets_picked: bool = False

    def start(self, x_ND: np.ndarray) -> np.ndarray:
        own_N = np.empty(len(x_ND), dtype=np.int64)
        for start in range(0, len(x_ND), BLOCK_COLUMNS):
            piece = x_ND[start : start + BLOCK_COLUMNS].astype(np.float64)
            own_N[start : start + BLOCK_COLUMNS] = np.rint((piece * piece).sum(axis=1) * ONE)
        mean_N = similarity_to_sum(x_ND, self.total_D, self.rows)
        return np.stack([mean_N, np.zeros_like(mean_N), own_N])

    def add(self, state_ST: np.ndarray, similar_TP: torch.Tensor) -> None:
        state_ST[1] += similar_TP.sum(dim=1).numpy().astype(np.int64)

    def scores(self, state_SN: np.ndarray, picked: int) -> np.ndarray:
        return 2 * (picked + 1) * state_SN[0] - 2 * state_SN[1] - state_SN[2]

    def pause(self, picked: int) -> int:
        return NO_WORD

    def fold(self, state_SN: np.ndarray) -> None:
        """Never called."""


@dataclass(frozen=True)
class GraphCut:
    """Keeps sum_D x.p and sum_S x.p of the bin being filled.

    Args:
        total_D: (D,) float64, the sum of all rows of the pool.
        bin_rows: picks per bin.
    """

    total_D: np.ndarray
    bin_rows: int
    width: int = 4096
    drift: int = int(2 * LARGEST * ONE)
    forgets_picked: bool = True

    def start(self, x_ND: np.ndarray) -> np.ndarray:
        left_N = similarity_to_sum(x_ND, self.total_D)
        return np.stack([left_N, np.zeros_like(left_N)])

    def add(self, state_ST: np.ndarray, similar_TP: torch.Tensor) -> None:
        state_ST[1] += similar_TP.sum(dim=1).numpy().astype(np.int64)

    def scores(self, state_SN: np.ndarray, picked: int) -> np.ndarray:
        return state_SN[0] - 2 * state_SN[1]

    def pause(self, picked: int) -> int:
        return (picked // self.bin_rows + 1) * self.bin_rows

    def fold(self, state_SN: np.ndarray) -> None:
        """The bin is full: its rows leave D."""
        state_SN[0] -= state_SN[1]
        state_SN[1] = 0


@dataclass(frozen=True)
class Picks:
    """Rows in the order in which they were picked, as parallel arrays."""

    rows: np.ndarray  # int64
    words: np.ndarray  # uint64
    scores: np.ndarray  # int64, when they were picked
    x: np.ndarray  # (P, D) float16

    def after(self, count: int) -> Picks:
        """Without the first `count`."""
        return Picks(self.rows[count:], self.words[count:], self.scores[count:], self.x[count:])

    @staticmethod
    def join(blocks: Iterable[Picks]) -> Picks:
        """Blocks as one; there is at least one."""
        found = list(blocks)
        return Picks(
            *(np.concatenate([getattr(block, name) for block in found]) for name in Picks.__dataclass_fields__)
        )


@dataclass(frozen=True)
class Frontier:
    """The best rows of a shard, or of all; none left out is better than `boundary`, a (score, word)."""

    rows: np.ndarray  # int64
    words: np.ndarray  # uint64
    state: np.ndarray  # (S, B) int64
    x: np.ndarray  # (B, D) float16
    boundary: tuple[int, int]

    @staticmethod
    def merge(shards: Sequence[Frontier]) -> Frontier:
        """Of all shards; its boundary is the best of theirs."""
        names = ("rows", "words", "x")
        rows, words, x_BD = (np.concatenate([getattr(shard, name) for shard in shards]) for name in names)
        state_SB = np.concatenate([shard.state for shard in shards], axis=1)
        best = max(shards, key=lambda shard: (shard.boundary[0], -shard.boundary[1])).boundary
        return Frontier(rows, words, state_SB, x_BD, best)


class GreedyPool(Protocol):
    """The rows to pick from: one shard, several in process, or a group of members."""

    def frontier(self, width: int) -> Frontier:
        """About `width` of the best rows that are not picked."""
        ...

    def add(self, picks: Picks) -> None:
        """Takes picks out, and into account. Their number never steps over the rule's pause."""
        ...


class ArrayGreedy:
    """One shard in memory.

    Args:
        x_ND: (N, D) float16 unit vectors (`exact.check_units`).
        rows_N: (N,) int64 row numbers, ascending.
        words_N: (N,) uint64 from `schema.id_words`.
        rule: the method.
        seeds_KD: (K, D) float16 unit vectors that count as picked before the first pick.
    """

    def __init__(
        self,
        x_ND: np.ndarray,
        rows_N: np.ndarray,
        words_N: np.ndarray,
        rule: Rule,
        seeds_KD: np.ndarray | None = None,
    ) -> None:
        self.x_ND, self.rows_N, self.words_N, self.rule = x_ND, rows_N, words_N, rule
        self.alive_N = np.ones(len(x_ND), dtype=bool)
        self.state_SN = rule.start(x_ND)
        self.picked = 0
        if seeds_KD is not None:
            self._update(seeds_KD)

    def add(self, picks: Picks) -> None:
        self.add_rows(picks.rows, picks.x)

    def add_rows(self, rows_P: np.ndarray, x_PD: np.ndarray) -> None:
        """As `add`, for any number of picks."""
        at_P = np.searchsorted(self.rows_N, rows_P).clip(max=len(self.rows_N) - 1)
        self.alive_N[at_P[self.rows_N[at_P] == rows_P]] = False
        done = 0
        while done < len(rows_P):
            count = min(len(rows_P) - done, self.rule.pause(self.picked) - self.picked)
            self._update(x_PD[done : done + count])
            self.picked += count
            done += count
            if self.picked == self.rule.pause(self.picked - 1):
                self.rule.fold(self.state_SN)

    def _update(self, x_PD: np.ndarray) -> None:
        alive_M = None
        if self.rule.forgets_picked and 4 * self.alive_N.sum() < 3 * len(self.alive_N):
            alive_M = np.flatnonzero(self.alive_N)  # below that, picking rows out costs more than passing over all
        for low in range(0, len(x_PD), BLOCK_COLUMNS):
            for start, stop, similar_TP in similarity_tiles(self.x_ND, x_PD[low : low + BLOCK_COLUMNS], alive_M):
                if alive_M is None:
                    self.rule.add(self.state_SN[:, start:stop], similar_TP)
                else:
                    state_ST = self.state_SN[:, alive_M[start:stop]]
                    self.rule.add(state_ST, similar_TP)
                    self.state_SN[:, alive_M[start:stop]] = state_ST

    def frontier(self, width: int) -> Frontier:
        scores_N = np.where(self.alive_N, self.rule.scores(self.state_SN, self.picked), LEAST)
        at_B, boundary = best_rows(scores_N, self.words_N, min(width, int(self.alive_N.sum())))
        return Frontier(self.rows_N[at_B], self.words_N[at_B], self.state_SN[:, at_B], self.x_ND[at_B], boundary)


Each = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]  # `map`, or one that uses threads


class MergedGreedy:
    """Several shards in one process, seen as one."""

    def __init__(self, shards: Sequence[ArrayGreedy], each: Each = map) -> None:
        self.shards, self.each = list(shards), each

    def add(self, picks: Picks) -> None:
        self.add_rows(picks.rows, picks.x)

    def add_rows(self, rows_P: np.ndarray, x_PD: np.ndarray) -> None:
        list(self.each(lambda shard: shard.add_rows(rows_P, x_PD), self.shards))

    def frontier(self, width: int) -> Frontier:
        wanted = share(width, len(self.shards))
        return Frontier.merge(list(self.each(lambda shard: shard.frontier(wanted), self.shards)))


def share(width: int, shards: int) -> int:
    """How much of a frontier each shard offers."""
    return max(1, -(-width // shards))


def best_rows(scores_N: np.ndarray, words_N: np.ndarray, num: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Positions of the best rows, and what bounds the others.

    Args:
        scores_N: (N,) int64; the smallest int64 marks rows that may not be taken.
        words_N: (N,) uint64.
        num: rows wanted; at most as many as may be taken.

    Returns:
        (B,) positions of the num largest scores, ties by smaller word, best first; (score, word) of the last of them,
        or the worst there is when no other row may be taken.
    """
    nothing = (LEAST, NO_WORD)
    if not num:
        return np.empty(0, dtype=np.int64), nothing
    near = np.arange(len(scores_N))
    if num < len(scores_N):
        near = np.flatnonzero(scores_N >= np.partition(scores_N, -num)[-num])
    order_B = near[np.lexsort((words_N[near], -scores_N[near]))[:num]]
    last = order_B[-1]
    others = np.count_nonzero(scores_N > LEAST) > num
    return order_B, (int(scores_N[last]), int(words_N[last])) if others else nothing


def greedy(pool: GreedyPool, rule: Rule, num: int, picked: int = 0) -> Iterator[Picks]:
    """Picks until there are `num`, or no row is left; yields them in blocks.

    Args:
        pool: holds what has been picked so far.
        rule: the pool's rule.
        num: picks wanted, the earlier ones included.
        picked: picks made already.
    """
    while picked < num:
        frontier = pool.frontier(rule.width)
        if not len(frontier.rows):
            return
        block = pick_block(frontier, rule, picked, min(num, rule.pause(picked)))
        pool.add(block)
        yield block
        picked += len(block.rows)


def pick_block(frontier: Frontier, rule: Rule, picked: int, end: int) -> Picks:
    """As many picks, at most up to `end`, as can be made without asking the shards again; at least one.

    After t picks no row that is left out scores above the boundary by more than t times the rule's drift.
    """
    state_SB = frontier.state.copy()
    columns: dict[int, torch.Tensor] = {}
    taken: list[int] = []
    found: list[int] = []
    bound, bound_word = frontier.boundary
    while len(taken) < min(end - picked, len(frontier.rows)):
        scores_B = rule.scores(state_SB, picked + len(taken))
        scores_B[taken] = LEAST
        equal = np.flatnonzero(scores_B == scores_B.max())
        best = int(equal[np.argmin(frontier.words[equal])])
        score, word = int(scores_B[best]), int(frontier.words[best])
        limit = bound + len(taken) * rule.drift
        if score < limit or (score == limit and word > bound_word):
            break
        taken.append(best)
        found.append(score)
        if best not in columns:
            columns |= similar_columns(frontier.x, scores_B, best, {*columns, *taken}, len(taken))
        rule.add(state_SB, columns.pop(best))
    at = np.array(taken)
    return Picks(frontier.rows[at], frontier.words[at], np.array(found, dtype=np.int64), frontier.x[at])


def similar_columns(
    x_BD: np.ndarray, scores_B: np.ndarray, best: int, known: set[int], num: int
) -> dict[int, torch.Tensor]:
    """(B, 1) similarities to the best row, and to the next `num - 1`, which will probably be picked after it."""
    import torch

    likely = [best, *(b for b in np.argsort(scores_B, kind="stable")[::-1].tolist() if b not in known)][:num]
    similar_BM = torch.from_numpy(similarities(x_BD, x_BD[likely]).astype(np.float64))
    return {b: similar_BM[:, m : m + 1] for m, b in enumerate(likely)}
