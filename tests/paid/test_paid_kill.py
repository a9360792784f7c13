"""`kill -9` at random moments of paid judging: nothing that was paid is lost, and little is paid twice.

After every kill the ledger is compared with what the server knows, and at the end of every folder the verdicts with
those of a run that nobody disturbed.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from engine.config import RuntimeConfig
from engine.paid.ledger import LedgerIndex, Totals
from engine.paid.ledger_tools import verify
from engine.store import Store
from tests.conftest import Recorder
from tests.fake_server import FakeServer
from tests.paid.judge_job import start_job
from tests.paid.paid_rows import PRICE, judge_config, judge_rows, make_rows
from tests.runs import config_for, outputs, run_local, run_ray

ROWS, CONCURRENCY = 300, 16
DRIVER_KILLS, CALLER_KILLS, OTHER_KILLS = 88, 10, 2
LATENCY_S = 0.03
CAP_USD = 20.0
REFUSED = {"rate_limited": 0.1, "retry_after_s": 0.05, "server_error_500": 0.05, "unavailable_503": 0.05}
pytestmark = pytest.mark.slow


def billed_usd(stats: dict[str, Any]) -> float:
    return (PRICE["input"] * stats["tokens_in"] + PRICE["output"] * stats["tokens_out"]) / 1e6


def settled(server: FakeServer) -> dict[str, Any]:
    """The server's counts once it has noticed that its clients are gone."""
    while True:
        stats = server.stats()
        if not stats["concurrent"]:
            return stats
        time.sleep(0.002)


@dataclass
class Books:
    """What the server did and what the ledger knows of it, compared after every kill.

    Args:
        server: reset at the beginning of the folder.
        ledger: of the folder.
        in_flight: most calls that one kill can interrupt.
    """

    server: FakeServer
    ledger: Path
    in_flight: int
    unknown: int = 0
    totals: Totals = field(default_factory=Totals)

    def check(self, cap_usd: float) -> dict[str, Any]:
        """A call that the server completed is in the ledger, or it was in flight when somebody was killed."""
        stats = settled(self.server)
        index = LedgerIndex(Store(self.ledger))
        index.refresh()
        self.totals, before = index.totals(), self.unknown
        self.unknown = stats["distinct_completed"] - len(index)
        assert 0 <= self.unknown <= before + self.in_flight
        assert billed_usd(stats) <= self.totals.cost_usd + 1e-9, "more was billed than the ledger admits"
        assert self.totals.cost_usd <= cap_usd, "the cap does not hold"
        return stats

    def check_finished(self, cap_usd: float, kills: int) -> dict[str, Any]:
        """Nothing is lost: what the server completed and what the ledger holds are the same calls."""
        stats = self.check(cap_usd)
        assert self.unknown == 0
        assert stats["repeated_completed"] <= kills * self.in_flight
        assert self.totals.repeated <= kills * self.in_flight
        assert self.totals.in_doubt <= kills * self.in_flight
        assert not verify(Store(self.ledger)).problems
        return stats


def kill_at_random(job: BaseProcess, server: FakeServer, received: int, rng: random.Random) -> bool:
    """Kills a driver, mostly soon after its first call; False when it ended before."""
    if rng.random() < 0.1:  # anywhere in its start
        job.join(rng.uniform(0.0, 0.3))
    else:
        while job.is_alive() and server.stats()["received"] == received:
            time.sleep(0.003)
        job.join(rng.uniform(0.0, 0.25))
    job.kill()
    job.join()
    return job.exitcode == -9


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    with FakeServer() as server:
        return judge_rows(tmp_path_factory.mktemp("undisturbed"), make_rows(ROWS), judge_config(server.url))


def judge_under_fire(
    server: FakeServer, out: Path, settings: dict[str, Any], rng: random.Random, kills_wanted: int, step_usd: float
) -> tuple[int, int, Books]:
    """One folder to its end, killed at most so often; its cap is raised whenever it is reached."""
    books, kills, cap_usd, stops = Books(server, out / "ledger", CONCURRENCY), 0, step_usd, 0
    while True:
        received = server.stats()["received"]
        job = start_job(out, ROWS, server.url, settings, {"max_usd": cap_usd})
        if kills < kills_wanted:
            kills += kill_at_random(job, server, received, rng)
        else:
            job.join()
        books.check(cap_usd)
        if job.exitcode == 5:
            stops, cap_usd = stops + 1, cap_usd + step_usd
        elif job.exitcode == 0:
            books.check_finished(cap_usd, kills)
            return kills, stops, books
        else:
            assert job.exitcode == -9


