"""The K-Means cluster of each row, as a column to select by."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine.algorithms.kmeans import nearest_centroid
from engine.artifacts import Step
from engine.data.vectors import vectors_from_arrow
from engine.greedy_selection import VectorConfig, centroids_step, cluster, embed
from engine.recipes.base import Context
from engine.runtime import StageSpec
from engine.schema import ERROR, VECTOR
from engine.scoring.base import Measured, Score

CLUSTER = "cluster"


class NearestCluster:
    """Stage: number of the centre of largest inner product, ties to the lowest.

    Args:
        centroids: step with a unit vector per cluster.
    """

    columns_in = (VECTOR,)
    columns_out = (pa.field(CLUSTER, pa.int32()), pa.field(ERROR, pa.large_string()))

    def __init__(self, centroids: Step) -> None:
        self.centroids_KD = vectors_from_arrow(centroids.read_all([VECTOR])[VECTOR]).astype(np.float32)

    def __call__(self, table: pa.Table) -> pa.Table:
        labels_N, _ = nearest_centroid(vectors_from_arrow(table[VECTOR]), self.centroids_KD)
        return pa.table([pa.array(labels_N), pa.nulls(len(table), pa.large_string())], names=[CLUSTER, ERROR])


def cluster_centroids(context: Context, vectors: Step, clusters: int, iterations: int) -> Step:
    """K-Means over the pool: the step `centroids`, of at most `clusters` and at most a tenth of the pool's rows."""
    clusters = max(1, min(clusters, context.pool_rows // 10))
    centroids = centroids_step(context, vectors.fingerprint, clusters, iterations)
    if centroids.record() is None:
        index = context.index(vectors)
        try:
            cluster(context, index, centroids, clusters, iterations)
        finally:
            index.close()
    return centroids


class Cluster(VectorConfig, Measured):
    """Number of the nearest K-Means centre, from 0."""

    kind: Literal["cluster"] = "cluster"
    clusters: int = Field(default=100, ge=1, description="K of K-Means; at most a tenth of the pool's rows")
    iterations: int = Field(default=20, ge=1, description="Most K-Means iterations")

    def measure(self, context: Context) -> Score:
        vectors = embed(context, self)
        centroids = cluster_centroids(context, vectors, self.clusters, self.iterations)
        target = context.step("clusters", {}, [centroids.fingerprint])
        stage = StageSpec.of("clusters", NearestCluster, centroids=centroids)
        context.runtime.map_parts(stage, vectors, target)
        return Score.of(target, CLUSTER)
