"""A run folder and inputs on a real S3-compatible server: the same bytes as on a disk, few reads, clear errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.artifacts import Step
from engine.cli import run_cli
from engine.data.ingest import Ingest
from engine.data.inputs import resolve_inputs
from engine.errors import EnvironmentProblem
from engine.remote import RANGE_BYTES, READS
from engine.schema import ROW
from engine.store import Store
from tests.conftest import Recorder, write_jsonl
from tests.paid.ledgers import RUN, fresh, record, written
from tests.runs import config_for, outputs, run_local, settings
from tests.s3_server import S3Server

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def reference(small_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("reference") / "out"
    run_local(config_for(small_pool, out), Recorder())
    return outputs(out)


def objects(root: str, reference: dict[str, bytes]) -> dict[str, bytes]:
    """What a run on S3 put where a local one has its outputs; nothing more may lie there."""
    store = Store(root)
    for folder in ("data", "scores"):
        assert [f"{folder}/{name}" for name in store.list(folder)] == [
            n for n in reference if n.startswith(f"{folder}/")
        ]
    return {name: store.read_bytes(name) for name in reference}


def select(capsys: Capture, *line: str) -> dict[str, Any]:
    assert run_cli(["run", *line, "--local", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_on_s3_is_a_local_run_byte_for_byte(
    s3_server: S3Server, small_pool: Path, reference: dict[str, bytes], capsys: Capture
) -> None:
    out = "s3://bucket/equal"
    summary = select(capsys, "iterselect", *settings(small_pool, out))
    assert objects(out, reference) == reference
    run = json.loads(Store(out).read_bytes("run.json"))
    reads = {
        step["name"]: (step["read_requests"], step["read_bytes"]) for step in summary["steps"] if "read_bytes" in step
    }
    assert {"embed", "write"} <= reads.keys() and run["summary"]["steps"] == summary["steps"]
    embed = next(name for name in Store(out).list("steps") if name.startswith("embed-"))
    stored = json.loads(Store(out).read_bytes(f"steps/{embed}/step.json"))
    assert stored["read_requests"] <= reads["embed"][0] and stored["read_bytes"] <= reads["embed"][1]
    assert len(stored["parts"]) <= reads["embed"][0] <= 8 * len(stored["parts"])
    again = select(capsys, "iterselect", *settings(small_pool, out))
    assert all(step["reused"] for step in again["steps"] if step["name"] not in ("start", "write"))


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_on_ray_and_s3_is_a_local_run_byte_for_byte(
    s3_server: S3Server, small_pool: Path, reference: dict[str, bytes]
) -> None:
    out = "s3://bucket/on-ray"
    line = ["run", "iterselect", *settings(small_pool, out, "runtime.workers=2", "runtime.shards=3"), "--quiet"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-m", "engine", *line], env=environment, check=False, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode()
    assert objects(out, reference) == reference


def test_input_on_s3_is_read_in_large_ranges(s3_server: S3Server, tmp_path: Path, capsys: Capture) -> None:
    rows = [{"prompt": f"{n} {'p' * 500}", "completion": f"{n} {'c' * 40_000}"} for n in range(500)]
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    size = pool.stat().st_size
    Store("s3://bucket/input").write_bytes("pool.jsonl", pool.read_bytes())
    READS.take()
    s3_server.requests.clear()
    tables = list(Ingest(resolve_inputs("s3://bucket/input/*.jsonl")))
    reads = READS.take()
    assert sum(table.num_rows for table in tables) == len(rows)
    assert -(-size // RANGE_BYTES) <= reads.requests <= -(-size // RANGE_BYTES) + 4  # and the head of the file
    assert size <= reads.bytes <= size + 2 * RANGE_BYTES
    assert s3_server.requests.total() < 30
    names = ("ids.txt", "data/train-00000-of-00001.parquet")
    for data, out in ((str(pool), tmp_path / "a"), ("s3://bucket/input/pool.jsonl", tmp_path / "b")):
        select(capsys, "random", data, f"out={out}", "budget=50")
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_a_changed_object_is_read_again(s3_server: S3Server, tmp_path: Path, capsys: Capture) -> None:
    rows = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(20)]
    store, line = Store("s3://bucket/changing"), ["s3://bucket/changing/pool.jsonl", f"out={tmp_path / 'out'}"]
    for count in (10, 20):
        store.write_bytes("pool.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows[:count]))
        assert select(capsys, "random", *line, "budget=5")["pool"] == count


def test_a_ledger_on_s3(s3_server: S3Server) -> None:
    store = Store("s3://bucket/ledger")
    written(store, [record("a")], [record("b")], close=False)
    written(store, [record("c")])
    totals = fresh(store).totals(RUN)
    assert (totals.calls, totals.in_doubt) == (3, 0)


def test_errors_say_what_is_missing(s3_server: S3Server, small_pool: Path, tmp_path: Path, capsys: Capture) -> None:
    pool, here = str(small_pool), f"out={tmp_path / 'out'}"
    for line, code, words in (
        ([pool, "out=s3://no-such-bucket/run"], 3, ["E312", "create the bucket", "s3://no-such-bucket"]),
        (["s3://no-such-bucket/x.jsonl", here], 3, ["E312", "create the bucket"]),
        (["s3://bucket/missing.jsonl", here], 4, ["E401", "input not found"]),
        ([pool, "out=nosuch://bucket/run"], 2, ["E243", "known URI"]),
    ):
        assert run_cli(["run", "random", *line, "--local"]) == code
        told = capsys.readouterr().err
        assert all(word in told for word in words) and "Traceback" not in told
    Store("s3://bucket").write_bytes("somebodys/data/precious.jsonl", b"{}")
    assert run_cli(["run", "random", pool, "out=s3://bucket/somebodys", "--local"]) == 2
    assert "E240" in capsys.readouterr().err and Store("s3://bucket/somebodys").list() == ["data"]


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("import sys; sys.modules['s3fs'] = None", ["E311", "pip install 'iterselect[s3]'"]),
        ("import os; [os.environ.pop(k) for k in list(os.environ) if k.endswith('_KEY_ID')]", ["E313", "credentials"]),
    ],
)
def test_no_package_and_no_credentials(
    s3_server: S3Server, small_pool: Path, tmp_path: Path, python: str, words: list[str]
) -> None:
    line = ["run", "random", str(small_pool), "out=s3://bucket/none", "--local"]
    code = f"{python}; import sys; from engine.cli import run_cli; sys.exit(run_cli({line!r}))"
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_a_store_that_throttles_and_then_fails(s3_server: S3Server, small_pool: Path, capsys: Capture) -> None:
    """A few refusals are repeated by the client; many end the run, which the same command then continues."""
    store = Store("s3://bucket/faults")
    s3_server.fail(3, 503, b"SlowDown")
    store.write_bytes("status.json", b"{}\n")
    assert store.read_bytes("status.json") == b"{}\n"
    line = [str(small_pool), "budget=20", "data.part_rows=20"]
    out = "out=s3://bucket/faults"
    s3_server.fail(10**6, 500, b"InternalError")
    try:
        with pytest.raises(EnvironmentProblem, match=r"HTTP 500; tried 2 times") as caught:
            store.write_bytes("x", b"")
        assert caught.value.code == "E314" and "same command again" in caught.value.fix
        assert run_cli(["run", "random", *line, out, "--local"]) == 3
    finally:
        s3_server.fail(0, 0, b"")
    assert "E314" in capsys.readouterr().err
    select(capsys, "random", *line, out)


def test_columns_of_a_part_are_read_without_the_others(s3_server: S3Server) -> None:
    rng, rows = np.random.default_rng(0), 2000
    texts = [rng.bytes(400).hex() for _ in range(rows)]
    step = Step(Store("s3://bucket/columns"), "ingest", {})
    part = step.commit(0, pa.table({ROW: np.arange(rows), "prompt": texts, "record": texts[::-1]}))
    step.finish(started=time.monotonic(), rows=rows)
    s3_server.requests.clear()
    before = s3_server.bytes_out
    assert step.read(0, [ROW, "prompt"])["prompt"].to_pylist() == texts
    assert s3_server.bytes_out - before < 0.6 * part.size_bytes
    assert s3_server.requests["GET"] <= 4  # footer, columns; the step's record is there


def test_files_go_to_a_store_and_from_it_in_pieces(s3_server: S3Server, tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(3 << 20)
    (tmp_path / "made").write_bytes(data)
    near, far = Store(tmp_path), Store("s3://bucket/files")
    far.copy_file(near, "made", "a/there")
    far.copy_file(far, "a/there", "b/there")
    near.copy_file(far, "b/there", "back")
    assert far.read_bytes("b/there") == (tmp_path / "back").read_bytes() == data
    with pytest.raises(FileNotFoundError):
        near.copy_file(far, "nowhere", "nothing")
    assert not (tmp_path / "nothing").exists()
