"""`judge check` on GPT-4's verdicts of AlpacaEval, against a judge whose rule is known."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from engine.judging.gold import Pair, read_gold
from engine.paid.judge_check import plan_check
from engine.paid.ledger import LedgerIndex
from engine.settings import load_judge
from engine.store import Store
from tests.conftest import ROOT, write_jsonl
from tests.fake_openai_judge import quality
from tests.fake_server import FakeServer
from tests.paid.cli_runs import PRICE, endpoint, tell

Capture = pytest.CaptureFixture[str]

PAIRS = 150


@pytest.fixture(scope="module")
def gold(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """805 pairs in AlpacaEval's own columns: text-davinci-003 against one model."""
    outputs = pd.read_parquet(real_data / "alpaca_eval_outputs_8models.parquet")
    table = pd.read_parquet(real_data / "alpaca_eval_gpt4_verdicts_dev.parquet")
    table = table.merge(pd.read_parquet(real_data / "alpaca_eval_805_prompts.parquet"), on="prompt_id")
    for side in ("1", "2"):
        column = outputs.rename(columns={"generator": f"generator_{side}", "output": f"output_{side}"})
        table = table.merge(column, on=["prompt_id", f"generator_{side}"])
    file = tmp_path_factory.mktemp("gold") / "gold.parquet"
    table[table["generator_2"] == "alpaca-7b"].to_parquet(file)
    return file


@pytest.fixture(scope="module")
def shared_server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def server(shared_server: FakeServer) -> FakeServer:
    shared_server.faults(position_bias=0.0, style="json")
    shared_server.reset()
    return shared_server


def line(gold: Path, server: FakeServer, ledger: Path, *more: object, **settings: Any) -> list[object]:
    words = [f"{name}={json.dumps(value)}" for name, value in endpoint(server.url, **settings).items()]
    return ["judge", "check", gold, *words, "--ledger", ledger, *more]


def known_verdict(pair: Pair) -> str:
    """What the scripted judge says: the answer with more distinct words."""
    a, b = quality(pair.answer_a), quality(pair.answer_b)
    return "tie" if a == b else "A" if a > b else "B"


def test_the_report_is_right_and_a_second_one_is_free(
    gold: Path, server: FakeServer, tmp_path: Path, capsys: Capture
) -> None:
    asked = line(gold, server, tmp_path / "ledger", "--limit", PAIRS)
    report = tell(capsys, *asked, "--json").json
    pairs = read_gold(str(gold))[:PAIRS]
    said = [known_verdict(pair) for pair in pairs]
    judge, known = report["judge"], [pair.gold for pair in pairs]
    assert (report["pairs"], report["judged"], report["failed"], report["failures"]) == (PAIRS, PAIRS, 0, {})
    assert judge["accuracy"]["count"] == sum(a == b for a, b in zip(said, known, strict=True))
    assert judge["kappa"]["value"] == pytest.approx(cohen_kappa_score(known, said))
    assert judge["flips"]["share"] == judge["inconsistent"]["share"] == 0
    assert judge["consistency"]["pairs"] == 0
    assert judge["shown_first"]["share"] == 0.5
    assert report["baselines"]["longest"]["decisive_kappa"]["value"] > 0.2
    assert any("better than preferring the longer answer" in warning for warning in report["warnings"])
    stats = server.stats()
    usd = (stats["tokens_in"] * PRICE["input"] + stats["tokens_out"] * PRICE["output"]) / 1e6
    assert report["now"] == {"calls": stats["completed"], "usd": pytest.approx(usd)}
    assert stats["obeyed"] == stats["broken_blocks"] == 0
    assert report["cost"]["totals"]["calls"] == 2 * PAIRS  # a pair of equal answers is one call, read twice
    assert stats["completed"] <= 2 * PAIRS
    server.reset()
    again = tell(capsys, *asked, "--json").json
    assert again.pop("now") == {"calls": 0, "usd": 0.0}
    assert server.stats()["received"] == 0
    report.pop("now")
    assert again == report
    text = tell(capsys, *asked)
    assert f"{PAIRS} of {PAIRS} pairs judged" in text.out
    assert f"paid now: 0 calls, $0.0000; recorded in {tmp_path / 'ledger'}" in text.out
    assert text.err == ""


def test_repeats_are_asked_anew_and_only_they(gold: Path, server: FakeServer, tmp_path: Path, capsys: Capture) -> None:
    asked = line(gold, server, tmp_path / "ledger", "--limit", PAIRS, "--json")
    once = tell(capsys, *asked).json
    server.reset()
    report = tell(capsys, *asked, "--repeats", 3).json
    assert server.stats()["completed"] == report["now"]["calls"] == 200
    same = report["judge"].pop("consistency")
    assert (same["pairs"], same["judgments"], same["pairwise"], same["majority"]) == (100, 300, 1.0, 1.0)
    once["judge"].pop("consistency")
    assert report["judge"] == once["judge"]


def test_a_judge_that_favours_a_place_is_found_out(
    gold: Path, server: FakeServer, tmp_path: Path, capsys: Capture
) -> None:
    server.faults(position_bias=0.6)
    report = tell(capsys, *line(gold, server, tmp_path / "ledger", "--limit", PAIRS, "--json")).json
    assert report["judge"]["flips"]["share"] > 0.25
    assert report["judge"]["shown_first"]["share"] > 0.6
    assert any("shown first" in warning for warning in report["warnings"])
    assert any("order is swapped" in warning for warning in report["warnings"])


