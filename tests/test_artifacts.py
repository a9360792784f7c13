"""Steps: commits are first-writer-wins, records come last, fingerprints see settings and inputs only."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from engine.artifacts import Joined, Step, take_rows, write_table
from engine.errors import StepError
from engine.store import Store


def table(start: int, rows: int, name: str = "x") -> pa.Table:
    return pa.table({"row": np.arange(start, start + rows), name: [f"v{i}" for i in range(start, start + rows)]})


def finished(store: Store, name: str = "s", column: str = "x") -> Step:
    step = Step(store, name, {"a": 1})
    for index, start in enumerate(range(0, 30, 10)):
        step.commit(index, table(start, 10, column))
    step.finish(started=time.monotonic(), rows=30, extra={"note": "hi"})
    return step


def test_a_late_writer_does_not_replace_a_committed_part(tmp_path: Path) -> None:
    step = Step(Store(tmp_path), "s", {})
    first = step.commit(0, table(0, 3))
    late = step.commit(0, table(100, 3))
    assert late == first
    assert step.read(0)["row"].to_pylist() == [0, 1, 2]


def test_the_record_is_written_last_and_read_back(tmp_path: Path) -> None:
    step = Step(Store(tmp_path), "s", {"a": 1})
    step.commit(0, table(0, 4))
    assert step.record() is None
    with pytest.raises(StepError):
        step.require()
    step.finish(started=time.monotonic(), rows=4, extra={"k": 2})
    again = Step(Store(tmp_path), "s", {"a": 1}).require()
    assert (again.rows, again.extra, len(again.parts)) == (4, {"k": 2}, 1)


def test_a_gap_is_an_error(tmp_path: Path) -> None:
    step = Step(Store(tmp_path), "s", {})
    step.commit(1, table(0, 3))
    with pytest.raises(StepError, match="gaps"):
        step.finish(started=time.monotonic(), rows=3)


def test_a_missing_tail_is_an_error(tmp_path: Path) -> None:
    step = Step(Store(tmp_path), "s", {})
    step.commit(0, table(0, 3))
    with pytest.raises(StepError, match="holds 3 rows, not 6"):
        step.finish(started=time.monotonic(), rows=6)


def test_fingerprint_depends_on_settings_inputs_and_version_only(tmp_path: Path) -> None:
    base = Step(Store(tmp_path), "s", {"a": 1, "b": 2}, ["x"])
    assert Step(Store(tmp_path / "elsewhere"), "s", {"b": 2, "a": 1}, ["x"]).folder == base.folder
    others = [
        Step(Store(tmp_path), "s", {"a": 2, "b": 2}, ["x"]),
        Step(Store(tmp_path), "s", {"a": 1, "b": 2}, ["y"]),
        Step(Store(tmp_path), "s", {"a": 1, "b": 2}, ["x"], version=2),
    ]
    assert len({step.folder for step in [base, *others]}) == 4


def test_take_rows_in_the_order_asked(tmp_path: Path) -> None:
    step = finished(Store(tmp_path))
    wanted = np.array([29, 0, 10, 9, 11, 20])
    assert take_rows(step, wanted, ["x"]).to_pydict() == {"row": wanted.tolist(), "x": [f"v{i}" for i in wanted]}
    assert take_rows(step, np.array([], dtype=np.int64), ["x"]).num_rows == 0


def test_joined_steps_read_as_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    joined = Joined(finished(store), finished(store, "t", "y"))
    assert joined.read(1, ["y", "x"]).to_pylist()[0] == {"y": "v10", "x": "v10"}


def test_write_table_resumes_and_reuses(tmp_path: Path) -> None:
    step = Step(Store(tmp_path), "s", {})
    step.commit(1, table(4, 4))
    record = write_table(step, table(0, 10), part_rows=4)
    assert [part.rows for part in record.parts] == [4, 4, 2]
    assert step.read_all()["row"].to_pylist() == list(range(10))
    assert write_table(step, table(50, 1), part_rows=4) == record
