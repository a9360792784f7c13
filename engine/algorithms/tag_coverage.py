"""Rows that cover many tags: the complexity-first diverse sampling of InsTag (Lu et al., ICLR 2024, arXiv 2308.07074).

As published: walk the rows from the most tags to the fewest, accept a row that has a tag no accepted row has yet, and
when the walk ends start again with no tag covered, on the rows that are left, until enough are accepted.

What is computed: a row is accepted in a walk exactly when it is the first row left with one of its tags. (If so, no
accepted row has that tag. If not, every tag of the row is on an earlier row that is left, which was either accepted or
had all its tags covered.) So a walk is the set of the first rows of all tags' lists: it costs one look at each tag
instead of one at each tag of each row, and every entry of a list is passed once, whatever the number of walks.

The file knows nothing of where tags come from.
"""

# Shape letters: N rows, T tags of all rows one after another, G distinct tags, M rows accepted.

from __future__ import annotations

import numpy as np

from engine.algorithms.ragged import sorted_set
from engine.algorithms.ranking import top_rows


def tag_coverage(
    tags_T: np.ndarray, starts_N1: np.ndarray, complexity_N: np.ndarray, words_N: np.ndarray, num: int
) -> np.ndarray:
    """Positions of the rows that are accepted.

    Args:
        tags_T: (T,) integers from 0, the tags of row n at starts_N1[n] : starts_N1[n + 1]; a repeated one counts once.
        starts_N1: (N + 1,) int64, ascending from 0 to T.
        complexity_N: (N,) what rows are walked by, largest first; as published, the number of tags.
        words_N: (N,) uint64 from `schema.id_words`; equal complexity goes by ascending id word.
        num: rows wanted.

    Returns:
        (M,) int64 in the order of acceptance; M is num, or less when fewer rows have a tag.

    Raises:
        StepError: a complexity is not finite.
    """
    order_N = top_rows(complexity_N, words_N, len(words_N))
    rank_N = np.empty(len(order_N), dtype=np.int64)
    rank_N[order_N] = np.arange(len(order_N))
    lists_T, ends_G = _lists(tags_T, np.repeat(rank_N, np.diff(starts_N1)))
    at_G = np.concatenate([[0], ends_G[:-1]])
    live = np.flatnonzero(at_G < ends_G)
    taken_N = np.zeros(len(order_N), dtype=bool)
    walks, left = [np.empty(0, dtype=np.int64)], num
    while left > 0 and len(live):
        firsts = sorted_set(lists_T[at_G[live]])[:left]
        taken_N[firsts] = True
        walks.append(firsts)
        left -= len(firsts)
        moving = live
        while len(moving):  # to the first row of each list that is left
            moving = moving[taken_N[lists_T[at_G[moving]]]]
            at_G[moving] += 1
            moving = moving[at_G[moving] < ends_G[moving]]
        live = live[at_G[live] < ends_G[live]]
    return order_N[np.concatenate(walks)]


def _lists(tags_T: np.ndarray, ranks_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(T,) uint32 ranks of the rows of tag 0, ascending, then of tag 1 and so on, and (G,) where each list ends."""
    keys_T = tags_T.astype(np.uint64) << np.uint64(32)
    keys_T |= ranks_T.astype(np.uint64)
    keys_T.sort()
    return keys_T.astype(np.uint32), np.cumsum(np.bincount(tags_T, minlength=1))


def coverage(tags_T: np.ndarray, starts_N1: np.ndarray, rows_M: np.ndarray) -> tuple[float, float]:
    """InsTag's two figures of a selection: share of all tags that it has, and mean number of tags of its rows.

    Args:
        tags_T, starts_N1: as for `tag_coverage`.
        rows_M: (M,) positions.
    """
    counts_N = np.diff(starts_N1)
    inside_N = np.zeros(len(counts_N), dtype=bool)
    inside_N[rows_M] = True
    covered = np.count_nonzero(np.bincount(tags_T[np.repeat(inside_N, counts_N)]))
    return covered / max(np.count_nonzero(np.bincount(tags_T)), 1), float(counts_N[rows_M].mean()) if len(
        rows_M
    ) else 0.0
