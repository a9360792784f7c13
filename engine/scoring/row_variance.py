"""How far a row stands out along the main directions of the pool's vectors (engine/algorithms/row_variance.py).

The moments are summed by members that share the parts, the components are a step of their own, and a pass over the
vectors gives the scores. Several turns: the vector's text says what it is, the prompt or the whole pair, as embedded.
"""

# Shape letters: D dimensions, P components.

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine.algorithms.row_variance import Components, Moments, components, moments, row_variance
from engine.artifacts import Step, write_table
from engine.data.vectors import vectors_from_arrow
from engine.greedy_selection import VectorConfig, embed
from engine.recipes.base import Context
from engine.runtime import Resources, StageSpec
from engine.schema import ERROR, VECTOR
from engine.scoring.base import Measured, Score

VARIANCE = "row_variance"


class MomentMember:
    """Sums the moments of some parts of the vectors, one part in memory at a time."""

    def __init__(self, vectors: Step, parts: Sequence[int], threads: int) -> None:
        from engine.models.threads import set_threads

        set_threads(threads)
        self.vectors, self.parts = vectors, parts

    def moments(self) -> Moments:
        found = (moments(vectors_from_arrow(self.vectors.read(part, [VECTOR])[VECTOR])) for part in self.parts)
        return reduce(add, found)


class RowVarianceStage:
    """Stage: the variance of each row's features.

    Args:
        axes: step with the components, one a row: `high`, `low`, `offset`.
    """

    columns_in = (VECTOR,)
    columns_out = (pa.field(VARIANCE, pa.float64()), pa.field(ERROR, pa.large_string()))

    def __init__(self, axes: Step) -> None:
        table = axes.read_all(["high", "low", "offset"])
        high_DP, low_DP = (np.array(table[name].to_pylist()).T for name in ("high", "low"))
        self.axes = Components(high_DP, low_DP, table["offset"].to_numpy())

    def __call__(self, table: pa.Table) -> pa.Table:
        values_N = row_variance(vectors_from_arrow(table[VECTOR]), self.axes)
        return pa.table([pa.array(values_N), pa.nulls(len(table), pa.large_string())], names=[VARIANCE, ERROR])


class RowVariance(VectorConfig, Measured):
    """The variance of a row over its principal components; it favours outliers."""

    kind: Literal["row_variance"] = "row_variance"
    components: int = Field(default=32, ge=2, description="Leading principal components of the vectors")

    def measure(self, context: Context) -> Score:
        vectors = embed(context, self)
        axes = context.step("components", {"components": self.components}, [vectors.fingerprint])
        if not context.reused(axes):
            self._find_axes(context, vectors, axes)
        target = context.step("row_variance", {}, [axes.fingerprint])
        stage = StageSpec.of("row_variance", RowVarianceStage, axes=axes)
        context.runtime.map_parts(stage, vectors, target)
        return Score.of(target, VARIANCE)

    def _find_axes(self, context: Context, vectors: Step, axes: Step) -> None:
        runtime = context.runtime
        runtime.observer.step_started(axes.name, context.pool_rows)
        parts = [part.index for part in vectors.require().parts]
        members = min(runtime.shards, len(parts))
        shards = [
            {"vectors": vectors, "parts": parts[number::members], "threads": runtime.threads}
            for number in range(members)
        ]
        group = runtime.group(MomentMember, shards, Resources(cpus=runtime.threads, resident=True))
        try:
            found = components(reduce(add, group.call("moments")), self.components)
        finally:
            group.close()
        columns = [pa.array(list(found.high_DP.T)), pa.array(list(found.low_DP.T)), pa.array(found.offset_P)]
        table = pa.table(columns, names=["high", "low", "offset"])
        record = write_table(axes, table, len(table))
        runtime.observer.step_done(axes.name, record.rows, record.seconds, 0, reused=False)