def test_the_driver_is_killed(undisturbed: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, counts, folder = random.Random(11), Counter[str](), 0
    while counts["kills"] < DRIVER_KILLS:
        faults = REFUSED if folder % 2 else {}
        settings = {"concurrency": CONCURRENCY, "processes": folder % 3 + 1, "max_attempts": 20}
        out = tmp_path / f"out{folder}"
        with FakeServer(latency_s=LATENCY_S, seed=folder, **faults) as server:
            wanted = min(20, DRIVER_KILLS - counts["kills"])
            kills, stops, books = judge_under_fire(server, out, settings, rng, wanted, step_usd=0.4)
            stats = server.stats()
            received = stats["received"]
            table = judge_rows(out, make_rows(ROWS), judge_config(server.url, **settings))
            assert server.stats()["received"] == received
        assert table.equals(undisturbed)
        counts.update(kills=kills, stops=stops, repeated=stats["repeated_completed"])
        counts.update(in_doubt=books.totals.in_doubt, calls=stats["completed"])
        folder += 1
    with capsys.disabled():
        print(f"\n{folder} folders, {counts['kills']} drivers killed: {dict(counts)}, lost 0")


class Killer(threading.Thread):
    """Kills a process that makes calls every few seconds, and now and then another host: the limiter lives in one."""

    def __init__(self, rng: random.Random, port: int, most: int) -> None:
        super().__init__(daemon=True)
        self.rng, self.port, self.most, self.over = rng, port, most, threading.Event()
        self.kills: Counter[str] = Counter()

    def run(self) -> None:
        while self.kills.total() < self.most and not self.over.wait(self.rng.uniform(0.3, 1.5)):
            found = hosts(self.port)
            if not found["caller"]:
                continue
            kind = "other" if found["other"] and self.rng.random() < 0.2 else "caller"
            try:
                self.rng.choice(found[kind]).kill()
                self.kills[kind] += 1
            except psutil.NoSuchProcess:
                continue


def hosts(port: int) -> dict[str, list[psutil.Process]]:
    """Hosts of this test's cluster: those that are connected to the server, and the others."""
    found: dict[str, list[psutil.Process]] = {"caller": [], "other": []}
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith("ray::Host"):
                calls = any(c.raddr and c.raddr.port == port for c in process.net_connections("tcp"))
                found["caller" if calls else "other"].append(process)
        except psutil.Error:
            continue
    return found


def verdicts(out: Path) -> dict[str, bytes]:
    """Every part of verdicts, by the name of its step's folder and part."""
    return {
        f"{path.parent.name}/{path.name.split('-')[1]}": path.read_bytes()
        for path in sorted(out.glob("rounds/*/verdicts-*/part-*.parquet"))
    }


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@contextmanager
def killing(server: FakeServer, out: Path, rng: random.Random, counts: Counter[str], most: int) -> Iterator[None]:
    """Kills at most so many members while the block runs; then the books of the folder must be right."""
    server.reset()
    killer = Killer(rng, server.port, most)
    killer.start()
    try:
        yield
    finally:
        killer.over.set()
        killer.join()
    kills = killer.kills.total()
    books = Books(server, out / "ledger", CONCURRENCY, unknown=kills * CONCURRENCY)
    stats = books.check_finished(CAP_USD, kills)
    counts.update(killer.kills, repeated=stats["repeated_completed"], in_doubt=books.totals.in_doubt)
    counts.update(calls=stats["completed"], runs=1)


@pytest.mark.ray
def test_members_are_killed(
    server: FakeServer, undisturbed: pa.Table, tmp_path: Path, ray_cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from actors.cluster import plan, resources
    from actors.runtime import RayRuntime

    rng, counts, deadline = random.Random(12), Counter[str](), time.monotonic() + 600
    server.faults(latency_s=0.2)
    config = judge_config(server.url, processes=2, concurrency=CONCURRENCY)
    while counts["caller"] < CALLER_KILLS or counts["other"] < OTHER_KILLS:
        assert time.monotonic() < deadline, f"only {dict(counts)} could be killed"
        out = tmp_path / f"out{counts['runs']}"
        runtime = RayRuntime(plan(resources(), RuntimeConfig(workers=2)), Recorder())
        with killing(server, out, rng, counts, most=16):
            table = judge_rows(out, make_rows(ROWS), config, runtime, max_usd=CAP_USD)
        assert table.equals(undisturbed)
    with capsys.disabled():
        print(f"\n{counts['caller']} judges and {counts['other']} other hosts killed: {dict(counts)}, lost 0")


@pytest.mark.ray
def test_members_of_a_whole_run_are_killed(
    small_pool: Path, server: FakeServer, tmp_path: Path, ray_cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, counts = random.Random(13), Counter[str]()
    endpoint = {"kind": "openai", "model": "m", "base_url": server.url, "api_key_env": None, "price": PRICE}
    judge = {**endpoint, "processes": 2, "concurrency": 4, "canaries": 0.0}
    overrides = (f"recipe.judge={json.dumps(judge)}", f"paid.max_usd={CAP_USD}", "recipe.part_rows=2")
    run_local(config_for(small_pool, tmp_path / "undisturbed", *overrides), Recorder())
    reference = outputs(tmp_path / "undisturbed"), verdicts(tmp_path / "undisturbed")
    server.faults(latency_s=0.5)
    out = tmp_path / "out"
    with killing(server, out, rng, counts, most=6):
        run_ray(config_for(small_pool, out, *overrides), Recorder(), workers=2, shards=2)
    assert counts["caller"]
    assert (outputs(out), verdicts(out)) == reference
    with capsys.disabled():
        print(f"\n{counts['caller']} judges and {counts['other']} other hosts killed: {dict(counts)}, lost 0")
