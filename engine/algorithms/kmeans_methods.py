"""Three ways to K centroids: Lloyd on all rows, Lloyd on a sample, and two levels for very many clusters.

All end with one exact pass over all rows, so that counts and inertia are those of the returned centroids, and all give
the same bits for any sharding and order of the rows, since they are made of kmeans.py.

- lloyd: each of I iterations compares every row with every centroid, 2 N K D I operations.
- sample: the iterations see the rows of smallest hash, 256 for each centroid (FAISS's `max_points_per_centroid`), which
  their members already hold. A pool that has no more than these gets what lloyd gives it.
- two_level: sqrt(K) coarse clusters by sample; each gets fine centroids in proportion to its rows, at least one, K
  together, fitted on its own rows (FAISS's `two_level_clustering`). A row meets 2 sqrt(K) centroids in an iteration
  instead of K. Rows of one coarse cluster go to one member, at most 256 for each fine centroid. One update on all rows
  then moves the borders that the coarse clusters drew: inertia stays 1 % to 11 % above that of lloyd (LOG.md).
"""

# Shape letters: N rows, M rows of a sample, D dimensions, K clusters, C coarse clusters.

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.algorithms.kmeans import CPU_TILE, ArrayPoints, KMeansResult, Points, kmeans, lloyd
from engine.algorithms.kmeans_start import initial_centroids
from engine.algorithms.sampling import cluster_quotas

Method = Literal["lloyd", "sample", "two_level"]

TWO_LEVEL_FROM = 20_000  # clusters
ROWS_PER_CENTROID = 256
LEAST_ROWS = 10_000  # of any sample
GATHER_ROWS = 65_536  # of the clusters whose samples are in one process at a time
TILE_STEP = 256


def method_for(wanted: Literal["auto"] | Method, k: int) -> Method:
    """What auto means for k clusters: two levels from 20,000, a sample below."""
    if wanted != "auto":
        return wanted
    return "two_level" if k >= TWO_LEVEL_FROM else "sample"


def fit(points: Points, k: int, method: Method, *, seed: int, iterations: int) -> KMeansResult:
    """Clusters the live rows.

    Args:
        points: the rows.
        k: clusters wanted; fewer come back when too few rows are distinct.
        method: see the top of the file.
        seed: of the sample and of k-means++.
        iterations: most centroid updates of every fit.

    Raises:
        ConfigError: k below 1.
        DataError: there is no row.
    """
    if method == "two_level":
        return _two_level(points, k, seed=seed, iterations=iterations)
    if method == "sample":
        sampled = _sampled(points, k, seed)
        result = kmeans(sampled, k, seed=seed, iterations=iterations)
        return result if sampled is points else _exact_pass(points, result.centroids_KD, result.iterations)
    return kmeans(points, k, seed=seed, iterations=iterations)


def refit(
    points: Points, centroids_KD: np.ndarray, method: Method, *, seed: int, iterations: int, tol: float
) -> KMeansResult:
    """Clusters rows that have changed a little, from the (K, D) centroids they had; two_level leaves these as they are.

    Args:
        tol: stop once inertia falls by at most this share of itself.
    """
    if method == "two_level":
        return lloyd(points, centroids_KD, iterations=0)
    sampled = points if method == "lloyd" else _sampled(points, len(centroids_KD), seed)
    result = lloyd(sampled, centroids_KD, iterations=iterations, tol=tol)
    return result if sampled is points else _exact_pass(points, result.centroids_KD, result.iterations)


def multiplications(method: Method, rows: int, dim: int, k: int, iterations: int) -> float:
    """Most multiplications of `fit`, k-means++ left out."""
    if method == "two_level":
        coarse, fitted = round(math.sqrt(k)), min(rows, ROWS_PER_CENTROID * k)
        fine = fitted * (k / coarse) * dim * (iterations + 1)
        return multiplications("sample", rows, dim, coarse, iterations) + fine + 2 * rows * k * dim
    sampled = min(rows, max(ROWS_PER_CENTROID * k, LEAST_ROWS)) if method == "sample" else rows
    return (sampled * (iterations + 1) + (rows if sampled < rows else 0)) * k * dim


def _sampled(points: Points, k: int, seed: int) -> Points:
    """About 256 rows for each centroid, or all when there are no more."""
    total, wanted = points.count(), max(ROWS_PER_CENTROID * k, LEAST_ROWS)
    return points if total <= wanted else points.thinned((wanted << 64) // total - 1, seed)


def _exact_pass(points: Points, centroids_KD: np.ndarray, iterations: int) -> KMeansResult:
    result = lloyd(points, centroids_KD, iterations=0)
    return KMeansResult(result.centroids_KD, result.counts_K, result.inertia, iterations)


@dataclass(frozen=True)
class FitCluster:
    """K-Means among the rows of one cluster."""

    seed: int
    iterations: int

    def __call__(self, x_MD: np.ndarray, k: int) -> np.ndarray:
        """(k, D) float32 unit centroids of (M, D) float16 rows in hash order; fewer when fewer rows are distinct.

        Tiles are as small as the cluster: a small one in a large tile would mostly multiply padding. They follow from
        M alone.
        """
        start_KD = initial_centroids(x_MD[: max(32 * k, LEAST_ROWS)], k, self.seed)
        tile_rows = min(CPU_TILE, -(-len(x_MD) // TILE_STEP) * TILE_STEP)
        points = ArrayPoints(x_MD, np.zeros(len(x_MD), np.uint64), tile_rows=tile_rows)
        return lloyd(points, start_KD, iterations=self.iterations).centroids_KD


def _two_level(points: Points, k: int, *, seed: int, iterations: int) -> KMeansResult:
    coarse = fit(points, round(math.sqrt(k)), "sample", seed=seed, iterations=iterations)
    fine_C = cluster_quotas(coarse.counts_K, k, "proportional", least=1)
    form, pieces = FitCluster(seed, iterations), []
    for batch_C in _batches(fine_C, np.minimum(coarse.counts_K, ROWS_PER_CENTROID * fine_C)):
        pieces += points.fit_clusters(coarse.centroids_KD, batch_C, ROWS_PER_CENTROID, form)
    return lloyd(points, np.concatenate(pieces), iterations=1)


def _batches(fine_C: np.ndarray, rows_C: np.ndarray) -> Iterator[np.ndarray]:
    """`fine_C` in pieces that are 0 elsewhere, each of clusters of about `GATHER_ROWS` rows together."""
    group_C = (np.cumsum(rows_C) - 1) // GATHER_ROWS
    for group in np.unique(group_C[fine_C > 0]):
        yield np.where(group_C == group, fine_C, 0)
