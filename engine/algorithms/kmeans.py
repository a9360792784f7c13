"""Spherical K-Means over any number of shards, with the same bits whatever the sharding or the order of the rows.

Spherical Lloyd (Dhillon and Modha 2001) on unit vectors: a row belongs to the centroid of largest inner product, ties
to the lowest centroid; a centroid is the normalised sum of its rows. Initial centroids by k-means++ on the rows of
smallest seeded id hash. Empty clusters split the largest ones as in FAISS, but by rank, without a random draw. Forms
that look at fewer rows or centroids are in kmeans_methods.py. Three facts give equal bits:

- float16 components in [-1, 1] are multiples of 2^-24, so float64 sums of up to 2^29 of them are exact in any order;
  that also lets a shard update its sums by the moved rows alone;
- products have a fixed number of rows, so the rounding of a row's similarity does not depend on its place;
- inertia is summed as an integer.

Bits are those of one kind of device: do not mix CPU and GPU shards, or different CPU families. The file knows nothing
of Ray or of files; an actor that owns an `ArrayPoints` and delegates to it is a shard.
"""

# Shape letters: N rows, D dimensions, K clusters, M rows sampled or alive, T rows of a tile, W centroids of a block.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Protocol

import numpy as np

from engine.algorithms.kmeans_start import initial_centroids, unit_rows
from engine.algorithms.sampling import smallest_per_group
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

    def thinned(self, limit: int, seed: int) -> Points:
        """The live rows whose hash, the one `sample` goes by, is at most `limit`. Nothing is copied or moved."""
        ...

    def fit_clusters(self, centroids_KD: np.ndarray, fine_K: np.ndarray, rows: int, fit: Fit) -> list[np.ndarray]:
        """Fits some clusters on rows of their own.

        Args:
            centroids_KD: (K, D) float32; a row belongs to the nearest.
            fine_K: (K,) int64 centroids wanted of each cluster; clusters of 0 are left out.
            rows: most rows to fit one centroid on: those of smallest hash.
            fit: (M, D) float16 rows in hash order, and centroids wanted -> (k, D) float32.

        Returns:
            the centroids of each cluster that is fitted, in the order of clusters.
        """
        ...


class Fit(Protocol):
    """Clusters the rows of one cluster. Travels to the members."""

    @property
    def seed(self) -> int: ...

    def __call__(self, x_MD: np.ndarray, k: int) -> np.ndarray: ...


