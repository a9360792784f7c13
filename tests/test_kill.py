"""`kill -9` at random moments of driver and workers: the same command then gives the same bytes."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import Recorder
from tests.runs import config_for, outputs, run_local, run_ray, settings

KILLS = 20
TITLE = re.compile(r"ray::(Host|MapWorker)\b")
pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def reference(small_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_local(config_for(small_pool, out), Recorder())
    return outputs(out)


def start(pool: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "engine", "run", "iterselect", str(pool), *settings(pool, out)[1:], "--quiet"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


def check_finished(out: Path, reference: dict[str, bytes]) -> None:
    """Same bytes, everything accounted for, and no step was made twice."""
    assert outputs(out) == reference
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    made = Counter(e["step"] for e in events if e["kind"] == "step_done" and not e["reused"])
    repeated = {step: count for step, count in made.items() if count > 1 and step not in ("start", "write")}
    assert not repeated
    summary = json.loads((out / "run.json").read_text())["summary"]
    assert summary["rows_read"] == summary["pool"] + sum(summary["rejected"].values()) + summary["duplicates"]


def test_the_driver_is_killed(small_pool: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    rng, kills, folder = random.Random(1), 0, 0
    while True:
        out = tmp_path / f"out{folder}"
        process = start(small_pool, out)
        try:
            process.wait(timeout=rng.uniform(4.0, 22.0) if kills < KILLS else 300)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert process.returncode == 0
        check_finished(out, reference)
        folder += 1
        if kills >= KILLS:
            return


def ray_workers() -> dict[str, list[psutil.Process]]:
    """Processes of this test's cluster that hold an actor of ours, by kind.

    Ray titles them `ray::Host`, `ray::Host.call` or `ray::MapWorker(...)`.
    """
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if match := TITLE.match(title):
            found.setdefault(match[1], []).append(process)
    return found


class Killer(threading.Thread):
    """Kills a random worker every few seconds; where there are hosts, mostly one of those."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self.rng, self.over = rng, threading.Event()
        self.kills: Counter[str] = Counter()

    def run(self) -> None:
        while not self.over.wait(self.rng.uniform(1.0, 6.0)):
            workers = ray_workers()
            if not workers:
                continue
            kinds = sorted(workers)
            kind = self.rng.choices(kinds, [3 if kind == "Host" else 1 for kind in kinds])[0]
            try:
                self.rng.choice(workers[kind]).kill()
                self.kills[kind] += 1
            except psutil.NoSuchProcess:
                continue


def test_workers_are_killed(small_pool: Path, reference: dict[str, bytes], tmp_path: Path, ray_cluster: Any) -> None:
    rng, run = random.Random(2), 0
    kills: Counter[str] = Counter()
    deadline = time.monotonic() + 1200
    while kills.total() < KILLS or kills["Host"] < KILLS // 2 or not kills["MapWorker"]:
        assert time.monotonic() < deadline, f"only {dict(kills)} could be killed"
        out = tmp_path / f"out{run}"
        killer = Killer(rng)
        killer.start()
        try:
            run_ray(config_for(small_pool, out), Recorder(), workers=2, shards=3)
        finally:
            killer.over.set()
            killer.join()
        assert outputs(out) == reference
        kills, run = kills + killer.kills, run + 1
    assert set(kills) == {"Host", "MapWorker"}
