"""A key lives in one environment variable and in the requests, and nowhere else: not even its first characters."""

from __future__ import annotations

import json
import os
import pickle
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engine.cli import run_cli
from engine.config import PaidConfig
from engine.config_endpoint import OpenAIGeneratorConfig, OpenAIJudgeConfig
from engine.local import LocalRuntime
from engine.paid.service import PaidRun, endpoint_of, paid_generator, paid_judge
from engine.paid.stages import Calls
from engine.settings import load_config
from engine.store import Store
from tests.conftest import ROOT, Recorder, write_jsonl
from tests.fake_server import FakeServer
from tests.paid.cli_runs import endpoint, generator, judge, tell, words

Capture = pytest.CaptureFixture[str]

NAME = "CANARY_KEY"
KEY = f"zk{secrets.token_hex(24)}"
TRACE = KEY[:8].encode()  # what providers repeat in their errors


@pytest.fixture(scope="module")
def shared_server() -> Iterator[FakeServer]:
    with FakeServer(api_key=KEY) as server:
        yield server


@pytest.fixture
def server(shared_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    monkeypatch.setenv(NAME, KEY)
    shared_server.faults(latency_s=0.0)
    shared_server.reset()
    return shared_server


def files_with_the_key(*folders: Path) -> list[str]:
    """Every file that holds the beginning of the key, and those whose name does."""
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and TRACE in path.read_bytes():
                found.append(str(path))
        found += [str(path) for path in folder.rglob("*") if TRACE.decode() in path.name]
    return found


def clean(told: tuple[object, ...]) -> bool:
    return not any(TRACE.decode() in str(part) for part in told)


def keyed(server: FakeServer) -> tuple[str, str]:
    return judge(server, api_key_env=NAME), generator(server, api_key_env=NAME, model="g")


# ------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_a_run_in_process(
    small_pool: Path, server: FakeServer, tmp_path: Path, capsys: Capture, debug: list[str]
) -> None:
    out = tmp_path / "out"
    told = tell(capsys, "run", *words(small_pool, out, *keyed(server)), "--local", *debug)
    assert told.code == 0
    assert server.stats()["completed"] == 117  # so the key was there
    assert clean(told)
    for command in (["status", out], ["ledger", "show", out], ["ledger", "export", out], ["prompts", "render", 0, out]):
        assert clean(tell(capsys, *command))
    assert clean(tell(capsys, "plan", *words(small_pool, out, *keyed(server)), "--json"))
    assert NAME in (out / "config.yaml").read_text()
    assert files_with_the_key(tmp_path) == []


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_a_key_that_is_refused(
    small_pool: Path, server: FakeServer, tmp_path: Path, capsys: Capture, debug: list[str]
) -> None:
    """The server repeats the beginning and the end of the key that it was given, as OpenAI does."""
    with FakeServer(api_key="another") as other:
        line = words(small_pool, tmp_path / "out", *keyed(other))
        told = tell(capsys, "run", *line, "--local", *debug)
        assert other.stats()["unauthorised"] > 0
    assert told.code == 3
    assert "E360" in told.err
    assert f"check the key in ${NAME}" in told.err
    assert ("Traceback" in told.err) == bool(debug)
    assert clean(told)
    assert "E360" in json.loads((tmp_path / "out/status.json").read_text())["reason"]
    assert files_with_the_key(tmp_path) == []


def test_rows_that_fail_with_the_endpoints_words(
    small_pool: Path, server: FakeServer, tmp_path: Path, capsys: Capture
) -> None:
    server.faults(bad_request=0.2, not_json=0.1, reset_before=0.1, server_error_500=0.1)
    more = judge(server, api_key_env=NAME, max_attempts=2), "max_failed=1.0"
    told = tell(capsys, "run", *words(small_pool, tmp_path / "out", *more), "--local", "--debug")
    assert told.code == 0
    assert json.loads((tmp_path / "out/judge.json").read_text())["failures"]["http_400"] > 0
    assert clean(told)
    assert files_with_the_key(tmp_path) == []


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_a_check(server: FakeServer, tmp_path: Path, capsys: Capture, debug: list[str]) -> None:
    rows = [{"prompt": f"Say {k}", "answer_a": "x y", "answer_b": "z", "verdict": "a"} for k in range(5)]
    gold = write_jsonl(tmp_path / "gold.jsonl", rows)
    settings = [f"{name}={json.dumps(value)}" for name, value in endpoint(server.url, api_key_env=NAME).items()]
    ledger = ["--ledger", tmp_path / "ledger"]
    told = tell(capsys, "judge", "check", gold, *settings, *ledger, *debug)
    assert told.code == 0
    with FakeServer(api_key="another") as other:
        refused = tell(capsys, "judge", "check", gold, *settings, f"base_url={other.url}", *ledger, *debug)
    assert (refused.code, "E360" in refused.err) == (3, True)
    assert clean((*told, *refused))
    assert files_with_the_key(tmp_path) == []


# ------------------------------------------------------------------------------------------------- Ray


