"""Spherical K-Means over any number of shards, with the same bits whatever the sharding or the order of the rows.

Spherical Lloyd (Dhillon and Modha 2001) on unit vectors: a row belongs to the centroid of largest inner product, ties
to the lowest centroid; a centroid is the normalised sum of its rows. Initial centroids by k-means++ (Arthur and
Vassilvitskii 2007) on the rows of smallest seeded id hash. Empty clusters split the largest ones as in FAISS, but by
rank, without a random draw. Three facts give equal bits:

- float16 components in [-1, 1] are multiples of 2^-24, so float64 sums of up to 2^29 of them are exact in any order;
  that also lets a shard update its sums by the moved rows alone;
- products have a fixed number of rows, so the rounding of a row's similarity does not depend on its place;
- inertia is summed as an integer.

Bits are those of one kind of device: do not mix CPU and GPU shards, or different CPU families. The file knows nothing
of Ray or of files; an actor that owns an `ArrayPoints` and delegates to it is a shard.
"""

# Shape letters: N rows, D dimensions, K clusters, M rows sampled or alive, B candidates, T rows of a tile,
# W centroids of a block.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Protocol

import numpy as np

from engine.algorithms.similarity import check_vectors, float32_tiles
from engine.errors import ConfigError, DataError
from engine.schema import seeded_hash

if TYPE_CHECKING:
    import torch

INERTIA_ONE = 1 << 30  # fixed point of 1 - similarity
CPU_TILE, GPU_TILE = 2048, 32_768
CENTROID_BLOCK = 4096  # centroids multiplied at a time: bounds the scores at T x 4,096 for any K
WIDTH_STEP = 16  # in products of other widths, one column among them, the rounding depends on the thread count
SPLIT = 1.0 / 1024.0  # FAISS's perturbation when it splits a cluster
CANDIDATES = 64  # k-means++ proposals drawn per pass over the sample


@dataclass(frozen=True)
class PartialSums:
    """What one shard contributes to a Lloyd step; adding two is exact, associative and commutative."""

    sums_KD: np.ndarray  # float64, exact sums of the rows of each cluster
    counts_K: np.ndarray  # int64
    inertia: int  # sum of round((1 - similarity) * 2^30)

    def __add__(self, other: PartialSums) -> PartialSums:
        return PartialSums(self.sums_KD + other.sums_KD, self.counts_K + other.counts_K, self.inertia + other.inertia)


@dataclass(frozen=True)
class KMeansResult:
    """Centroids and the state of the pool under them."""

    centroids_KD: np.ndarray  # float32, unit norm; K is at most the k asked for
    counts_K: np.ndarray  # int64, rows nearest to each returned centroid
    inertia: list[float]  # sum of (1 - similarity) at each assignment; the last belongs to the returned centroids
    iterations: int  # centroid updates made


class Points(Protocol):
    """The rows to cluster: one shard, several in process, or a group of Ray members."""

    def count(self) -> int:
        """Number of live rows."""
        ...

    def dim(self) -> int: ...

    def sample(self, num_rows: int, seed: int) -> np.ndarray:
        """(M, D) float16, the live rows of smallest seeded hash over all shards, in hash order; M <= num_rows."""
        ...

    def assign(self, centroids_KD: np.ndarray) -> PartialSums:
        """Sums, counts and inertia under the given (K, D) float32 centroids."""
        ...


