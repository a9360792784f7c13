"""Whole runs with a paid generator and a paid judge: local and on Ray, again, and after the pool has grown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.config import RunConfig
from tests.conftest import Recorder
from tests.fake_server import FakeServer
from tests.runs import config_for, outputs, run_local, run_ray


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


def paid_config(pool: Path, out: Path, server: FakeServer, *overrides: str, **judge: Any) -> RunConfig:
    endpoint = {"kind": "openai", "model": "m", "base_url": server.url, "api_key_env": None, "concurrency": 16}
    priced = {**endpoint, "price": {"input": 1.0, "output": 2.0}}
    return config_for(
        pool, out,
        f"recipe.generator={json.dumps({**priced, 'max_tokens': 24})}",
        f"recipe.judge={json.dumps({**priced, 'canaries': 0.05, **judge})}",
        *overrides,
    )  # fmt: skip


def test_a_run_accounts_for_every_call(small_pool: Path, server: FakeServer, tmp_path: Path) -> None:
    server.reset()
    recorder = Recorder()
    summary = run_local(paid_config(small_pool, tmp_path / "out", server), recorder)
    stats = server.stats()
    calls = summary["calls"]
    assert calls["calls"] == stats["completed"]
    assert 0 < recorder.spending["calls"] <= calls["calls"]  # the live view may be a quarter of a second behind
    assert (calls["in_doubt"], calls["spoiled"], calls["repeated"]) == (0, 0, 0)
    assert calls["usd"] == pytest.approx((stats["tokens_in"] + 2 * stats["tokens_out"]) / 1e6, abs=1e-6)
    judged = sum(one["judged"] for one in summary["rounds"])
    assert summary["judge"]["rows"] == judged
    assert sum(one["usd"] for one in summary["rounds"]) == pytest.approx(summary["judge"]["usd"], abs=1e-5)
    assert json.loads((tmp_path / "out/judge.json").read_text()) == summary["judge"]
    server.reset()
    before = outputs(tmp_path / "out")
    run_local(paid_config(small_pool, tmp_path / "out", server), Recorder())
    assert server.stats()["received"] == 0
    assert outputs(tmp_path / "out") == before


@pytest.mark.ray
@pytest.mark.slow
def test_local_and_ray_pay_for_the_same_calls_and_select_the_same(
    small_pool: Path, server: FakeServer, tmp_path: Path, ray_cluster: Any
) -> None:
    server.reset()
    run_local(paid_config(small_pool, tmp_path / "local", server), Recorder())
    local = server.stats()
    server.reset()
    run_ray(paid_config(small_pool, tmp_path / "ray", server, processes=2, parts=1), Recorder(), 2, 3)
    ray = server.stats()
    assert outputs(tmp_path / "ray") == outputs(tmp_path / "local")
    assert ray["distinct_completed"] == local["distinct_completed"] == ray["completed"]
    assert ray["tokens_in"] == local["tokens_in"]


def test_a_shared_ledger_pays_once_for_two_runs(small_pool: Path, server: FakeServer, tmp_path: Path) -> None:
    shared = f"paid.ledger={tmp_path / 'ledger'}"
    first = run_local(paid_config(small_pool, tmp_path / "a", server, shared), Recorder())
    server.reset()
    second = run_local(paid_config(small_pool, tmp_path / "b", server, shared), Recorder())
    assert server.stats()["received"] == 0
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")
    assert first["calls"]["calls"] > 0 == second["calls"]["calls"]


def test_soft_labels_reach_the_classifier(small_pool: Path, server: FakeServer, tmp_path: Path) -> None:
    soft = run_local(paid_config(small_pool, tmp_path / "soft", server), Recorder())
    shared = f"paid.ledger={tmp_path / 'soft/ledger'}"
    hard = run_local(paid_config(small_pool, tmp_path / "hard", server, shared, "recipe.soft_labels=false"), Recorder())
    model = "rounds/000/classifier-*/model.safetensors"
    files = [next((tmp_path / name).glob(model)).read_bytes() for name in ("soft", "hard")]
    assert files[0] != files[1]
    assert soft["rounds"][0]["hard"] == hard["rounds"][0]["hard"]
