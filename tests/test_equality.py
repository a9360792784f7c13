"""The central promise: the same selection on the same pool, whatever runs it and however it is split."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from engine.job import execute
from engine.local import LocalRuntime
from engine.store import Store
from tests.conftest import Recorder
from tests.runs import config_for, outputs, run_local, run_ray


@pytest.fixture(scope="module")
def reference(small_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("reference") / "out"
    run_local(config_for(small_pool, out), Recorder())
    found = outputs(out)
    assert {"ids.txt", "rejected.jsonl"} <= found.keys()
    return found


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_local_with_shards(
    small_pool: Path, reference: dict[str, bytes], tmp_path: Path, recorder: Any, shards: int
) -> None:
    run_local(config_for(small_pool, tmp_path / "out"), recorder, shards)
    assert outputs(tmp_path / "out") == reference


@pytest.mark.ray
@pytest.mark.parametrize(("workers", "shards"), [(1, 1), (2, 3), (3, 7)])
@pytest.mark.slow
def test_ray_with_workers_and_shards(
    small_pool: Path,
    reference: dict[str, bytes],
    tmp_path: Path,
    recorder: Any,
    ray_cluster: Any,
    workers: int,
    shards: int,
) -> None:
    run_ray(config_for(small_pool, tmp_path / "out"), recorder, workers, shards)
    assert outputs(tmp_path / "out") == reference


@pytest.mark.ray
@pytest.mark.slow
def test_two_levels_of_clusters_on_ray(small_pool: Path, tmp_path: Path, recorder: Any, ray_cluster: Any) -> None:
    configs = [config_for(small_pool, tmp_path / name, "kmeans.method=two_level") for name in ("local", "ray")]
    run_local(configs[0], recorder)
    run_ray(configs[1], recorder, 2, 3)
    assert outputs(tmp_path / "local") == outputs(tmp_path / "ray")


def test_permuted_input_selects_the_same_ids(
    small_pool: Path, reference: dict[str, bytes], tmp_path: Path, recorder: Any
) -> None:
    lines = small_pool.read_bytes().splitlines(keepends=True)
    random.Random(5).shuffle(lines)
    permuted = tmp_path / "pool.jsonl"
    permuted.write_bytes(b"".join(lines))
    encoder = f"encoder.model={small_pool.parent / 'encoder'}"
    run_local(config_for(permuted, tmp_path / "out", encoder), recorder)
    assert (tmp_path / "out" / "ids.txt").read_bytes() == reference["ids.txt"]


def test_an_fsspec_run_folder_gives_the_same_bytes(
    small_pool: Path, reference: dict[str, bytes], recorder: Any
) -> None:
    config = config_for(small_pool, Path("unused")).model_copy(update={"out": "memory://equality-run"})
    store = Store(config.out)
    execute(config, store, LocalRuntime(recorder), {})
    assert {name: store.read_bytes(name) for name in reference} == reference


def when_made(out: Path) -> dict[Path, int]:
    """Every file of every step, checkpoints included, with the time it was written."""
    return {
        path: path.stat().st_mtime_ns
        for folder in ("steps", "rounds", "inference")
        for path in (out / folder).rglob("*-*/*")
    }


@pytest.mark.parametrize("inference", ["iterative", "one_shot"])
def test_a_rerun_repeats_nothing_and_writes_the_same(
    small_pool: Path, tmp_path: Path, recorder: Any, inference: str
) -> None:
    config = config_for(small_pool, tmp_path / "out", f"recipe.inference={inference}")
    run_local(config, recorder)
    before, made = outputs(tmp_path / "out"), when_made(tmp_path / "out")
    recorder.done.clear()
    run_local(config, recorder)
    assert outputs(tmp_path / "out") == before
    assert when_made(tmp_path / "out") == made
    assert all(reused for name, reused in recorder.done if name != "write"), recorder.done


def test_a_changed_setting_reruns_only_what_depends_on_it(small_pool: Path, tmp_path: Path, recorder: Any) -> None:
    run_local(config_for(small_pool, tmp_path / "out"), recorder)
    recorder.done.clear()
    run_local(config_for(small_pool, tmp_path / "out", "recipe.alpha=0.3"), recorder)
    redone = {name for name, reused in recorder.done if not reused}
    assert not redone & {"ingest", "embed", "diverse", "rounds/000/answers", "rounds/000/verdicts"}
    assert "rounds/001/verdicts" in redone


def test_every_row_is_accounted_for(small_pool: Path, tmp_path: Path, recorder: Any) -> None:
    out = tmp_path / "out"
    summary = run_local(config_for(small_pool, out), recorder)
    rejected = sum(summary["rejected"].values())
    assert summary["rows_read"] == summary["pool"] + rejected + summary["duplicates"] == 200
    scores = pq.read_table(out / "scores")
    assert scores.num_rows == summary["pool"]
    assert sum(scores["selected"].to_pylist()) == summary["selected"] == 40
    assert all(scores["reason"].to_pylist())
    assert len((out / "rejected.jsonl").read_text().splitlines()) == rejected
    assert json.loads((out / "run.json").read_text())["summary"]["selected"] == 40