class ArrayPoints:
    """One shard in memory.

    Args:
        x_ND: (N, D) float16 unit vectors; may be memory-mapped.
        id_words_N: (N,) uint64 from `schema.id_words`.
        alive_N: (N,) bool, rows to cluster; all when None.
        tile_rows: rows of every product; `CPU_TILE` or `GPU_TILE` when None. Equal bits need equal tiles.

    Raises:
        DataError: vectors are not float16 in [-1, 1].
    """

    def __init__(
        self,
        x_ND: np.ndarray,
        id_words_N: np.ndarray,
        alive_N: np.ndarray | None = None,
        tile_rows: int | None = None,
    ) -> None:
        check_vectors(x_ND)
        self.x_ND, self.id_words_N, self.tile_rows = x_ND, id_words_N, tile_rows
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
        rows_M, keys_M = self._hashed(seed)
        if num_rows < len(keys_M):
            near = np.flatnonzero(keys_M <= np.partition(keys_M, num_rows)[num_rows])
            keys_M, rows_M = keys_M[near], rows_M[near]
        order_M = np.argsort(keys_M, kind="stable")[:num_rows]
        return keys_M[order_M], self.x_ND[rows_M[order_M]]

    def thinned(self, limit: int, seed: int) -> ArrayPoints:
        rows_M, keys_M = self._hashed(seed)
        alive_N = np.zeros(len(self.x_ND), dtype=bool)
        alive_N[rows_M[keys_M <= np.uint64(limit)]] = True
        return ArrayPoints(self.x_ND, self.id_words_N, alive_N, self.tile_rows)

    def cluster_samples(
        self, centroids_KD: np.ndarray, quotas_K: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each cluster the rows of smallest hash, up to its quota: (M,) labels, (M,) uint64 hashes, (M, D) rows."""
        rows_M, keys_M = self._hashed(seed)
        labels_M = self.labels(centroids_KD)[0][rows_M]
        wanted_M = np.flatnonzero(quotas_K[labels_M])
        picked = wanted_M[smallest_per_group(labels_M[wanted_M], keys_M[wanted_M], quotas_K)]
        return labels_M[picked], keys_M[picked], self.x_ND[rows_M[picked]]

    def fit_clusters(self, centroids_KD: np.ndarray, fine_K: np.ndarray, rows: int, fit: Fit) -> list[np.ndarray]:
        return MergedPoints([self]).fit_clusters(centroids_KD, fine_K, rows, fit)

    def assign(self, centroids_KD: np.ndarray) -> PartialSums:
        labels_M, best_M = nearest_centroid(self.x_ND, centroids_KD, self.rows_M, self.tile_rows)
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
            labels_M, best_M = nearest_centroid(self.x_ND, centroids_KD, self.rows_M, self.tile_rows)
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
                add_rows(sums_KD, self.x_ND, self._rows(moved_M), self._labels_M[moved_M], -1.0, self.tile_rows)
                add_rows(sums_KD, self.x_ND, self._rows(moved_M), labels_M[moved_M], 1.0, self.tile_rows)
                return sums_KD
        sums_KD = np.zeros(shape)
        add_rows(sums_KD, self.x_ND, self.rows_M, labels_M, 1.0, self.tile_rows)
        return sums_KD

    def _hashed(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the live rows, and their hashes."""
        rows_M = np.arange(len(self.x_ND)) if self.rows_M is None else self.rows_M
        return rows_M, seeded_hash(self.id_words_N[rows_M], seed, "kmeans-sample")

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

    def thinned(self, limit: int, seed: int) -> MergedPoints:
        return MergedPoints([shard.thinned(limit, seed) for shard in self.shards])

    def fit_clusters(self, centroids_KD: np.ndarray, fine_K: np.ndarray, rows: int, fit: Fit) -> list[np.ndarray]:
        samples = [shard.cluster_samples(centroids_KD, rows * fine_K, fit.seed) for shard in self.shards]
        return [fit(x_MD, k) for x_MD, k in merge_cluster_samples(samples, fine_K, rows)]


def merge_samples(samples: Sequence[tuple[np.ndarray, np.ndarray]], num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of smallest hash over all shards' samples, in hash order: (M,) uint64, (M, D) float16."""
    keys_M = np.concatenate([keys for keys, _ in samples])
    order_M = np.argsort(keys_M, kind="stable")[:num_rows]
    return keys_M[order_M], np.concatenate([rows for _, rows in samples])[order_M]


def merge_cluster_samples(
    samples: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], fine_K: np.ndarray, rows: int
) -> list[tuple[np.ndarray, int]]:
    """The rows of smallest hash of each cluster over all shards' samples, in hash order, with its centroids wanted."""
    labels_M, keys_M, x_MD = (np.concatenate(pieces) for pieces in zip(*samples, strict=True))
    picked = smallest_per_group(labels_M, keys_M, rows * fine_K)
    ends = np.searchsorted(labels_M[picked], np.arange(1, len(fine_K)))
    pieces = zip(np.split(picked, ends), fine_K.tolist(), strict=True)
    return [(x_MD[at], k) for at, k in pieces if k]


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


def nearest_centroid(
    x_ND: np.ndarray, centroids_KD: np.ndarray, rows_M: np.ndarray | None = None, tile_rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Centroid of largest inner product, ties to the lowest; float32 products on tiles of fixed shape.

    Args:
        x_ND: (N, D) float16.
        centroids_KD: (K, D) float32, K >= 1.
        rows_M: (M,) positions to look at; all N when None.
        tile_rows: rows of every product; `CPU_TILE` or `GPU_TILE` when None.

    Returns:
        labels_M (M,) int32 and best_M (M,) float32.
    """
    import torch

    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    tile_rows = tile_rows or (GPU_TILE if gpu else CPU_TILE)
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
    sums_KD: np.ndarray,
    x_ND: np.ndarray,
    rows_M: np.ndarray | None,
    labels_M: np.ndarray,
    sign: float,
    tile_rows: int | None = None,
) -> None:
    """Add `sign` times each row to its cluster's sum, in place; exact in float64 (see the top of the file)."""
    import torch

    target_KD, labels = torch.from_numpy(sums_KD), torch.from_numpy(labels_M)
    for start, stop, tile_TD in float32_tiles(x_ND, rows_M, tile_rows or CPU_TILE):
        rows_TD = torch.from_numpy(tile_TD[: stop - start].numpy().astype(np.float64))
        target_KD.index_add_(0, labels[start:stop], rows_TD, alpha=sign)
