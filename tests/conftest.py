"""Shared fixtures: real pools, the bundled encoder's presence, a real Ray cluster, and a silent observer."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.s3_server import BUCKET, S3Server

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).parents[1]
EXAMPLE_POOL = ROOT / "examples" / "pool.jsonl"
REAL_DATA = (ROOT / "../shared/data").resolve()


class Recorder:
    """An observer that remembers what it was told."""

    def __init__(self) -> None:
        self.done: list[tuple[str, bool]] = []
        self.rounds: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.spending: dict[str, Any] = {}

    def step_started(self, name: str, total_rows: int) -> None:
        """Not remembered."""

    def advance(self, name: str, rows: int) -> None:
        """Not remembered."""

    def used(self, name: str, amounts: Mapping[str, float]) -> None:
        """Not remembered."""

    def step_done(self, name: str, rows: int, seconds: float, failed: int, reused: bool) -> None:
        self.done.append((name, reused))

    def round_done(self, metrics: dict[str, Any]) -> None:
        self.rounds.append(metrics)

    def spent(self, step: str, facts: dict[str, Any]) -> None:
        self.spending = dict(facts)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets beside the project; tests that need it skip without it."""
    if not REAL_DATA.exists():
        pytest.skip("no real data beside the project")
    return REAL_DATA


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """A real Ray cluster with two CPUs on this machine, shared by the session's tests."""
    import ray

    from actors.cluster import connect

    if not ray.is_initialized():
        os.environ.pop("RAY_ADDRESS", None)
        # "local" said outright: else Ray joins whatever cluster runs on this machine
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=300 * 2**20)
    yield connect
    ray.shutdown()


@pytest.fixture(scope="session")
def small_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 200 lines of the example pool, bad ones among them, with a tiny real encoder in `encoder` beside it."""
    from tests.runs import make_tiny_encoder

    folder = tmp_path_factory.mktemp("pool")
    lines = EXAMPLE_POOL.read_bytes().splitlines(keepends=True)[:200]
    (folder / "pool.jsonl").write_bytes(b"".join(lines))
    make_tiny_encoder(folder / "encoder", [line.decode() for line in lines])
    return folder / "pool.jsonl"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3-compatible server, with the bucket `bucket`; the environment leads clients and their workers to it."""
    s3fs = pytest.importorskip("s3fs")
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        s3fs.S3FileSystem(use_listings_cache=False).mkdir(BUCKET)
        yield server
    server.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB; needs the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
