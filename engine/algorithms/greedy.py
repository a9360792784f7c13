"""Greedy selection by a score that every pick changes; the scores are in engine/algorithms/greedy_rules.py.

`greedy` is written once, over a small protocol: one array, several in process, or a group of members. Each shard keeps
a few integers per row. A pick needs no pass of its own: the shards offer their best rows, a *frontier*, and a block of
picks is made among those. A pick is certain for as long as no other row can be better, since a pick raises a score by
at most `drift`; beyond that the block is a guess, which the shards check in one pass and cut where another row would
have been picked. The result is that of one pick at a time. Scores are integers from exact similarities (`exact`) and
ties go to the smaller id word, so the result is the same for any number of shards, any order of the rows, any size of
the frontier and any length of the guess.
"""

# Shape letters: N rows of a shard, D dimensions, S integers kept per row, P picks, K seeds, B rows of a frontier,
# T rows of a tile, M rows among them.

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from engine.algorithms.exact import BLOCK_COLUMNS, ONE, one_thread, similarity_columns, similarity_tiles
from engine.algorithms.greedy_rules import NO_WORD, Rule

if TYPE_CHECKING:
    import torch

CHECKED_ROWS = 65_536  # of a shard, checked at a time: with 64 picks their similarities take 32 MiB
LEAST_GUESSES = 16
FIRST_COLUMNS = 32
LEAST = int(np.iinfo(np.int64).min)


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

    def first(self, count: int) -> Picks:
        """At most `count` of them."""
        return Picks(self.rows[:count], self.words[:count], self.scores[:count], self.x[:count])

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

    def count_right(self, picks: Picks) -> int:
        """How many of these, in order, are those that one pick at a time would make of these rows or better ones."""
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

    def count_right(self, picks: Picks) -> int:
        scores_N = np.where(self.alive_N, self.rule.scores(self.state_SN, self.picked), LEAST)
        least = (picks.scores - self.rule.drift * np.arange(len(picks.rows))).min()
        near_M = np.flatnonzero(scores_N >= least)  # no other row can be better than any of the picks
        count = len(picks.rows)
        for low in range(0, len(near_M), CHECKED_ROWS):
            count = self._count_right(near_M[low : low + CHECKED_ROWS], picks.first(count))
        return count

    def _count_right(self, at_M: np.ndarray, picks: Picks) -> int:
        """Goes through the picks with some of the rows, to where one of them is better than the pick."""
        state_SM, words_M = self.state_SN[:, at_M], self.words_N[at_M]
        place_P = np.searchsorted(self.rows_N[at_M], picks.rows).clip(max=len(at_M) - 1)
        mine_P = self.rows_N[at_M][place_P] == picks.rows
        similar_MP = similarity_columns(self.x_ND, picks.x, at_M)
        gone_M = np.zeros(len(at_M), dtype=bool)
        for p, (word, score) in enumerate(zip(picks.words.tolist(), picks.scores.tolist(), strict=True)):
            scores_M = self.rule.scores(state_SM, self.picked + p)
            scores_M[gone_M] = LEAST
            most = scores_M.max()
            if most > score or (most == score and words_M[scores_M == score].min() < word):
                return p
            if mine_P[p]:
                gone_M[place_P[p]] = True
            self.rule.add(state_SM, similar_MP[:, p : p + 1])
        return len(picks.rows)


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

    def count_right(self, picks: Picks) -> int:
        return min(self.each(lambda shard: shard.count_right(picks), self.shards))


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
    guesses = rule.guesses
    while picked < num:
        frontier = pool.frontier(rule.width)
        if not len(frontier.rows):
            return
        block, certain = pick_block(frontier, rule, picked, min(num, rule.pause(picked)), guesses)
        if len(block.rows) > certain:
            right = max(certain, pool.count_right(block))
            guesses = min(rule.guesses, 2 * max(right - certain, LEAST_GUESSES))
            block = block.first(right)
        pool.add(block)
        yield block
        picked += len(block.rows)


def pick_block(frontier: Frontier, rule: Rule, picked: int, end: int, guesses: int) -> tuple[Picks, int]:
    """Picks among the rows of a frontier as if there were no others, at most up to `end`; at least one.

    Returns:
        the picks, and how many of them are certain: after t picks no row that is left out scores above the boundary by
        more than t times the rule's drift. At most `guesses` are not.
    """
    state_SB = frontier.state.copy()
    columns = Columns(frontier)
    taken: list[int] = []
    found: list[int] = []
    bound, bound_word = frontier.boundary
    certain, room = 0, min(end - picked, len(frontier.rows))
    while len(taken) < room:
        scores_B = rule.scores(state_SB, picked + len(taken))
        scores_B[taken] = LEAST
        equal = np.flatnonzero(scores_B == scores_B.max())
        best = int(equal[np.argmin(frontier.words[equal])])
        score, word = int(scores_B[best]), int(frontier.words[best])
        limit = bound + len(taken) * rule.drift
        if certain == len(taken):
            if score > limit or (score == limit and word <= bound_word):
                certain += 1
            else:
                room = min(room, certain + guesses)
                if certain == room:
                    break
        taken.append(best)
        found.append(score)
        rule.add(state_SB, columns.of(best, scores_B))
    at = np.array(taken)
    picks = Picks(frontier.rows[at], frontier.words[at], np.array(found, dtype=np.int64), frontier.x[at])
    return picks, certain


class Columns:
    """Similarities of all rows of a frontier to one of them, made ahead for those that will probably be picked."""

    def __init__(self, frontier: Frontier) -> None:
        import torch

        self.x_BD = torch.from_numpy(frontier.x.astype(np.float64))
        self.made: dict[int, torch.Tensor] = {}
        self.known_B = np.zeros(len(frontier.rows), dtype=bool)

    def of(self, best: int, scores_B: np.ndarray) -> torch.Tensor:
        """(B, 1) float64 whole numbers, in units of 2^-32.

        Args:
            scores_B: (B,) int64 by which `best` is chosen.
        """
        if best not in self.made:
            known = int(self.known_B.sum())
            num = min(max(FIRST_COLUMNS, known), len(scores_B) - known)  # twice as many as before
            likely = np.argpartition(np.where(self.known_B, LEAST, scores_B), -num)[-num:].tolist()
            likely = list({best: None} | dict.fromkeys(likely))
            with one_thread():
                similar_BM = (self.x_BD @ (self.x_BD[likely].T * ONE)).round_()
            self.made |= {b: similar_BM[:, m : m + 1] for m, b in enumerate(likely)}
            self.known_B[likely] = True
        return self.made.pop(best)
