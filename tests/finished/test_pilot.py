"""`--limit`: a sample of the pool that depends on the ids and the seed alone, and on nothing else of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engine.cli import run_cli
from engine.config import RunConfig
from engine.paid.estimate import draw_sample
from engine.schema import id_words, seeded_hash
from engine.settings import load_config
from tests.finished.conftest import scores_of

Capture = pytest.CaptureFixture[str]


def line(pool: Path, out: Path, *words: str) -> list[str]:
    return ["run", "longest", str(pool), f"out={out}", "budget=0.25", "data.part_rows=24", "--local", *words]


def config(pool: Path, out: Path, limit: int) -> RunConfig:
    return load_config("longest", [str(pool), f"out={out}", "data.part_rows=24", f"data.limit={limit}"])


def test_a_pilot_is_the_rows_of_smallest_hash(small_pool: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert run_cli(line(small_pool, out, "--limit", "60")) == 0
    printed, progress = capsys.readouterr()
    assert "left out 137 a pilot: the rest was not drawn" in " ".join(printed.split())
    assert "a pilot: 60 of 197 rows" in progress
    pilot = scores_of(out)
    assert run_cli(line(small_pool, out, "--json")) == 0
    summary = json.loads(capsys.readouterr().out)
    assert {step["name"]: step["reused"] for step in summary["steps"]}["ingest"], "the whole pool was read before"
    assert (summary["pool"], summary["left_out"], summary["selected"]) == (197, 0, 49)
    ids = sorted(scores_of(out))
    hashes = seeded_hash(id_words(ids), 0, "pilot")
    assert set(pilot) == {ids[at] for at in np.argsort(hashes)[:60]}
    assert sorted(row["row"] for row in pilot.values()) == list(range(60))
    assert sum(row["selected"] for row in pilot.values()) == 15


def test_it_does_not_depend_on_the_order_of_the_rows(small_pool: Path, tmp_path: Path, capsys: Capture) -> None:
    lines = small_pool.read_bytes().splitlines(keepends=True)
    turned = tmp_path / "pool.jsonl"
    turned.write_bytes(b"".join(lines[::-1]))
    for pool, out in ((small_pool, "a"), (turned, "b")):
        assert run_cli(line(pool, tmp_path / out, "--limit", "50", "--quiet")) == 0
    found = [(tmp_path / out / "ids.txt").read_text() for out in ("a", "b")]
    assert found[0] == found[1] and len(found[0].split()) == 12
    card = (tmp_path / "a" / "README.md").read_text()
    assert "| pilot | 50 of 197 rows, drawn at random |" in card
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    counts = record["summary"]
    assert counts["rows_read"] == sum(counts["rejected"].values()) + counts["pool"] + 147 + counts["duplicates"]
    assert record["config"]["data"]["limit"] == 50 and record["steps"]["ingest"].startswith("steps/pilot-")
    # another seed or number of rows is another sample; as many as there are is no sample
    for words, rows in ((["--limit", "50", "seed=1"], 50), (["--limit", "40"], 40), (["--limit", "999"], 197)):
        assert run_cli(line(small_pool, tmp_path / "a", *words, "--quiet")) == 0
        assert len(scores_of(tmp_path / "a")) == rows
    capsys.readouterr()
    assert run_cli(line(small_pool, tmp_path / "a", "--limit", "40", "budget=41", "--quiet")) == 2
    assert "E221" in capsys.readouterr().err


def test_what_is_planned_is_the_pilot(small_pool: Path, tmp_path: Path) -> None:
    """Before anything is read, the rows that stand for a pilot are those that it will draw."""
    assert run_cli(line(small_pool, tmp_path / "out", "--limit", "30", "--quiet")) == 0
    sample = draw_sample(config(small_pool, tmp_path / "new", 30), None, frozenset())
    assert sample.rows == 30 and set(sample.table["id"].to_pylist()) == set(scores_of(tmp_path / "out"))
    assert draw_sample(config(small_pool, tmp_path / "new", 999), None, frozenset()).rows == 197