def hosts_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Ray's worker processes that hold members."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            found += [child] if "ray::Host" in " ".join(child.cmdline()) else []
        except psutil.Error:  # gone meanwhile
            continue
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_on_ray_and_a_worker_that_crashes(small_pool: Path, server: FakeServer, tmp_path: Path) -> None:
    """Workers inherit the variable; nothing of theirs is written down, not even when one is aborted and dumps."""
    logs = Path(tempfile.mkdtemp(prefix="iterselect-ray-", dir="/tmp"))  # paths of sockets must be short
    environment = {**os.environ, "RAY_TMPDIR": str(logs), "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    line = ["run", *words(small_pool, tmp_path / "out", *keyed(server), "paid.max_usd=9"), "--debug"]
    server.faults(latency_s=0.3)
    process = subprocess.Popen(
        [sys.executable, "-m", "engine", *line],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while server.stats()["received"] < 20:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for host in hosts_of(process):
            host.send_signal(signal.SIGABRT)
        told = process.communicate(timeout=240)
        assert process.returncode == 0, told[1]
        assert clean(told)
        sessions = [path for path in logs.rglob("*") if path.is_file()]
        assert any("worker" in path.name for path in sessions)
        assert any(b"SIGABRT" in path.read_bytes() for path in sessions if not path.is_symlink())
        assert files_with_the_key(logs, tmp_path) == []
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(logs, ignore_errors=True)
    assert server.stats()["distinct_completed"] == 117


# ------------------------------------------------------------------------------------------------- objects


def test_what_travels_to_workers_has_no_key(small_pool: Path, server: FakeServer, tmp_path: Path) -> None:
    config = load_config("iterselect", words(small_pool, tmp_path / "out", *keyed(server))[1:])
    paid = PaidRun(Store(tmp_path / "out"), LocalRuntime(Recorder()), PaidConfig())
    found: list[object] = [config]
    for backend in (
        paid_judge(paid, OpenAIJudgeConfig(**endpoint(server.url, api_key_env=NAME)), seed=0),
        paid_generator(paid, OpenAIGeneratorConfig(**endpoint(server.url, api_key_env=NAME))),
    ):
        calls = Calls(
            endpoint=endpoint_of(backend.config), ledger=paid.ledger, run=paid.run, limiter=None, asks=backend.asks
        )
        found += [backend.config, calls, backend.settings, backend.identity]
        assert NAME in repr(calls)
    for one in found:
        assert TRACE.decode() not in repr(one)
        assert TRACE not in pickle.dumps(one)


# ------------------------------------------------------------------------------------------------- configs

KEYS = {
    "dashes": f"sk-proj-{KEY}",
    "prefix": f"gsk_{KEY}",
    "plain": KEY,
    "digits": f"0{KEY}",
    "mixed": f"AIza{KEY.title()}-x",
}


@pytest.mark.parametrize("form", KEYS)
@pytest.mark.parametrize(
    "override",
    [
        "recipe.judge.api_key_env=KEY",
        "recipe.judge.api_key_env='KEY'",
        "recipe.judge.api_key=KEY",
        "recipe.judge.api_key_env={value: KEY}",
        "recipe.judge={kind: openai, api_key_env: KEY, model: m}",
        "recipe.judge={kind: openai, modle: m, api_key_env: KEY}",
        "recipe.judge=[{api_key_env: KEY}]",
    ],
)
def test_a_key_in_place_of_its_name_is_not_repeated(
    small_pool: Path, server: FakeServer, tmp_path: Path, capsys: Capture, form: str, override: str
) -> None:
    line = words(small_pool, tmp_path / "out", judge(server), override.replace("KEY", KEYS[form]))
    told = tell(capsys, "run", *line, "--local", "--debug")
    assert told.code == 2
    assert "error E200" in told.err
    assert all(beginning not in told.err + told.out for beginning in (TRACE.decode(), KEYS[form][:12]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", KEYS)
def test_a_key_in_a_file_or_a_check_is_not_repeated(
    small_pool: Path, tmp_path: Path, capsys: Capture, form: str
) -> None:
    config = tmp_path / "run.yaml"
    settings = f"{{kind: openai, model: m, api_key_env: {KEYS[form]}}}"
    config.write_text(f"data: {small_pool}\nrecipe:\n  name: iterselect\n  judge: {settings}\n")
    gold = write_jsonl(tmp_path / "gold.jsonl", [{"prompt": "a", "answer_a": "b", "answer_b": "c", "verdict": "a"}])
    for line in (
        ["run", config, "--local", "--debug"],
        ["plan", config, "--debug"],
        ["judge", "check", gold, config, "--debug"],
        ["judge", "check", gold, "model=m", f"api_key_env={KEYS[form]}", "--debug"],
    ):
        told = tell(capsys, *line)
        assert told.code == 2
        assert "NAME of an environment variable" in told.err
        assert all(beginning not in told.err + told.out for beginning in (TRACE.decode(), KEYS[form][:12]))


def test_a_variable_that_is_not_set_is_named(
    small_pool: Path, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.delenv(NAME)
    line = words(small_pool, tmp_path / "out", *keyed(server))
    assert run_cli(["run", *line, "--local", "-q"]) == 3
    assert f"the environment variable {NAME} is not set" in capsys.readouterr().err
    assert server.stats()["received"] == 0
