"""Where K-Means starts: k-means++ (Arthur and Vassilvitskii 2007) on the distinct rows of a sample.

The same sample in the same order gives the same centroids; it knows nothing of shards or of what follows.
"""

# Shape letters: D dimensions, K clusters, M rows sampled, B candidates, T rows of a tile.

from __future__ import annotations

import numpy as np

from engine.algorithms.similarity import float32_tiles

CANDIDATES = 64  # proposals drawn per pass over the sample


def unit_rows(x_KD: np.ndarray, fallback_KD: np.ndarray) -> np.ndarray:
    """Rows divided by their norm, as float32; a zero row is replaced by the fallback's."""
    norms_K1 = np.sqrt((x_KD * x_KD).sum(axis=1, keepdims=True))
    return np.where(norms_K1 > 0, x_KD / np.where(norms_K1 > 0, norms_K1, 1.0), fallback_KD).astype(np.float32)


def initial_centroids(sample_MD: np.ndarray, k: int, seed: int) -> np.ndarray:
    """k-means++ on the distinct rows of the sample, weighted by how often each occurs.

    The next centroid is drawn with probability proportional to d(x) = 1 - max similarity to those chosen, half the
    squared distance of unit vectors. To pass over the sample once per many draws, candidates are drawn from an older d
    and accepted with probability d_now / d_old: exactly the same distribution, as d only falls.

    Args:
        sample_MD: (M, D) float16 in an order that does not depend on the sharding.
        k: centroids wanted.
        seed: of the draws.

    Returns:
        (K, D) float32 unit rows, K = min(k, distinct rows).
    """
    packed_M = np.ascontiguousarray(sample_MD + np.float16(0)).view(f"V{2 * sample_MD.shape[1]}").ravel()  # -0 -> 0
    _, first, weights = np.unique(packed_M, return_index=True, return_counts=True)
    order = np.argsort(first)
    rows_MD, weight_M = sample_MD[first[order]], weights[order].astype(np.float64)
    chosen = list(range(len(rows_MD))) if len(rows_MD) <= k else _plus_plus(rows_MD, weight_M, k, seed)
    centroids_KD = rows_MD[chosen].astype(np.float64)
    return unit_rows(centroids_KD, centroids_KD)


def _plus_plus(rows_MD: np.ndarray, weight_M: np.ndarray, k: int, seed: int) -> list[int]:
    """Positions of k of the M > k distinct rows."""
    rng = np.random.Generator(np.random.PCG64(seed))
    distance_M = np.full(len(rows_MD), 2.0)  # the largest there is: every row is equally far before the first draw
    chosen: list[int] = []
    while len(chosen) < k:
        cumulative_M = np.cumsum(weight_M * distance_M)
        if cumulative_M[-1] <= 0:  # what is left coincides with a centroid in float32: take the sample's own order
            return chosen + np.setdiff1d(np.arange(len(rows_MD)), chosen)[: k - len(chosen)].tolist()
        drawn_B = np.searchsorted(cumulative_M, rng.random(CANDIDATES) * cumulative_M[-1], side="right")
        drawn_B = np.minimum(drawn_B, np.flatnonzero(distance_M)[-1])  # rounding may step past the last row
        accept_B = rng.random(CANDIDATES)
        apart_BM = _distances(rows_MD, drawn_B)
        taken: list[int] = []
        for b, row in enumerate(drawn_B.tolist()):
            now = min(distance_M[row], apart_BM[taken, row].min(initial=2.0))
            if len(chosen) < k and row not in chosen and accept_B[b] * distance_M[row] < now:
                taken.append(b)
                chosen.append(row)
        distance_M = np.minimum(distance_M, apart_BM[taken].min(axis=0))
        distance_M[chosen] = 0.0
    return chosen


def _distances(rows_MD: np.ndarray, picked_B: np.ndarray) -> np.ndarray:
    """(B, M) float32 of max(0, 1 - inner product) with the picked rows."""
    import torch

    picked_BD = torch.from_numpy(rows_MD[picked_B].astype(np.float32))
    apart_BM = np.empty((len(picked_B), len(rows_MD)), np.float32)
    for start, stop, tile_TD in float32_tiles(rows_MD):
        np.subtract(1.0, torch.mm(picked_BD, tile_TD.T)[:, : stop - start].numpy(), out=apart_BM[:, start:stop])
    return np.maximum(apart_BM, 0.0, out=apart_BM)
