"""Rows to select among, with their vectors: the whole pool, or some of its rows as a step of their own.

Greedy selection sees rows 0 .. M-1 with ids and vectors, whichever rows of the pool those are; this file is the way
there and back. It knows nothing of how rows are selected.

Shapes: M rows of the space, I rows asked for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from engine.artifacts import Step, rows_digest, take_rows
from engine.recipes.base import Context
from engine.schema import ID, ROW, VECTOR

POOL_ROW = "pool_row"


@dataclass(frozen=True)
class Space:
    """Rows 0 .. M-1, ascending as in the pool.

    Attributes:
        rows: step with `row` and `id`.
        vectors: step with `vector`, parallel to it.
        part_of_pool: whether `rows` is a selection of the pool's rows, and has `pool_row`.
    """

    rows: Step
    vectors: Step
    part_of_pool: bool = False

    @property
    def count(self) -> int:
        return self.rows.require().rows

    @property
    def fingerprint(self) -> str:
        return self.vectors.fingerprint

    def pool_rows(self, rows_I: np.ndarray) -> np.ndarray:
        """(I,) int64 rows of the pool, of some rows of the space."""
        if not self.part_of_pool:
            return rows_I
        return take_rows(self.rows, rows_I, [POOL_ROW])[POOL_ROW].to_numpy()


def whole_pool(context: Context, vectors: Step) -> Space:
    """The pool as it is; nothing is copied."""
    return Space(context.pool, vectors)


def some_rows(context: Context, vectors: Step, rows_M: np.ndarray) -> Space:
    """Some rows of the pool: the step `space` with row, id, pool_row and vector, in parts of the pool's size.

    Args:
        vectors: parallel to the pool.
        rows_M: (M,) int64 rows of the pool, ascending, M >= 1; all of them are the pool itself.
    """
    if len(rows_M) == context.pool_rows:
        return whole_pool(context, vectors)
    target = context.step("space", {"rows": rows_digest(rows_M)}, [vectors.fingerprint])
    if context.reused(target):
        return Space(target, target, part_of_pool=True)
    started, observer = time.monotonic(), context.runtime.observer
    part_rows = context.pool.part(0).rows
    observer.step_started(target.name, len(rows_M))
    done = target.committed()
    for index, low in enumerate(range(0, len(rows_M), part_rows)):
        taken = rows_M[low : low + part_rows]
        if index not in done:
            x = take_rows(vectors, taken, [VECTOR])[VECTOR]
            columns = {
                ROW: pa.array(np.arange(low, low + len(taken))),
                ID: take_rows(context.pool, taken, [ID])[ID],
                POOL_ROW: pa.array(taken),
                VECTOR: x,
            }
            observer.used(target.name, target.commit(index, pa.table(columns)).used())
        observer.advance(target.name, len(taken))
    record = target.finish(started=started, rows=len(rows_M))
    observer.step_done(target.name, record.rows, record.seconds, 0, reused=False)
    return Space(target, target, part_of_pool=True)