class ArrayPoints:
    """One shard in memory.

    Args:
        x_ND: (N, D) float16 unit vectors; may be memory-mapped.
        id_words_N: (N,) uint64 from `schema.id_words`.
        alive_N: (N,) bool, rows to cluster; all when None.

    Raises:
        DataError: vectors are not float16 in [-1, 1].
    """

    def __init__(self, x_ND: np.ndarray, id_words_N: np.ndarray, alive_N: np.ndarray | None = None) -> None:
        check_vectors(x_ND)
        self.x_ND, self.id_words_N = x_ND, id_words_N
        self.rows_M = None if alive_N is None or alive_N.all() else np.flatnonzero(alive_N)
        # Results for the last centroids seen: a cache only, since exact sums do not depend on their history.
        self._centroids_KD = np.empty((0, 0), np.float32)
        self._labels_M, self._best_M = np.empty(0, np.int32), np.empty(0, np.float32)
        self._sums_KD = np.empty((0, 0))

    def count(self) -> int:
        return len(self.x_ND) if self.rows_M is None else len(self.rows_M)

    def dim(self) -> int:
        return self.x_ND.shape[1]

    def sample(self, num_rows: int, seed: int) -> np.ndarray:
        return self.sample_with_hashes(num_rows, seed)[1]

    def sample_with_hashes(self, num_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The sample with its (M,) uint64 hashes, from which `merge_samples` takes that of all shards."""
        rows_M = np.arange(len(self.x_ND)) if self.rows_M is None else self.rows_M
        keys_M = seeded_hash(self.id_words_N[rows_M], seed, "kmeans-sample")
        if num_rows < len(keys_M):
            near = np.flatnonzero(keys_M <= np.partition(keys_M, num_rows)[num_rows])
            keys_M, rows_M = keys_M[near], rows_M[near]
        order_M = np.argsort(keys_M, kind="stable")[:num_rows]
        return keys_M[order_M], self.x_ND[rows_M[order_M]]

    def assign(self, centroids_KD: np.ndarray) -> PartialSums:
        labels_M, best_M = nearest_centroid(self.x_ND, centroids_KD, self.rows_M)
        sums_KD = self._sums(labels_M, centroids_KD.shape)
        self._centroids_KD, self._labels_M, self._best_M = centroids_KD.copy(), labels_M, best_M
        self._sums_KD = sums_KD
        counts_K = np.bincount(labels_M, minlength=len(centroids_KD)).astype(np.int64)
        inertia = np.rint((1.0 - best_M.astype(np.float64)) * INERTIA_ONE).astype(np.int64).sum()
        return PartialSums(sums_KD.copy(), counts_K, int(inertia))

    def labels(self, centroids_KD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) int32 nearest centroid and (N,) float32 similarity to it; -1 and NaN for rows that are not alive."""
        if np.array_equal(centroids_KD, self._centroids_KD):
            labels_M, best_M = self._labels_M, self._best_M
        else:
            labels_M, best_M = nearest_centroid(self.x_ND, centroids_KD, self.rows_M)
        live = slice(None) if self.rows_M is None else self.rows_M
        labels_N = np.full(len(self.x_ND), -1, np.int32)
        similarity_N = np.full(len(self.x_ND), np.nan, np.float32)
        labels_N[live], similarity_N[live] = labels_M, best_M
        return labels_N, similarity_N

    def _sums(self, labels_M: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """(K, D) exact sums: the last ones with the moved rows taken over, or from nothing if most rows moved."""
        if self._sums_KD.shape == shape:
            moved_M = np.flatnonzero(labels_M != self._labels_M)
            if 2 * len(moved_M) < len(labels_M):
                sums_KD = self._sums_KD.copy()
                add_rows(sums_KD, self.x_ND, self._rows(moved_M), self._labels_M[moved_M], -1.0)
                add_rows(sums_KD, self.x_ND, self._rows(moved_M), labels_M[moved_M], 1.0)
                return sums_KD
        sums_KD = np.zeros(shape)
        add_rows(sums_KD, self.x_ND, self.rows_M, labels_M, 1.0)
        return sums_KD

    def _rows(self, positions: np.ndarray) -> np.ndarray:
        return positions if self.rows_M is None else self.rows_M[positions]


class MergedPoints:
    """Several shards in one process, seen as one."""

    def __init__(self, shards: Sequence[ArrayPoints]) -> None:
        self.shards = list(shards)

    def count(self) -> int:
        return sum(shard.count() for shard in self.shards)

    def dim(self) -> int:
        return self.shards[0].dim()

    def sample(self, num_rows: int, seed: int) -> np.ndarray:
        return merge_samples([shard.sample_with_hashes(num_rows, seed) for shard in self.shards], num_rows)[1]

    def assign(self, centroids_KD: np.ndarray) -> PartialSums:
        return reduce(add, (shard.assign(centroids_KD) for shard in self.shards))


def merge_samples(samples: Sequence[tuple[np.ndarray, np.ndarray]], num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of smallest hash over all shards' samples, in hash order: (M,) uint64, (M, D) float16."""
    keys_M = np.concatenate([keys for keys, _ in samples])
    order_M = np.argsort(keys_M, kind="stable")[:num_rows]
    return keys_M[order_M], np.concatenate([rows for _, rows in samples])[order_M]


def kmeans(
    points: Points, k: int, *, seed: int, iterations: int = 20, tol: float = 0.0, sample_rows: int | None = None
) -> KMeansResult:
    """Cluster the live rows.

    Args:
        points: the rows.
        k: clusters wanted; fewer come back when the sample holds fewer distinct rows.
        seed: of the sample and of k-means++.
        iterations: most centroid updates.
        tol: stop once inertia falls by at most this share of itself; 0 stops when it no longer falls.
        sample_rows: rows k-means++ chooses from; max(32 k, 10,000) when None. The pool if that is smaller.

    Raises:
        ConfigError: k or sample_rows below 1.
        DataError: there is no row.
    """
    wanted = max(32 * k, 10_000) if sample_rows is None else sample_rows
    if k < 1 or wanted < 1:
        raise ConfigError(f"K-Means needs at least one cluster and one sampled row, not k={k}, sample_rows={wanted}")
    if points.count() == 0:
        raise DataError("K-Means got no rows to cluster", code="E444")
    return lloyd(points, initial_centroids(points.sample(wanted, seed), k, seed), iterations=iterations, tol=tol)


def lloyd(points: Points, centroids_KD: np.ndarray, *, iterations: int, tol: float = 0.0) -> KMeansResult:
    """Lloyd's iterations from the given (K, D) float32 unit centroids; one assignment more than updates."""
    history: list[int] = []
    repaired, updates = False, 0
    while True:
        partial = points.assign(centroids_KD)
        history.append(partial.inertia)
        stalled = len(history) > 1 and history[-2] - history[-1] <= tol * history[-2]
        if updates >= iterations or (stalled and not repaired):
            break
        moved_KD, repaired = next_centroids(partial, centroids_KD)
        if np.array_equal(moved_KD, centroids_KD):
            break
        centroids_KD, updates = moved_KD, updates + 1
    return KMeansResult(centroids_KD, partial.counts_K, [value / INERTIA_ONE for value in history], updates)


def next_centroids(partial: PartialSums, centroids_KD: np.ndarray) -> tuple[np.ndarray, bool]:
    """Normalised sums, then the i-th empty cluster takes half of the i-th largest.

    A cluster whose sum is zero keeps its centroid; so does an empty one when no cluster of two rows is left to split.

    Returns:
        (K, D) float32 unit centroids, and whether a cluster was split.
    """
    moved_KD = unit_rows(partial.sums_KD, centroids_KD)
    empty = np.flatnonzero(partial.counts_K == 0)
    largest = np.argsort(-partial.counts_K, kind="stable")
    donors = largest[partial.counts_K[largest] >= 2][: len(empty)]
    empty = empty[: len(donors)]
    tilt_D = np.where(np.arange(moved_KD.shape[1]) % 2 == 0, SPLIT, -SPLIT)
    halves = moved_KD[donors].astype(np.float64)
    moved_KD[empty] = unit_rows(halves * (1 + tilt_D), moved_KD[donors])
    moved_KD[donors] = unit_rows(halves * (1 - tilt_D), moved_KD[donors])
    return moved_KD, len(donors) > 0


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
    for start, stop, tile_TD in float32_tiles(rows_MD, tile_rows=CPU_TILE):
        np.subtract(1.0, torch.mm(picked_BD, tile_TD.T)[:, : stop - start].numpy(), out=apart_BM[:, start:stop])
    return np.maximum(apart_BM, 0.0, out=apart_BM)


def nearest_centroid(
    x_ND: np.ndarray, centroids_KD: np.ndarray, rows_M: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Centroid of largest inner product, ties to the lowest; float32 products on tiles of fixed shape.

    Args:
        x_ND: (N, D) float16.
        centroids_KD: (K, D) float32, K >= 1.
        rows_M: (M,) positions to look at; all N when None.

    Returns:
        labels_M (M,) int32 and best_M (M,) float32.
    """
    import torch

    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    tile_rows = GPU_TILE if gpu else CPU_TILE
    blocks = []
    for start in range(0, len(centroids_KD), CENTROID_BLOCK):
        block = np.ascontiguousarray(centroids_KD[start : start + CENTROID_BLOCK], dtype=np.float32)
        width = len(block)
        padded_WD = np.concatenate([block, np.zeros((-width % WIDTH_STEP, block.shape[1]), np.float32)])
        blocks.append((start, width, torch.from_numpy(padded_WD).to(device)))
    scores_TW = torch.empty((tile_rows, max(len(block) for _, _, block in blocks)), device=device)
    total = len(x_ND) if rows_M is None else len(rows_M)
    labels_M, best_M = np.empty(total, np.int32), np.empty(total, np.float32)
    for low, high, tile_TD in float32_tiles(x_ND, rows_M, tile_rows):
        best_T, label_T = _tile_nearest(tile_TD.to(device), blocks, scores_TW)
        labels_M[low:high], best_M[low:high] = label_T[: high - low].cpu().numpy(), best_T[: high - low].cpu().numpy()
    return labels_M, best_M


def _tile_nearest(
    tile_TD: torch.Tensor, blocks: list[tuple[int, int, torch.Tensor]], scores_TW: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    best_T = torch.full((len(tile_TD),), -torch.inf, device=tile_TD.device)
    label_T = torch.zeros(len(tile_TD), dtype=torch.int64, device=tile_TD.device)
    for start, width, block_WD in blocks:
        product_TW = scores_TW.view(-1)[: len(tile_TD) * len(block_WD)].view(len(tile_TD), -1)
        torch.mm(tile_TD, block_WD.T, out=product_TW)
        top_T, at_T = product_TW[:, :width].max(dim=1)  # documented to return the first of equal maxima
        better_T = top_T > best_T
        label_T = torch.where(better_T, at_T + start, label_T)
        best_T = torch.where(better_T, top_T, best_T)
    return best_T, label_T


def add_rows(
    sums_KD: np.ndarray, x_ND: np.ndarray, rows_M: np.ndarray | None, labels_M: np.ndarray, sign: float
) -> None:
    """Add `sign` times each row to its cluster's sum, in place; exact in float64 (see the top of the file)."""
    import torch

    target_KD, labels = torch.from_numpy(sums_KD), torch.from_numpy(labels_M)
    for start, stop, tile_TD in float32_tiles(x_ND, rows_M, CPU_TILE):
        rows_TD = torch.from_numpy(tile_TD[: stop - start].numpy().astype(np.float64))
        target_KD.index_add_(0, labels[start:stop], rows_TD, alpha=sign)
