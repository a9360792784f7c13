"""Paid passes over the whole pool: what the plan says, caps, batches and retries, on compositions through the CLI."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.paid.service import check_backends, paid_backends
from engine.settings import load_config
from tests.fake_server import FakeServer
from tests.paid.cli_runs import endpoint, tell

Capture = pytest.CaptureFixture[str]
ROWS = 197  # of the small pool that are good


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture(autouse=True)
def fresh(server: FakeServer) -> None:
    server.faults(style="json")
    server.reset()


def line(pool: Path, out: Path, url: str, **rater: Any) -> list[str]:
    """Arguments of `run` and `plan`: the best rows by one rating."""
    scores = {"quality": {"kind": "rating", "rater": endpoint(url, **rater)}}
    chain = [{"kind": "top", "by": "quality"}]
    recipe = [f"recipe.scores={json.dumps(scores)}", f"recipe.select={json.dumps(chain)}"]
    return ["compose", str(pool), f"out={out}", "data.part_rows=64", "budget=20", *recipe]


def test_the_plan_counts_every_row_once_and_nothing_after_the_run(
    small_pool: Path, server: FakeServer, tmp_path: Path, capsys: Capture
) -> None:
    arguments = line(small_pool, tmp_path / "out", server.url)
    before = tell(capsys, "plan", *arguments, "--json").json
    assert not (tmp_path / "out").exists()
    assert (before["pool"], before["usd"]["likely"] > 0) == (ROWS, True)
    (plan,) = before["backends"]
    assert (plan["name"], plan["calls"]["low"], plan["ledger_share"]) == ("rater", ROWS, 0.0)
    summary = tell(capsys, "run", *arguments, "--local", "--json", "--yes").json
    assert summary["calls"]["calls"] == ROWS == server.stats()["completed"]
    assert before["usd"]["low"] < summary["calls"]["usd"] < before["usd"]["high"]
    after = tell(capsys, "plan", *arguments, "--json").json
    assert after["backends"][0]["calls"] == {"low": 0, "likely": 0, "high": 0}
    assert after["usd"] == {"low": 0, "likely": 0, "high": 0}
    assert f"{ROWS} rows in the pool" in tell(capsys, "plan", *arguments).out
    other = tell(capsys, "plan", *arguments, f"paid.ledger={tmp_path / 'other'}", "--json").json
    assert other["backends"][0]["calls"]["low"] == ROWS


def test_a_dear_pass_is_confirmed_and_a_cap_stops_it(
    small_pool: Path, server: FakeServer, tmp_path: Path, capsys: Capture
) -> None:
    arguments = [*line(small_pool, tmp_path / "out", server.url), "--local"]
    refused = tell(capsys, "run", *arguments, "paid.confirm_above_usd=0.001")
    assert refused.code == 2 and "likely to cost" in refused.err and server.stats()["received"] == 0
    stopped = tell(capsys, "run", *arguments, "--max-usd=0.02", "--json")
    assert stopped.code == 5 and 0 < server.stats()["completed"] < ROWS
    finished = tell(capsys, "run", *arguments, "--yes", "--json").json
    assert finished["calls"]["calls"] == ROWS == server.stats()["completed"]  # nothing was paid twice


def test_an_unreadable_reply_is_an_error_and_asked_anew_on_request(
    small_pool: Path, server: FakeServer, tmp_path: Path, capsys: Capture
) -> None:
    arguments = [*line(small_pool, tmp_path / "out", server.url, structured="text"), "--local", "--yes", "--json"]
    server.faults(style="garbage")
    failed = tell(capsys, "run", *arguments, "max_failed=0.99")
    assert failed.code == 6 and "unreadable: no score in two replies" in failed.err
    server.faults(style="json")
    again = tell(capsys, "run", *arguments, "max_failed=0.99")
    assert again.code == 6 and server.stats()["completed"] == 2 * ROWS
    healed = tell(capsys, "run", *arguments, "--retry-failed")
    assert "rows to retry in: ratings" in healed.err
    assert healed.json["selected"] == 20 and server.stats()["completed"] == 3 * ROWS


def test_a_batch_file_is_written_for_the_whole_pool(
    small_pool: Path, server: FakeServer, tmp_path: Path, capsys: Capture
) -> None:
    arguments = [*line(small_pool, tmp_path / "out", server.url, mode="batch"), "--local", "--yes", "--json"]
    waiting = tell(capsys, "run", *arguments)
    assert waiting.code == 5 and server.stats()["received"] == 0
    (requests,) = (tmp_path / "out" / "batches").rglob("*requests*.jsonl")
    assert len(requests.read_text().splitlines()) == ROWS


def test_every_endpoint_of_a_config_is_found_wherever_it_stands(small_pool: Path, tmp_path: Path) -> None:
    priceless = {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
    scores = {
        "one": {"kind": "rating", "rater": {**priceless, "model": "a"}},
        "two": {"kind": "rating", "rater": {**priceless, "model": "b"}},
        "three": {"kind": "product", "of": ["one", "two"]},
    }
    chain = [{"kind": "top", "by": "three"}]
    config = load_config(
        "compose", [str(small_pool), f"recipe.scores={json.dumps(scores)}", f"recipe.select={json.dumps(chain)}"]
    )
    assert [backend.model for backend in paid_backends(config)] == ["a", "b"]
    capped = config.model_copy(update={"paid": config.paid.model_copy(update={"max_usd": 1.0})})
    with pytest.raises(ValueError, match="price of 'a'"):
        check_backends(capped, with_key=False)
    assert paid_backends(load_config("random", [str(small_pool)])) == []
