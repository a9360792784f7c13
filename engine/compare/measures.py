"""How alike two selections are, and how far a selection is from its pool. Pure functions on arrays."""

# Shape letters: N rows of the pool, M methods, K bins or groups, I rows.

from __future__ import annotations

import numpy as np


def jaccard(chosen_MN: np.ndarray) -> np.ndarray:
    """Rows two selections share, as a share of the rows of either: |A and B| / |A or B|.

    Args:
        chosen_MN: (M, N) bool.

    Returns:
        (M, M) float64; two empty selections are equal.
    """
    shared_MM = shared_rows(chosen_MN)
    sizes_M = np.diag(shared_MM)
    either_MM = sizes_M[:, None] + sizes_M[None, :] - shared_MM
    return np.where(either_MM > 0, shared_MM / np.maximum(either_MM, 1), 1.0)


def shared_rows(chosen_MN: np.ndarray) -> np.ndarray:
    """(M, M) int64 numbers of rows that two selections share."""
    return np.array([[np.count_nonzero(a & b) for b in chosen_MN] for a in chosen_MN], dtype=np.int64)


def chance_jaccard(sizes_M: np.ndarray, pool_rows: int) -> np.ndarray:
    """Jaccard of the expected overlap of independent random selections of these sizes: ab/N of a + b - ab/N rows.

    Args:
        sizes_M: (M,) rows of each selection.
        pool_rows: N.

    Returns:
        (M, M) float64.
    """
    sizes_M = np.asarray(sizes_M, dtype=np.float64)
    shared_MM = np.outer(sizes_M, sizes_M) / max(1, pool_rows)
    either_MM = sizes_M[:, None] + sizes_M[None, :] - shared_MM
    return np.where(either_MM > 0, shared_MM / np.where(either_MM > 0, either_MM, 1.0), 1.0)


def spearman(a_I: np.ndarray, b_I: np.ndarray) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank; None where it is not defined.

    Args:
        a_I, b_I: (I,) finite numbers of the same rows.
    """
    if len(a_I) < 3:
        return None
    a, b = mean_ranks(a_I), mean_ranks(b_I)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float((a @ b) / scale) if scale > 0 else None


def mean_ranks(values_I: np.ndarray) -> np.ndarray:
    """(I,) float64 ranks from 0, equal values sharing the mean of theirs."""
    _, group_I, counts_K = np.unique(values_I, return_inverse=True, return_counts=True)
    ends_K = np.cumsum(counts_K)
    return ((2 * ends_K - counts_K - 1) / 2.0)[group_I]


def divergence(counts_K: np.ndarray, pool_counts_K: np.ndarray) -> float:
    """Jensen-Shannon divergence of two distributions in bits: 0 when equal, 1 when they share nothing (Lin 1991).

    Args:
        counts_K, pool_counts_K: (K,) rows per bin or group, each with at least one row.
    """
    p_K, q_K = counts_K / counts_K.sum(), pool_counts_K / pool_counts_K.sum()
    m_K = (p_K + q_K) / 2

    def bits(x_K: np.ndarray) -> float:
        inside = x_K > 0
        return float(np.sum(x_K[inside] * np.log2(x_K[inside] / m_K[inside])))

    return max(0.0, (bits(p_K) + bits(q_K)) / 2)


def tenths(values_N: np.ndarray) -> np.ndarray:
    """(N,) int64 bins of about equal size: the deciles of the pool, fewer where values repeat."""
    return np.searchsorted(decile_edges(values_N), values_N, side="left")


def decile_edges(values_N: np.ndarray) -> np.ndarray:
    """The upper ends of all tenths but the last, each an observed value; fewer than nine where values repeat."""
    return np.unique(np.quantile(values_N, np.arange(1, 10) / 10, method="inverted_cdf"))


def neighbours_first(similar_MM: np.ndarray) -> list[int]:
    """An order of the methods in which similar ones stand together: each next to the most similar one that is left."""
    left = list(range(len(similar_MM)))
    totals = similar_MM.sum(axis=0)
    order = [left.pop(int(np.argmin(totals)))] if left else []
    while left:
        order.append(left.pop(int(np.argmax([similar_MM[order[-1], other] for other in left]))))
    return order
