"""Which rows the baselines take: random, and random in equal numbers from every group. By hash, so any order will do.

The longest responses are `ranking.top_rows` of their lengths.
"""

# Shape letters: N rows, K groups.

from __future__ import annotations

import numpy as np

from engine.algorithms.sampling import cluster_quotas, smallest_per_group
from engine.schema import seeded_hash


def random_draw(words_N: np.ndarray, seed: int, num: int) -> np.ndarray:
    """Positions of the `num` smallest hashes of (seed, id), smallest first.

    Choosing again among the choices of several shards gives the choice over all rows.

    Args:
        words_N: (N,) uint64 from `schema.id_words`.
        seed: of the run.
        num: rows wanted; all when there are fewer.

    Returns:
        (min(num, N),) int64.
    """
    return np.argsort(seeded_hash(words_N, seed, "random"), kind="stable")[:num]


def random_draw_until(words_N: np.ndarray, amounts_N: np.ndarray, seed: int, total: int) -> np.ndarray:
    """As many rows of `random_draw` as it takes for their amounts to reach a total.

    Args:
        words_N: (N,) uint64 from `schema.id_words`.
        amounts_N: (N,) int64, what every row adds, such as its characters; not negative.
        seed: of the run.
        total: to reach; the row that reaches it is the last. All rows when they add up to less.

    Returns:
        (D,) int64 positions in the order of their hash, at least one.
    """
    order_N = random_draw(words_N, seed, len(words_N))
    return order_N[: np.searchsorted(np.cumsum(amounts_N[order_N]), total) + 1]


def balanced_draw(words_N: np.ndarray, groups_N: np.ndarray, seed: int, num: int) -> np.ndarray:
    """Positions of as many rows from every group, as far as they last, in the order of their hash.

    Args:
        words_N: (N,) uint64 from `schema.id_words`.
        groups_N: (N,) integers from 0; leftovers of the equal shares go to the lowest groups.
        seed: of the run.
        num: rows wanted.

    Returns:
        (min(num, N),) int64.
    """
    keys_N = seeded_hash(words_N, seed, "balanced_random")
    picked = smallest_per_group(groups_N, keys_N, cluster_quotas(np.bincount(groups_N), num, "equal"))
    return picked[np.argsort(keys_N[picked], kind="stable")]
