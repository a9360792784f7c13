"""Doctor: versions from metadata alone, real files, a real HTTP server, a real Ray head; every failure with its fix."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from engine.cli import run_cli
from engine.doctor import (
    TESTED,
    VLLM_TESTED,
    VLLM_WANTS,
    Range,
    check_certificates,
    check_disk,
    check_package,
    check_token,
    judge_vllm,
    numbers,
)
from engine.doctor_config import check_config, check_endpoint, check_model, check_tracker
from engine.settings import load_config
from tests.conftest import ROOT

KEY = "sk-do-not-show-this"


@pytest.mark.parametrize(
    ("found", "status"), [("2.60.0", "ok"), ("2.60.9", "ok"), ("2.61.1", "warn"), ("2.59.3", "fail"), (None, "fail")]
)
def test_versions_against_the_table(found: str | None, status: str) -> None:
    check = check_package("ray", found, Range("2.60", "2.62", "2.60.0"))
    assert check.status == status
    assert (check.fix == "") == (status == "ok")


def test_the_table_is_the_tested_set() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for name, wanted in TESTED.items():
        assert pinned[name] == wanted.tested
        assert numbers(wanted.least) <= numbers(wanted.tested) < numbers(wanted.below)
    torch, least, below = VLLM_WANTS[".".join(VLLM_TESTED.split(".")[:2])]
    assert numbers(pinned["torch"])[:2] == numbers(torch)
    assert numbers(least) <= numbers(pinned["transformers"]) < numbers(below)


@pytest.mark.parametrize(
    ("found", "torch", "transformers", "strays", "needed", "status", "words"),
    [
        (None, "2.13.0", "5.23.0", [], False, "ok", "not installed"),
        (None, "2.13.0", "5.23.0", [], True, "fail", "iterselect[vllm]"),
        ("0.29.0", "2.13.0", "5.23.0", [], True, "ok", "torch 2.13.0"),
        ("0.29.0", "2.14.0", "5.23.0", [], True, "fail", "needs torch 2.13"),
        ("0.33.0", "2.14.0", "5.23.0", [], True, "fail", "transformers>=5.16.1,<5.21"),
        ("0.33.0", "2.14.0", "5.20.1", [], True, "ok", "0.33.0"),
        ("0.40.0", "2.14.0", "5.23.0", [], True, "warn", "not tested"),
        ("0.29.0", "2.13.0", "5.23.0", ["torchvision"], True, "fail", "pip uninstall -y torchvision"),
    ],
)
def test_what_goes_together_with_vllm(
    found: str | None, torch: str, transformers: str, strays: list[str], needed: bool, status: str, words: str
) -> None:
    check = judge_vllm(found, torch, transformers, strays, needed)
    assert check.status == status and words in check.found + check.fix


def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_model("encoder", "bundled:minilm").status == "ok"
    assert "no config.json and no *.safetensors" in check_model("m", str(tmp_path)).found
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    assert check_model("m", str(tmp_path)).status == "ok"
    assert check_model("m", str(tmp_path / "none")).status == "fail"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert check_model("m", "nobody/no-such-model").status == "fail"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert check_model("m", "nobody/no-such-model").status == "warn"


def test_trackers() -> None:
    assert check_tracker(None) == []
    assert [check_tracker(name)[0].status for name in ("json", "not_there")] == ["ok", "warn"]


def test_disk_token_and_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(tmp_path) in check_disk(str(tmp_path / "a" / "b")).found
    (tmp_path / "file").touch()
    assert check_disk(str(tmp_path / "file" / "out")).status == "fail"
    assert check_disk("s3://bucket/run").status == "ok"
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    assert check_token().status == "warn"
    monkeypatch.setenv("RAY_AUTH_MODE", "tokens")
    assert check_token().status == "fail"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert check_token().status == "fail"
    monkeypatch.setenv("RAY_AUTH_TOKEN", KEY)
    assert check_token().found == "token, from RAY_AUTH_TOKEN"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    assert check_certificates().status == "fail"


class Models(BaseHTTPRequestHandler):
    """GET /v1/models for the right key; other paths show what may go wrong."""

    seen: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        given = self.headers.get("Authorization")
        type(self).seen.append((self.path, given))
        replies = {
            "/v1/models": (200, json.dumps({"data": [{"id": "tiny"}]})),
            "/text/models": (200, "<html>"),
            "/list/models": (200, "[]"),
            "/down/models": (503, ""),
            "/moved/models": (302, ""),
        }
        status, body = replies.get(self.path, (404, ""))
        if self.path == "/v1/models" and given != f"Bearer {KEY}":
            status, body = 401, ""
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/v1/models")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch):
    """Base of a real HTTP server; the key is in $DOCTOR_KEY."""
    monkeypatch.setenv("DOCTOR_KEY", KEY)
    handler = type("Handler", (Models,), {"seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("path", "model", "status", "words"),
    [
        ("v1", "tiny", "ok", "has tiny"),
        ("v1/", "tiny", "ok", "has tiny"),
        ("v1", "huge", "warn", "not among its 1 models"),
        ("nowhere", "tiny", "warn", "HTTP 404"),
        ("text", "tiny", "warn", "not with a list"),
        ("list", "tiny", "warn", "not with a list"),
        ("down", "tiny", "fail", "HTTP 503"),
        ("moved", "tiny", "warn", "HTTP 302"),
    ],
)
def test_an_endpoint(endpoint, path: str, model: str, status: str, words: str) -> None:
    base, handler = endpoint
    check = check_endpoint("judge", f"{base}/{path}", model, "DOCTOR_KEY")
    assert check.status == status and words in check.found
    assert KEY not in str(check)
    assert len(handler.seen) == 1  # a redirect is not followed, so the key goes nowhere else


def test_keys_and_silence(endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    base, handler = endpoint
    assert check_endpoint("j", f"{base}/v1", "tiny", None).found.endswith("refuses the key (HTTP 401)")
    monkeypatch.setenv("DOCTOR_KEY", "wrong")
    assert check_endpoint("j", f"{base}/v1", "tiny", "DOCTOR_KEY").fix == "check $DOCTOR_KEY"
    monkeypatch.delenv("DOCTOR_KEY")
    handler.seen.clear()
    assert check_endpoint("j", f"{base}/v1", "tiny", "DOCTOR_KEY").found == "$DOCTOR_KEY is not set"
    assert not handler.seen
    with socket.socket() as taken:  # bound and not listening
        taken.bind(("127.0.0.1", 0))
        check = check_endpoint("j", f"http://127.0.0.1:{taken.getsockname()[1]}/v1", "tiny", None)
    assert check.status == "fail" and "does not answer" in check.found


def test_the_command(endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, _ = endpoint
    judge = f"recipe.judge={{kind: openai, model: tiny, base_url: '{base}/v1', api_key_env: DOCTOR_KEY}}"
    words = ["doctor", "iterselect", "pool.jsonl", f"out={tmp_path / 'run'}", judge]
    code = run_cli([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    by_name = {check["name"]: check for check in found["checks"]}
    assert {"python", "torch", "vllm", "memory", "disk", "ray cluster", "encoder", "recipe.judge"} <= set(by_name)
    assert by_name["recipe.judge"]["status"] == by_name["encoder"]["status"] == "ok"
    assert (code, found["ok"]) in ((0, True), (3, False))
    assert run_cli([*words, "encoder.model=/no/such/model"]) == 3
    printed = capsys.readouterr().out
    assert "fail  encoder" in printed and "fix: check the path" in printed and KEY not in printed
    assert run_cli(["doctor", "--address", "ray://127.0.0.1:10001"]) == 3
    assert "Ray Client address" in capsys.readouterr().out


def test_versions_cost_no_import() -> None:
    code = "import sys; from engine.doctor import check_machine; check_machine(None); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "ray", "vllm", "transformers", "faiss"} & set(loaded.split())


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_head(tmp_path: Path) -> None:
    """Reached, and not reached once it is gone; in processes of their own, since a process joins one cluster."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    code = (
        "import sys; from actors.doctor import check_ray; c = check_ray(sys.argv[1]); print(c.status, c.found, c.fix)"
    )

    def asked() -> str:
        words = [sys.executable, "-c", code, f"127.0.0.1:{port}"]
        return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120).stdout

    assert asked().startswith("fail nothing answers")
    ray = str(Path(sys.executable).parent / "ray")
    head = subprocess.Popen(
        [ray, "start", "--head", "--block", f"--port={port}", "--num-cpus=1", "--include-dashboard=false",
         "--node-ip-address=127.0.0.1", f"--temp-dir={tmp_path.parent.parent / 'rd'}",
         "--object-store-memory=100000000", "--disable-usage-stats"],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert head.stdout is not None
        for line in head.stdout:
            if "--block" in line or "Ray runtime started" in line:
                break
        assert "1 nodes, 1 CPUs, 0 GPUs" in asked()
    finally:
        head.terminate()
        head.communicate(timeout=60)
    assert asked().startswith("fail nothing answers")


def test_every_endpoint_of_a_config_is_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    asked = json.dumps({"kind": "openai", "model": "m"})
    words = [f"recipe.{name}={asked}" for name in ("rater", "rewriter")]
    config = load_config("lift", [str(tmp_path / "pool.jsonl"), f"out={tmp_path / 'out'}", "budget=2", *words])
    found = {check.name: check for check in check_config(config)}
    for name in ("recipe.rater", "recipe.rewriter"):
        assert found[name].status == "fail" and found[name].fix == "export OPENAI_API_KEY=..."
