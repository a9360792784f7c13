"""Distance to the i-th nearest other row of the pool: small where rows crowd, large for outliers.

    d = sqrt(2 - 2 cos)

the Euclidean distance of unit vectors, which the encoder's are; the i-th most similar row is the i-th nearest one.
InstructMining (arXiv 2307.06290) uses i = 6. Vectors are float16, so distances below about 0.02 are rounding.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine.artifacts import Part
from engine.greedy_selection import VectorConfig, embed
from engine.recipes.base import Context
from engine.runtime import run_pass
from engine.schema import ERROR, ROW
from engine.scoring.base import Measured, Score

DISTANCE = "distance"


def euclidean(similarity_N: np.ndarray) -> np.ndarray:
    """(N,) float64 distances of unit vectors with these inner products; 0 for products above 1, by rounding."""
    return np.sqrt(np.maximum(0.0, 2.0 - 2.0 * similarity_N.astype(np.float64)))


class KnnDistance(VectorConfig, Measured):
    """Distance to the i-th nearest other row. Several turns: the prompt is all text before the last response."""

    kind: Literal["knn_distance"] = "knn_distance"
    neighbour: int = Field(default=6, ge=1, description="i: 1 is the nearest other row")

    def measure(self, context: Context) -> Score:
        vectors = embed(context, self)
        target = context.step("knn_distance", {"neighbour": self.neighbour}, [vectors.fingerprint])
        index = context.index(vectors) if target.record() is None else None

        def compute(todo: list[int]) -> Iterator[Part]:
            assert index is not None
            for part in todo:
                started = time.perf_counter()
                last_M = index.nearest_to_part(vectors, part, self.neighbour).similarity_Qk[:, -1]
                alone_M = np.isneginf(last_M)
                errors = pa.array(np.where(alone_M, "the pool has too few other rows", ""), mask=~alone_M)
                table = pa.table(
                    [vectors.read(part, [ROW])[ROW], pa.array(euclidean(last_M), mask=alone_M), errors],
                    names=[ROW, DISTANCE, ERROR],
                )
                seconds = time.perf_counter() - started
                yield target.commit(part, table, seconds=seconds, failed=int(alone_M.sum()))

        try:
            record = run_pass(context.runtime.observer, vectors, target, compute)
        finally:
            if index is not None:
                index.close()
        context.check_failures(target.folder, record.failed, record.rows)
        return Score.of(target, DISTANCE)
