"""When a finished run writes its outputs again: not while they are its own, and always when they may be another's."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import RunConfig
from engine.errors import EnvironmentProblem
from engine.job import execute
from engine.local import LocalRuntime
from engine.settings import load_config
from engine.store import Store
from tests.conftest import Recorder
from tests.runs import outputs, run_local


def draw(pool: Path, out: Path, seed: int) -> RunConfig:
    return load_config("random", [str(pool), f"out={out}", "budget=9", f"seed={seed}"])


def test_outputs_of_two_settings_are_never_taken_for_one(small_pool: Path, tmp_path: Path, recorder: Recorder) -> None:
    out = tmp_path / "out"
    run_local(draw(small_pool, out, 1), recorder)
    first, rejected = outputs(out), (out / "rejected.jsonl").read_bytes()
    assert run_local(draw(small_pool, out, 1), recorder)["up_to_date"]
    (out / "rejected.jsonl").unlink()
    (out / "rejected.jsonl").mkdir()  # the other run stops here, with its rows in data/ and scores/ already
    with pytest.raises(EnvironmentProblem, match=r"rejected\.jsonl"):
        execute(draw(small_pool, out, 2), Store(out), LocalRuntime(recorder), {})
    (out / "rejected.jsonl").rmdir()
    (out / "rejected.jsonl").write_bytes(rejected)
    assert outputs(out) != first
    assert "up_to_date" not in run_local(draw(small_pool, out, 1), recorder)
    assert outputs(out) == first
