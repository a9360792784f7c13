"""How many rows to draw from each cluster, and which: the smallest seeded hashes of their ids.

The paper (arXiv 2410.13464) does not say how V is drawn from the clusters; both usual rules are here. Because the draw
is by hash, each shard offers its own smallest ones and the merged choice equals that of one shard holding every row.
The file knows nothing of vectors or of how clusters were made.
"""

# Shape letters: N rows of a shard, K clusters, M rows chosen.

from __future__ import annotations

from typing import Literal

import numpy as np

from engine.errors import ConfigError
from engine.schema import seeded_hash

Rule = Literal["equal", "proportional"]


def cluster_quotas(counts_K: np.ndarray, total: int, rule: Rule, least: int = 0) -> np.ndarray:
    """Rows to draw from each cluster, summing to min(total, sum(counts_K)).

    "equal" fills every cluster to the same level, the overflow of small ones going to the others (waterfilling; rare
    topics weigh more). "proportional" keeps the distribution (largest remainders). Leftovers go to the lowest cluster.

    Args:
        counts_K: (K,) int64 rows there are, none negative.
        total: rows wanted, not negative.
        rule: "equal" or "proportional".
        least: with "proportional": rows that a cluster of a smaller share gives nevertheless, as far as it has them;
            nothing where even these are more than `total`.

    Returns:
        (K,) int64, each at most its count.

    Raises:
        ConfigError: an unknown rule, or a negative number.
    """
    counts_K = np.asarray(counts_K, dtype=np.int64)
    if total < 0 or (counts_K < 0).any():
        raise ConfigError(
            f"cannot draw {total} rows from clusters of {counts_K.min(initial=0)} to {counts_K.max()} rows"
        )
    if rule not in ("equal", "proportional"):
        raise ConfigError(f"unknown rule {rule!r} for drawing from clusters", fix="use equal or proportional")
    available = int(counts_K.sum())
    if total >= available:
        return counts_K.copy()
    least_K = np.minimum(counts_K, least)
    if rule == "proportional" and 0 < least_K.sum() <= total:
        return _with_least(counts_K, total, least_K)
    if rule == "equal":
        low, high = 0, int(counts_K.max())  # the highest level whose quotas fit in `total`
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if np.minimum(counts_K, middle).sum() <= total else (low, middle - 1)
        quotas_K = np.minimum(counts_K, low)
        leftover_order = np.flatnonzero(counts_K > low)
    else:
        exact = [total * count for count in counts_K.tolist()]  # Python integers: no overflow, no rounding
        quotas_K = np.array([product // available for product in exact], dtype=np.int64)
        remainders = [product % available for product in exact]
        leftover_order = sorted(range(len(exact)), key=lambda cluster: (-remainders[cluster], cluster))
    quotas_K[leftover_order[: total - int(quotas_K.sum())]] += 1
    return quotas_K


def _with_least(counts_K: np.ndarray, total: int, least_K: np.ndarray) -> np.ndarray:
    """Proportional quotas of at least `least_K`: clusters whose share is less get that, the others share the rest."""
    short_K = np.zeros(len(counts_K), dtype=bool)
    while True:
        left_K = np.where(short_K, 0, counts_K)
        quotas_K = np.where(
            short_K, least_K, cluster_quotas(left_K, total - int(least_K[short_K].sum()), "proportional")
        )
        more_K = quotas_K < least_K
        if not more_K.any():
            return quotas_K
        short_K |= more_K


def smallest_per_group(groups_N: np.ndarray, keys_N: np.ndarray, quotas_K: np.ndarray) -> np.ndarray:
    """Positions of the quota smallest keys of every group, ordered by group, then key.

    Args:
        groups_N: (N,) integers, the group of each row; negative rows are never chosen.
        keys_N: (N,) uint64, distinct (`schema.seeded_hash`).
        quotas_K: (K,) most rows per group; groups are below K.

    Returns:
        (M,) int64. Choosing again among the choices of several shards gives the choice over all rows.
    """
    order_N = np.lexsort((keys_N, groups_N))
    order_N = order_N[np.searchsorted(groups_N[order_N], 0) :]
    groups = groups_N[order_N]
    place = np.arange(len(groups)) - np.searchsorted(groups, groups)
    return order_N[place < np.asarray(quotas_K)[groups]]


def weighted_keys(words_N: np.ndarray, weights_N: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """Keys whose largest are a sample without replacement, each draw in proportion to the weights of what is left.

    log(u) / w with u a uniform number by hash: the order of u^(1/w) (Efraimidis and Spirakis 2006).

    Args:
        words_N: (N,) uint64 from `schema.id_words`.
        weights_N: (N,) float64, above 0.
        seed, purpose: of the draw.

    Returns:
        (N,) float64, finite.
    """
    uniform_N = ((seeded_hash(words_N, seed, purpose) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return np.log(uniform_N) / weights_N


def largest_per_group(
    groups_N: np.ndarray, values_N: np.ndarray, tie_words_N: np.ndarray, quotas_K: np.ndarray
) -> np.ndarray:
    """Positions of the quota largest values of every group, ordered by group, then value; equal values by id word.

    Args:
        groups_N: (N,) integers in [0, K).
        values_N: (N,) finite float64.
        tie_words_N: (N,) uint64 from `schema.id_words`.
        quotas_K: (K,) most rows per group.

    Returns:
        (M,) int64. Choosing again among the choices of several shards gives the choice over all rows.
    """
    order_N = np.lexsort((tie_words_N, -values_N, groups_N))
    groups = groups_N[order_N]
    place = np.arange(len(groups)) - np.searchsorted(groups, groups)
    return order_N[place < np.asarray(quotas_K)[groups]]
