"""The bench: its pools have what was planted, its figures mean what they say, and the command compares records."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.figures import Figure, compared, exponent
from benchmarks.pool import BLOCK_ROWS, blocks, write_pool
from benchmarks.record import paired
from benchmarks.watch import Watched
from engine import cli_bench
from engine.cli import run_cli


def test_a_pool_is_a_prefix_of_a_larger_one_and_has_what_was_planted(tmp_path: Path) -> None:
    write_pool(tmp_path / "large.jsonl", BLOCK_ROWS + 100, topics=20, hard=0.3, seed=4)
    write_pool(tmp_path / "small.parquet", 500, topics=20, hard=0.3, seed=4)
    large = [json.loads(line) for line in (tmp_path / "large.jsonl").read_text().splitlines()]
    assert len(large) == BLOCK_ROWS + 100 and large[:500] == pq.read_table(tmp_path / "small.parquet").to_pylist()
    assert len({row["prompt"] for row in large}) == len(large)
    assert math.isclose(sum(row["hard"] for row in large) / len(large), 0.3, abs_tol=0.02)
    assert {row["topic"] for row in large} == set(range(20))
    words = {flag: {w for row in large if row["hard"] == flag for w in row["prompt"].split()[2:5]} for flag in (0, 1)}
    assert not words[0] & words[1]
    shared = {flag: [overlap(row) for row in large[:2000] if row["hard"] == flag] for flag in (0, 1)}
    assert min(shared[1]) > max(0, sum(shared[0]) / len(shared[0]))


def overlap(row: dict[str, Any]) -> int:
    return len({*row["prompt"].split()} & {*row["completion"].rstrip(".").split()})


def test_blocks_have_one_schema() -> None:
    tables = list(blocks(BLOCK_ROWS + 1, 3, 0.5, 0))
    assert [table.num_rows for table in tables] == [BLOCK_ROWS, 1]
    assert pa.concat_tables(tables).num_rows == BLOCK_ROWS + 1


def test_exponents_and_targets() -> None:
    assert exponent([1000, 10_000], [1.0, 10.0]) == pytest.approx(0)
    assert exponent([1000, 10_000, 100_000], [1.0, 100.0, 10_000.0]) == pytest.approx(1)
    assert Figure("a", 0.7, "x", "higher", 0.6).reached is True
    assert Figure("a", 0.7, "MB", "lower", 0.6).reached is False
    assert Figure("a", 0.7, "").reached is None


def test_cpu_seconds_of_a_step_come_from_the_samples_next_to_it() -> None:
    watched = Watched(cpu=[(100.0, 1.0), (102.0, 5.0), (104.0, 5.0)])
    assert watched.cpu_between(101.0, 103.0) == pytest.approx(2.0)
    assert watched.cpu_between(90.0, 200.0) == pytest.approx(4.0) and watched.cpu_s == 5.0


def test_a_pair_takes_turns_after_one_call_of_each() -> None:
    calls: list[str] = []

    def work(name: str) -> None:
        calls.append(name if sum(range(100_000)) else "")  # CPU time has to pass

    pair = paired(lambda: work("a"), lambda: work("b"), 3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert pair["rounds"] == 3 and pair["ratio"]["min"] > 0


def test_records_compare_in_the_direction_of_each_figure() -> None:
    def stages(rate: float, seconds: float) -> dict[str, Any]:
        figures = [
            {"name": "rate", "value": rate, "unit": "rows/s", "better": "higher"},
            {"name": "time", "value": seconds, "unit": "s", "better": "lower"},
            {"name": "rows", "value": 3, "unit": "rows", "better": None},
        ]
        return {"kmeans": {"figures": figures}}

    lines = compared({**stages(50.0, 8.0), "new": {"figures": []}}, stages(100.0, 4.0))
    assert [(line["name"], line["ratio"]) for line in lines] == [("rate", 0.5), ("time", 0.5)]


def bench(tmp_path: Path, *words: str) -> int:
    small = ["--rows", "3000", "--dim", "32", "--clusters", "20", "--rounds", "1", "--folder", str(tmp_path)]
    return run_cli(["bench", *words, *small])


@pytest.mark.slow
def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert bench(tmp_path, "kmeans", "similarity", "classify", "-o", str(out)) == 0
    record = json.loads(out.read_text())
    assert list(record["result"]["stages"]) == ["kmeans", "similarity", "classify"]
    figures = {one["name"]: one for one in record["result"]["stages"]["similarity"]["figures"]}
    assert figures["largest difference to faiss"]["value"] < 1e-5
    assert "similarity" in out.with_suffix(".md").read_text() and "<svg" in out.with_suffix(".svg").read_text()
    assert "share of sgemm's speed" in capfd.readouterr().out
    for stage in record["result"]["stages"].values():  # what was measured before was a thousand times better
        for one in stage["figures"]:
            one["value"] *= {"higher": 1000, "lower": 0.001, None: 1}[one["better"]]
    out.write_text(json.dumps(record))
    again = ["-o", str(tmp_path / "again.json"), "--baseline", str(out)]
    assert bench(tmp_path, "classify", *again) == 1
    assert "WORSE" in capfd.readouterr().out
    assert bench(tmp_path, "classify", *again, "--worst", "1e6") == 0
    assert bench(tmp_path, "nothing") == 2
    assert "kmeans" in capfd.readouterr().err


def test_what_is_wrong_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    assert bench(tmp_path, "--sizes", "1e5,many") == 2
    assert "1e5,many" in capfd.readouterr().err
    monkeypatch.setattr(cli_bench, "ROOT", tmp_path)  # where a wheel was unpacked
    assert bench(tmp_path) == 3
    assert "source tree" in capfd.readouterr().err
