"""Selection for a target set: its examples take turns, each takes the row most similar to it that is left.

The paper is in recipe `rds_plus`, the loop in engine/algorithms/round_robin.
"""

from __future__ import annotations

import sys
from typing import Literal

import numpy as np
import pyarrow as pa

from engine.algorithms.round_robin import Taken, round_robin
from engine.artifacts import Step, write_table
from engine.data.vectors import vectors_from_arrow
from engine.greedy_selection import embed
from engine.recipes.base import Context
from engine.schema import ID, ROW, VECTOR, id_words
from engine.selecting.base import Narrowing, Sized
from engine.shards import PoolIndex
from engine.space import Space, some_rows
from engine.targets import TargetConfig, target_set


class RoundRobin(TargetConfig, Sized):
    """The rows nearest to the examples of a target set, as many for each example as for any other."""

    kind: Literal["round_robin"] = "round_robin"

    def narrow(self, narrowing: Narrowing, num: int) -> Narrowing:
        context = narrowing.context
        space = some_rows(context, embed(context, self), narrowing.rows())
        picks = self._picks(context, space, min(num, space.count))
        rows_I = space.pool_rows(picks.read_all([ROW])[ROW].to_numpy())
        return narrowing.kept(rows_I, "farther from every target example", "nearest to a target example")

    def _picks(self, context: Context, space: Space, num: int) -> Step:
        """The step `picks`: row of the space, id of the example that took it, similarity; in the order of taking."""
        rows, vectors = target_set(context, self)
        settings = {"method": "round_robin", "budget": num}
        target = context.step("picks", settings, [space.fingerprint, vectors.fingerprint])
        if context.reused(target):
            return target
        ids = rows.read_all([ID])[ID]
        by_id = np.argsort(id_words(ids), kind="stable")  # turns follow ids, not the order of a file
        queries_QD = vectors_from_arrow(vectors.read_all([VECTOR])[VECTOR])[by_id]
        taken = taken_rows(context, space, queries_QD, num)
        example = ids.take(pa.array(by_id[taken.queries_M]))
        columns = {ROW: taken.rows_M, "example": example, "similarity": taken.similarity_M}
        context.runtime.observer.step_started(target.name, num)
        record = write_table(target, pa.table(columns), sys.maxsize)
        context.runtime.observer.step_done(target.name, record.rows, record.seconds, 0, reused=False)
        return target


def taken_rows(context: Context, space: Space, queries_QD: np.ndarray, num: int) -> Taken:
    """What the examples take of the space."""
    index = PoolIndex(context.runtime, space.rows, space.vectors)
    try:
        return round_robin(lambda taken_M, k: index.nearest_free(queries_QD, taken_M, k), len(queries_QD), num)
    finally:
        index.close()
