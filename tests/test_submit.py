"""Runs as Ray jobs: what may be submitted under which name, and the real thing against a real head with a token."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from engine.errors import ConfigError
from engine.events import Events
from engine.metrics import COUNTERS, EXPORTED_PREFIX
from engine.settings import load_config
from engine.store import Store
from engine.submission import Submission, job_settings, next_id, outcome, prefix_of, ship
from tests.conftest import EXAMPLE_POOL, Recorder
from tests.ray_head import RAY, Head
from tests.runs import config_for, outputs, run_local, settings

ONE_ROUND = ("recipe.max_rounds=1", "recipe.inference_steps=1")  # a head, jobs and their drivers take long enough


def job_of(out: Path, *overrides: str, shared: bool = True) -> dict[str, Any]:
    config = load_config("random", [str(EXAMPLE_POOL), f"out={out}", *overrides])
    return job_settings({None: config}, shared)


def test_a_failed_run_gets_the_next_attempt_and_a_running_or_finished_one_is_refused(tmp_path: Path) -> None:
    job = job_of(tmp_path / "out")
    first = next_id(job, [], fresh=False)
    assert first == next_id(job_of(tmp_path / "out", "runtime.workers=7", "paid.max_usd=1"), [], fresh=False)
    assert first.startswith(prefix_of(str(tmp_path / "out"))) and first.endswith("-1")
    failed = [Submission(first, "FAILED"), Submission(first[:-1] + "10", "STOPPED"), Submission("other-1", "RUNNING")]
    assert next_id(job, failed, fresh=False) == first[:-1] + "11"
    with pytest.raises(ConfigError, match="is running") as refused:
        next_id(job, [*failed, Submission(first[:-1] + "11", "RUNNING")], fresh=True)
    assert refused.value.code == "E273"
    done = [*failed, Submission(first[:-1] + "11", "SUCCEEDED")]
    with pytest.raises(ConfigError, match="finished") as refused:
        next_id(job, done, fresh=False)
    assert refused.value.code == "E274"
    assert next_id(job, done, fresh=True) == first[:-1] + "12"
    other = job_of(tmp_path / "out", "seed=3")
    assert next_id(other, done, fresh=False) not in {one.id for one in done}
    with pytest.raises(ConfigError, match="is pending"):  # of another seed, in the same folder
        next_id(other, [Submission(first, "PENDING")], fresh=False)


def test_a_run_that_was_finished_without_jobs_is_refused_too(tmp_path: Path) -> None:
    config = load_config("random", [str(EXAMPLE_POOL), f"out={tmp_path / 'out'}"])
    run_local(config, Recorder())
    Events(Store(config.out)).status("done", exit_code=0)
    with pytest.raises(ConfigError, match="finished"):
        next_id(job_of(tmp_path / "out"), [], fresh=False)
    assert next_id(job_of(tmp_path / "out", "budget=5"), [], fresh=False).endswith("-1")


def test_relative_paths_are_refused_unless_the_cluster_is_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(EXAMPLE_POOL, tmp_path / "pool.jsonl")
    monkeypatch.chdir(tmp_path)
    here = job_settings({None: load_config("random", ["pool.jsonl", "out=runs/a", "encoder.model=org/name"])}, True)
    assert (here["data"]["path"], here["out"]) == (str(tmp_path / "pool.jsonl"), str(tmp_path / "runs/a"))
    assert here["encoder"]["model"] == "org/name"  # an id of the hub
    assert here["runtime"]["mode"] == "ray" and here["runtime"]["address"] is None
    words = ["pool.jsonl", "recipe.target=pool.jsonl", "recipe.text=prompt", "output.name=pool.jsonl"]
    near = job_settings({None: load_config("rds_plus", words)}, True)
    assert near["recipe"]["target"]["path"] == str(tmp_path / "pool.jsonl")
    assert near["output"]["name"] == "pool.jsonl"  # a name, though there is such a file
    (tmp_path / "model").mkdir()
    for words in (
        ["pool.jsonl", "out=/shared/a"],
        ["/shared/pool.jsonl", "out=runs/a"],
        ["s3://bucket/pool.jsonl", "out=s3://bucket/a", "encoder.model=./model"],
    ):
        with pytest.raises(ConfigError, match="cannot see") as refused:
            job_settings({None: load_config("random", words)}, False)
        assert refused.value.code == "E272"
    far = ["s3://bucket/pool.jsonl", "/shared/more.jsonl", "out=s3://bucket/a"]
    assert job_settings({None: load_config("random", far)}, False)["data"]["path"] == far[:2]


def test_the_exit_code_is_the_runs_own(tmp_path: Path) -> None:
    job = Submission("iterselect-1-2-3", "FAILED", str(tmp_path), exit_code=5)
    assert outcome(job)[0] == 5
    (tmp_path / "status.json").write_text(
        json.dumps({"submission": job.id, "exit_code": 6, "reason": "too many failed rows"})
    )
    assert outcome(job) == (6, "too many failed rows")
    other = Submission("iterselect-1-2-4", "FAILED", str(tmp_path), exit_code=-9)  # status.json is of another attempt
    assert outcome(other)[0] == 1 and "signal 9" in outcome(other)[1]
    assert outcome(Submission("x-1", "STOPPED"))[0] == 130
    assert outcome(Submission("x-1", "SUCCEEDED"))[0] == 0


def test_what_is_shipped_runs_by_itself(tmp_path: Path) -> None:
    import subprocess
    import sys

    ship(tmp_path / "job", job_of(tmp_path / "out", "runtime.mode=local"), "abc123")
    command = [sys.executable, "-m", "engine", "run", "config.yaml", "--quiet", "--local"]
    done = subprocess.run(command, cwd=tmp_path / "job", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/run.json").read_text())["git"] == "abc123"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    head = Head()
    yield head
    head.close()


def scraped(head: Head) -> dict[tuple[str, str], float]:
    """(counter, step) -> amount, over all processes of the cluster."""
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(requests.get(head.metrics_url, timeout=30).text):
        for sample in family.samples:
            name = sample.name.removeprefix(EXPORTED_PREFIX)
            if name in COUNTERS:
                key = (name, sample.labels.get("step", ""))
                found[key] = found.get(key, 0.0) + sample.value
    return found


def kill_driver_after(out: Path, step: str) -> None:
    """kill -9 of the job's driver once a step is complete."""
    deadline = time.monotonic() + 240
    while not list(out.glob(f"steps/{step}-*/step.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(json.loads((out / "status.json").read_text())["pid"], signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_job_is_submitted_again_and_gives_the_bytes_of_an_undisturbed_run(
    head: Head, small_pool: Path, tmp_path: Path
) -> None:
    run_local(config_for(small_pool, tmp_path / "alone", *ONE_ROUND), Recorder())
    reference = outputs(tmp_path / "alone")
    words = ["iterselect", os.path.relpath(small_pool, tmp_path), *settings(small_pool, "out", *ONE_ROUND)[1:]]
    refused = head.iterselect("submit", *words, cwd=tmp_path, RAY_AUTH_TOKEN="wrong", RAY_AUTH_TOKEN_PATH="")
    assert refused.returncode == 3 and "refuses the token" in refused.stderr
    first = head.iterselect("submit", *words, "--no-wait", "--json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    submission = json.loads(first.stdout)["submission"]
    again = head.iterselect("submit", *words, cwd=tmp_path)
    assert again.returncode == 2 and "E273" in again.stderr
    kill_driver_after(tmp_path / "out", "embed")
    logs = head.iterselect("jobs", "logs", submission, "--follow", cwd=tmp_path)
    assert logs.returncode == 1 and "signal 9" in logs.stderr
    second = head.iterselect("submit", *words, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert f"{submission[:-1]}2: succeeded" in second.stderr and "selected" in second.stdout
    assert outputs(tmp_path / "out") == reference
    events = [json.loads(line) for line in (tmp_path / "out/events.jsonl").read_text().splitlines()]
    reused = [e["reused"] for e in events if e["kind"] == "step_done" and e["step"] == "embed"]
    assert reused[-1]  # the second attempt found it done; whether the first lived to say so is chance
    third = head.iterselect("submit", *words, cwd=tmp_path)
    assert third.returncode == 2 and "E274" in third.stderr


@pytest.mark.slow
@pytest.mark.ray
def test_plain_ray_job_submit_works_and_prometheus_sees_what_the_run_did(
    head: Head, small_pool: Path, tmp_path: Path
) -> None:
    words = settings(small_pool, tmp_path / "out", *ONE_ROUND)
    ship(tmp_path / "code", job_of(tmp_path / "out"), None)
    before = scraped(head)
    command = [*RAY, "job", "submit", "--address", head.address, "--working-dir", str(tmp_path / "code"), "--"]
    done = head.run(*command, "python", "-m", "engine", "run", "iterselect", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run_local(config_for(small_pool, tmp_path / "alone", *ONE_ROUND), Recorder())
    assert outputs(tmp_path / "out") == outputs(tmp_path / "alone")
    summary = json.loads((tmp_path / "out/run.json").read_text())["summary"]
    embed = next(step for step in summary["steps"] if step["name"] == "embed")
    assert embed["tokens"] > embed["rows"] and 0 < embed["busy_share"] <= 1 and embed["bytes"] > 0
    assert summary["cluster"]["cpus"] == 2 and summary["cluster"]["spilled_bytes"] == 0
    wanted = {
        ("iterselect_rows_total", "ingest"): summary["pool"],
        ("iterselect_rows_total", "embed"): embed["rows"],
        ("iterselect_tokens_total", "embed"): embed["tokens"],
        ("iterselect_bytes_total", "embed"): embed["bytes"],
        ("iterselect_rounds_total", ""): len(summary["rounds"]),
        ("iterselect_rows_total", "rounds/*/answers"): sum(entry["judged"] for entry in summary["rounds"]),
    }
    deadline = time.monotonic() + 60
    while True:  # the endpoint is filled every few seconds
        after = scraped(head)
        found = {key: after.get(key, 0) - before.get(key, 0) for key in wanted}
        if found == wanted or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert found == wanted
    busy = ("iterselect_busy_seconds_total", "embed")
    assert after[busy] - before.get(busy, 0) == pytest.approx(embed["busy_s"], abs=0.01)