def test_the_cap_holds_over_checks_and_a_higher_one_goes_on(
    gold: Path, server: FakeServer, tmp_path: Path, capsys: Capture
) -> None:
    whole = tell(capsys, *line(gold, server, tmp_path / "whole", "--limit", PAIRS, "--json")).json["now"]
    asked = line(gold, server, tmp_path / "ledger", "--limit", PAIRS, "--json")
    server.reset()
    for cap in (whole["usd"] / 3, whole["usd"] / 2):
        stopped = tell(capsys, *asked, "--max-usd", cap)
        assert stopped.code == 5
        assert "error E510" in stopped.err
        spent = tell(capsys, "ledger", "show", tmp_path / "ledger", "--json").json["total"]
        assert cap / 2 < spent["cost_usd"] <= cap
        assert spent["calls"] == server.stats()["completed"]
    report = tell(capsys, *asked, "--max-usd", 2 * whole["usd"]).json
    assert report["judged"] == PAIRS
    assert server.stats()["completed"] == whole["calls"]
    unpriced = tell(capsys, *line(gold, server, tmp_path / "x", "--max-usd", 1, "--limit", 3, price=None))
    assert (unpriced.code, "E260" in unpriced.err) == (2, True)


def test_a_dear_check_is_confirmed(gold: Path, server: FakeServer, tmp_path: Path, capsys: Capture) -> None:
    dear = {"input": 30.0, "output": 60.0}
    asked = line(gold, server, tmp_path / "ledger", "--limit", 60, price=dear)
    refused = tell(capsys, *asked)
    assert refused.code == 2
    assert re.search(r"error E263: The 1\d\d calls of this check are likely to cost \$\d\.\d\d \(at most", refused.err)
    assert server.stats()["received"] == 0
    judge = load_judge([str(word) for word in asked[3:-4]])
    plan = plan_check(read_gold(str(gold))[:60], judge, Store(tmp_path / "ledger"), 1)
    report = tell(capsys, *asked, "--yes", "--json").json
    assert plan["calls"] == report["now"]["calls"] == server.stats()["completed"]
    assert plan["usd"]["low"] < report["now"]["usd"] < plan["usd"]["high"]
    assert plan["usd"]["likely"] / 1.5 < report["now"]["usd"] < 1.5 * plan["usd"]["likely"]
    assert tell(capsys, *asked).code == 0  # nothing is left to pay
    unpriced = line(gold, server, tmp_path / "free", "--limit", 3, price=None)
    refused = tell(capsys, *unpriced)
    assert (refused.code, "is not known" in refused.err) == (2, True)
    free = tell(capsys, *unpriced, "--yes")
    assert "cost: unknown" in free.out
    assert "$" not in free.out


def test_failures_are_named_and_a_check_without_verdicts_fails(
    gold: Path, server: FakeServer, tmp_path: Path, capsys: Capture
) -> None:
    server.faults(bad_request=0.3)
    some = tell(capsys, *line(gold, server, tmp_path / "some", "--limit", 40))
    assert some.code == 0
    assert "http_400; the first: http_400: This model's maximum context length" in " ".join(some.out.split())
    server.faults(bad_request=1.0)
    none = tell(capsys, *line(gold, server, tmp_path / "none", "--limit", 4, "--json"))
    assert none.code == 6
    assert none.json["failures"] == {"http_400": 4}
    assert "error E600: none of the 4 pairs got a verdict" in none.err
    server.faults()
    assert tell(capsys, *line(gold, server, tmp_path / "none", "--limit", 4)).code == 0  # asked again


def test_the_judge_of_a_config_file(gold: Path, server: FakeServer, tmp_path: Path, capsys: Capture) -> None:
    judge = json.dumps(endpoint(server.url, prompt="pairwise-scores", mode="batch", canaries=0.2, orders="alternate"))
    config = tmp_path / "run.yaml"
    config.write_text(f"data: pool.jsonl\nrecipe: {{name: iterselect, judge: {judge}}}\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("paid: {ledger: null}\n")
    check = ["judge", "check", gold, config, "--limit", 20, "--json", "--ledger", tmp_path / "out"]
    assert "E265" in tell(capsys, *check).err
    server.faults(style="scores")
    report = tell(capsys, *check, "mode=online").json
    assert report["judged"] == 20
    assert report["judge"]["flips"]["of"] > 0  # both orders, whatever the run does
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.yaml", "ledger"}
    changed = tell(capsys, *check, "mode=online", "model=n").json
    assert changed["now"]["calls"] == report["now"]["calls"]


def test_an_interrupted_check_keeps_what_was_answered(gold: Path, server: FakeServer, tmp_path: Path) -> None:
    words = list(map(str, line(gold, server, tmp_path / "ledger", "--limit", 60, "--json", concurrency=8)))
    server.faults(latency_s=0.5)
    process = start(words)
    deadline = time.monotonic() + 60
    while server.stats()["completed"] < 16:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "everything finished so far is saved" in " ".join(told[1].split())
    index = LedgerIndex(Store(tmp_path / "ledger"))
    index.refresh()
    totals = index.totals()
    assert totals.calls == server.stats()["completed"] < 119  # what was in flight is waited for
    assert (totals.in_doubt, totals.repeated) == (0, 0)
    server.faults(latency_s=0.0)
    process = start(words)
    report = json.loads(process.communicate(timeout=60)[0])
    assert totals.calls + report["now"]["calls"] == server.stats()["completed"] == 119


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "engine", *words],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_gold_that_is_wrong_costs_nothing(server: FakeServer, tmp_path: Path, capsys: Capture) -> None:
    bad = write_jsonl(tmp_path / "gold.jsonl", [{"prompt": "Hi", "answer_a": "x", "answer_b": "y", "verdict": "c"}])
    refused = tell(capsys, *line(bad, server, tmp_path / "ledger"))
    assert (refused.code, "E460" in refused.err) == (4, True)
    assert server.stats()["received"] == 0
    assert not (tmp_path / "ledger").exists()
