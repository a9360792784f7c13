"""Passes over some rows of the pool: the rows as a step in the pool's parts, and what was found spread over the pool.

It knows nothing of what is measured.
"""

# Shape letters: M rows of a part.

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from engine.artifacts import Part, Step
from engine.recipes.base import Context
from engine.runtime import run_pass
from engine.schema import ERROR, ROW


def asked_rows(
    context: Context, settings: Mapping[str, Any], inputs: Sequence[str], keep: Callable[[int], pa.Array]
) -> Step:
    """The step `asked`: rows of the pool, in its parts.

    Args:
        settings, inputs: what determines the rows.
        keep: (M,) booleans for a part of the pool.
    """
    target = context.step("asked", settings, [context.pool.fingerprint, *inputs])
    if context.reused(target):
        return target
    started, done, rows = time.monotonic(), target.committed(), 0
    for part in context.pool.require().parts:
        kept_M = keep(part.index)
        if part.index not in done:
            target.commit(part.index, context.pool.read(part.index).filter(kept_M))
        rows += kept_M.true_count
    target.finish(started=started, rows=rows)
    return target


def over_pool(context: Context, name: str, found: Step, columns: Sequence[str]) -> Step:
    """Columns of some rows, parallel to the pool's parts; null, and no error, where no row was asked about."""
    target = context.step(name, {"columns": list(columns)}, [context.pool.fingerprint, found.fingerprint])

    def spread(todo: list[int]) -> Iterator[Part]:
        for part in todo:
            rows_M = context.pool.read(part, [ROW])[ROW]
            table = found.read(part, [ROW, *columns, ERROR])
            at_M = np.searchsorted(table[ROW].to_numpy(), rows_M.to_numpy())
            missing_M = ~np.isin(rows_M.to_numpy(), table[ROW].to_numpy())
            taken = table.select([*columns, ERROR]).take(pa.array(at_M, mask=missing_M))
            taken = taken.add_column(0, pa.field(ROW, pa.int64(), nullable=False), rows_M)
            yield target.commit(part, taken, failed=len(taken) - taken[ERROR].null_count)

    run_pass(context.runtime.observer, context.pool, target, spread)
    return target
