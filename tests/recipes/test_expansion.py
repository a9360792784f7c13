"""LIFT's expansion on the scripted server: rows that a model makes of the pool join it, and are selected like any."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from engine.config import RunConfig
from engine.explain import explain
from engine.paid.plan import estimate
from engine.run_folder import run_steps
from engine.settings import load_config
from engine.store import Store
from tests.conftest import Recorder, write_jsonl
from tests.fake_openai_lists import example_of
from tests.fake_server import FakeServer
from tests.paid.cli_runs import endpoint
from tests.runs import outputs, run_local


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        server.faults(style="json")
        yield server


def lift(pool: Path, out: Path, server: FakeServer, *overrides: str) -> RunConfig:
    asked = json.dumps(endpoint(server.url))
    encoder = [f"encoder.model={pool.parent / 'encoder'}", "encoder.max_tokens=64"]
    common = [f"out={out}", "data.part_rows=24", "budget=60", "paid.confirm_above_usd=9", *encoder]
    return load_config("lift", [str(pool), *common, f"recipe.rater={asked}", f"recipe.rewriter={asked}", *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_pool: Path, server: FakeServer) -> Path:
    out = tmp_path_factory.mktemp("lift") / "out"
    config = lift(small_pool, out, server)
    plan = estimate(config)
    server.reset()
    run_local(config, Recorder())
    calls = {one["name"]: one["calls"]["low"] for one in plan["backends"]}
    assert calls == {"rewriter": 197, "rater": 79}  # a fifth of 394 rows is rated
    assert 197 + 70 < server.stats()["completed"] <= 197 + 79
    return out


def rows_of(out: Path) -> list[dict[str, Any]]:
    pool = run_steps(Store(out))["ingest"]
    return pool.read_all(None).to_pylist()


def test_the_pool_is_followed_by_what_was_made_of_it(finished: Path) -> None:
    rows = rows_of(finished)
    assert [row["row"] for row in rows] == list(range(len(rows)))
    old, new = rows[:197], rows[197:]
    assert len({row["id"] for row in rows}) == len(rows) > 380
    by_id = {row["id"]: row for row in old}
    for row in new:
        source = json.loads(row["record"])
        made_of = by_id[source["rewritten_from"]]
        last = [turn["content"] for turn in json.loads(made_of["messages"]) if turn["role"] == "user"][-1]
        expected = example_of(last)
        assert (row["response"], row["source"]) == (expected["response"], made_of["source"])
        assert [turn["content"] for turn in source["messages"]][-2:] == list(expected.values())
        assert row["system"] == made_of["system"] and row["file"].startswith("rewritten/made-")
    record = run_steps(Store(finished))["ingest"].require()
    counts = record.extra
    assert counts["pool"] == record.rows == len(rows) and counts["added"] == len(new)
    assert counts["rows_read"] == counts["pool"] + counts["rejected"] + counts["duplicates"]


def test_new_rows_are_scored_and_selected(finished: Path) -> None:
    scores = pq.read_table(finished / "scores").to_pylist()
    assert [row["row"] for row in scores] == [row["row"] for row in rows_of(finished)]
    chosen = [row for row in scores if row["selected"]]
    assert len(chosen) == 60 and any(row["file"].startswith("rewritten/") for row in chosen)
    ranked = sorted((row for row in scores if row["quality"] is not None), key=lambda row: (-row["quality"], row["id"]))
    assert (finished / "ids.txt").read_text().split() == [row["id"] for row in ranked[:60]]
    made = next(row for row in chosen if row["file"].startswith("rewritten/"))
    facts = explain(str(finished), made["id"])
    assert facts["made_of"] in {row["id"] for row in rows_of(finished)[:197]}
    assert explain(str(finished), f"{made['file']}:{made['line']}")["id"] == made["id"]
    assert explain(str(finished), facts["made_of"])["made_of"] is None
    data = pq.read_table(finished / "data")["messages"].to_pylist()
    assert len(data) == 60 and all(json.loads(turns[-1])["role"] == "assistant" for turns in data)


def test_order_and_shards_do_not_matter_and_nothing_is_paid_twice(
    finished: Path, small_pool: Path, server: FakeServer, tmp_path: Path
) -> None:
    shared = f"paid.ledger={finished / 'ledger'}"
    server.reset()
    run_local(lift(small_pool, tmp_path / "shards", server, shared), Recorder(), shards=3)
    assert outputs(tmp_path / "shards") == outputs(finished)
    lines = small_pool.read_bytes().splitlines(keepends=True)
    random.Random(5).shuffle(lines)
    (tmp_path / "encoder").symlink_to(small_pool.parent / "encoder")
    (tmp_path / "pool.jsonl").write_bytes(b"".join(lines))
    run_local(lift(tmp_path / "pool.jsonl", tmp_path / "a", server, shared, "data.part_rows=61"), Recorder())
    assert (tmp_path / "a" / "ids.txt").read_text() == (finished / "ids.txt").read_text()
    assert server.stats()["received"] == 0


def test_a_reply_that_is_no_example_makes_no_row(server: FakeServer, tmp_path: Path) -> None:
    texts = ["Name a river.", "mumble about rivers", "Name a river. Give a second case.", "mutter about lakes"]
    pool = write_jsonl(tmp_path / "pool.jsonl", [{"instruction": text, "response": "The Elbe."} for text in texts])
    select = {"rewriter": endpoint(server.url), "scores": {"size": {"kind": "length"}}}
    select["select"] = [{"kind": "top", "by": "size"}]
    settings = [f"recipe.{key}={json.dumps(value)}" for key, value in select.items()]
    common = [f"out={tmp_path / 'out'}", "budget=3", "max_failed=0.3", "paid.confirm_above_usd=9"]
    run_local(load_config("compose", [str(pool), *common, *settings]), Recorder())
    made = [row["prompt"] for row in rows_of(tmp_path / "out")[4:]]
    assert made == [example_of(texts[place])["instruction"] for place in (0, 2, 3)]
    (errors,) = (tmp_path / "out").glob("steps/rewritten-*")
    found = pq.read_table(sorted(errors.glob("*.parquet")))["error"].to_pylist()
    assert found == [None, "unreadable: no new example in two replies of the judge", None, None]
