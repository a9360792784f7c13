"""The plan of steps, seconds and memory: what a run then does, from what a run has measured."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from engine.artifacts import Step, write_table
from engine.cli import run_cli
from engine.data.vectors import vectors_to_arrow
from engine.lineage import steps_of
from engine.plan_steps import member_bytes, plan_steps
from engine.shards import PoolShard
from engine.store import Store
from tests.finished.conftest import JUDGE, Finished
from tests.runs import config_for

Capture = pytest.CaptureFixture[str]


def test_a_finished_run_has_nothing_to_do(finished: Finished) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.out.rglob("*")}
    found = plan_steps(config_for(finished.pool, finished.out, JUDGE), 1)
    made = {step.name for step in steps_of(Store(str(finished.out)))}
    assert set(found["reuse"]) == made and found["run"] == [] and found["then"] == ["write"]
    assert {path: path.stat().st_mtime_ns for path in finished.out.rglob("*")} == before


def test_what_a_changed_setting_leaves(finished: Finished) -> None:
    fewer = plan_steps(config_for(finished.pool, finished.out, JUDGE, "budget=20"), 1)
    assert "rounds/002/classifier" in fewer["reuse"] and fewer["run"] == []
    assert fewer["then"] == ["inference", "scores", "selected", "write"]
    encoder = plan_steps(config_for(finished.pool, finished.out, JUDGE, "encoder.prefix=x"), 1)
    assert encoder["reuse"] == ["ingest"] and [step["step"] for step in encoder["run"]] == ["embed"]
    assert encoder["run"][0]["seconds"] is None and "another encoder" in encoder["seconds_from"]


def test_seconds_are_measured_or_unknown(finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    config = config_for(finished.whole, tmp_path / "new", JUDGE)
    new = plan_steps(config, 1)
    assert (new["rows"], new["seconds"], new["reuse"]) == (197, None, [])
    assert [(step["step"], step["rows"], step["seconds"]) for step in new["run"]] == [
        ("ingest", 197, None),
        ("embed", 197, None),
    ]
    like = plan_steps(config, 1, str(finished.out))
    (embed,) = (step.require() for step in steps_of(Store(str(finished.out))) if step.name == "embed")
    assert like["run"][1]["seconds"] == round(embed.seconds / embed.rows * 197, 1)
    assert like["seconds"] == pytest.approx(sum(step["seconds"] for step in like["run"]))
    assert not (tmp_path / "new").exists()
    line = ["random", str(finished.whole), f"out={tmp_path / 'new'}", "--limit", "30"]
    for words in (["plan", *line], ["run", *line, "--dry-run", "--local"]):
        assert run_cli([*words, "--json"]) == 0
        steps = json.loads(capsys.readouterr().out)["steps"]
        assert steps["rows"] == 30 and steps["memory"] is None
        assert run_cli(words) == 0
        assert "rows     30" in capsys.readouterr().out
    assert run_cli(["run", *line[1:], "--methods", "random,longest", "--dry-run", "--local", "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)
    assert {label: plan["steps"]["rows"] for label, plan in plans.items()} == {"random": 30, "longest": 30}
    assert not (tmp_path / "new").exists()


def test_the_memory_of_a_member(tmp_path: Path) -> None:
    """What a real member holds at most while it reads its part is what the formula says of rows and dimensions."""
    rng, num, dim = np.random.default_rng(0), 60_000, 64
    x_ND = rng.normal(size=(num, dim))
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    ids, rows = pa.array([f"{k:032x}" for k in range(num)]), pa.array(np.arange(num))
    steps = [Step(Store(str(tmp_path)), name, {}) for name in ("ingest", "embed")]
    write_table(steps[0], pa.table([rows, ids], ["row", "id"]), 8192)
    write_table(steps[1], pa.table([rows, vectors_to_arrow(x_ND.astype(np.float16))], ["row", "vector"]), 8192)
    tracemalloc.start()
    shard = PoolShard(*steps, parts=list(range(8)), threads=1)
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    predicted = member_bytes(num, dim, 1, 1)
    assert len(shard.rows_N) == num and num * (2 * dim + 21) <= held
    assert most <= predicted < 1.3 * most
