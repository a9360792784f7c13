"""The picks of a greedy selection, in order, in a step of their own.

Full parts are committed as they fill up, so an interrupted run goes on from the last one, and a member that was lost
reads from storage what it has to apply again. It knows nothing of how picks are chosen.
"""

# Shape letters: P picks, D dimensions.

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from engine.algorithms.exact import ONE
from engine.algorithms.greedy import Picks
from engine.artifacts import Step, StepRecord
from engine.data.vectors import vectors_from_arrow, vectors_to_arrow
from engine.events import Observer
from engine.schema import ROW, VECTOR

PICK_ROWS = 1024  # picks per part
SCORE = "score"


@dataclass(frozen=True)
class PicksSoFar:
    """What a member must know of the picks: the parts that are committed, and those after them."""

    step: Step
    parts: int
    rows: np.ndarray  # int64
    x: np.ndarray  # (P, D) float16
    seeds: Step | None

    @property
    def nbytes(self) -> int:
        return self.x.nbytes

    def since(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and vectors of the picks after the first `count`."""
        for part in range(count // PICK_ROWS, self.parts):
            table = self.step.read(part, [ROW, VECTOR])
            skip = max(0, count - part * PICK_ROWS)
            yield table[ROW].to_numpy()[skip:], vectors_from_arrow(table[VECTOR])[skip:]
        skip = max(0, count - self.parts * PICK_ROWS)
        yield self.rows[skip:], self.x[skip:]


class PickLog:
    """The picks of one selection, in order, in a step of their own: row, score, vector.

    Args:
        step: holds them; what an earlier process committed is gone on from.
        dim: D.
        seeds: step with vectors that count as picked before the first pick.
    """

    def __init__(self, step: Step, dim: int, seeds: Step | None = None) -> None:
        self.step, self.seeds, self.parts = step, seeds, 0
        self.rows, self.scores = np.empty(0, dtype=np.int64), np.empty(0)
        self.tail_x = np.empty((0, dim), dtype=np.float16)
        for part in sorted(step.committed()):
            table = step.read(part, [ROW, SCORE, VECTOR])
            self._append(table[ROW].to_numpy(), table[SCORE].to_numpy(), vectors_from_arrow(table[VECTOR]))
            if table.num_rows == PICK_ROWS:
                self.parts, self.tail_x = part + 1, self.tail_x[:0]

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, picks: Picks) -> None:
        """Appends picks, and commits what fills a part."""
        self._append(picks.rows, picks.scores / ONE, picks.x)
        while len(self.tail_x) >= PICK_ROWS:
            self._commit(PICK_ROWS)

    def so_far(self) -> PicksSoFar:
        return PicksSoFar(self.step, self.parts, self.rows[self.parts * PICK_ROWS :], self.tail_x, self.seeds)

    def finish(self, started: float) -> StepRecord:
        """Commits the rest and writes the record."""
        tail = self.tail_x
        if len(tail) or not self.parts:
            self._commit(len(tail))
            self.parts, self.tail_x = self.parts - 1, tail
        return self.step.finish(started=started, rows=len(self.rows))

    def _append(self, rows_P: np.ndarray, scores_P: np.ndarray, x_PD: np.ndarray) -> None:
        self.rows = np.concatenate([self.rows, rows_P])
        self.scores = np.concatenate([self.scores, scores_P])
        self.tail_x = np.concatenate([self.tail_x, x_PD])

    def _commit(self, count: int) -> None:
        start = self.parts * PICK_ROWS
        rows_P, scores_P = self.rows[start : start + count], self.scores[start : start + count]
        columns = [pa.array(rows_P), pa.array(scores_P), vectors_to_arrow(self.tail_x[:count])]
        self.step.commit(self.parts, pa.table(columns, names=[ROW, SCORE, VECTOR]))
        self.parts, self.tail_x = self.parts + 1, self.tail_x[count:]


def fill(log: PickLog, num: int, walk: Iterable[Picks], observer: Observer) -> StepRecord:
    """Runs a selection to its end, unless an earlier process did."""
    name, started = log.step.name, time.monotonic()
    record = log.step.record()
    if record is None:
        observer.step_started(name, num)
        observer.advance(name, len(log))
        for picks in walk:
            observer.advance(name, len(picks.rows))
        record = log.finish(started)
        observer.step_done(name, record.rows, record.seconds, 0, reused=False)
    else:
        observer.step_done(name, record.rows, 0.0, 0, reused=True)
    return record
