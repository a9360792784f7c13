"""IterSelectTune with generator and judge on real engines, whole: in process, on Ray, with kills, and from a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Recorder
from tests.runs import config_for, outputs, run_ray
from tests.vllm.engines import choices, labels, round_tables

pytestmark = pytest.mark.vllm


def test_a_run_in_process(reference: Path) -> None:
    answers = [row for table in round_tables(reference, "answers") for row in table]
    assert all(row["error"] is None and row["finish"] in ("stop", "length") for row in answers)
    verdicts = [row for table in round_tables(reference, "verdicts") for row in table]
    judged = [row for row in verdicts if row["error"] is None and row["suspect"] is None]
    assert judged and all(row["first"] in ("A", "B", "tie") for row in judged)
    assert all(0 <= row["p_reference"] <= 1 for row in judged)


@pytest.mark.ray
def test_two_replicas_on_ray_give_the_same_labels(
    reference: Path, vllm_model: Path, small_pool: Path, tmp_path: Path, ray_cluster: Any
) -> None:
    config = config_for(small_pool, tmp_path / "out", *choices(vllm_model, small_pool, 2))
    summary = run_ray(config, Recorder(), workers=2, shards=2)
    assert summary["engines"]["answer"] == summary["engines"]["judge"] == {"started": 2, "died": 0, "blamed": 0}
    assert round_tables(tmp_path / "out", "answers") == round_tables(reference, "answers")
    assert labels(tmp_path / "out") == labels(reference)
    assert outputs(tmp_path / "out") == outputs(reference)
