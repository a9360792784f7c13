"""The paid client against vLLM's own OpenAI server: a run with it makes the labels of a run with engines inside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Recorder
from tests.runs import config_for, run_local
from tests.vllm.engines import choices, labels, round_tables

pytestmark = pytest.mark.vllm
READY_TIMEOUT_S = 240.0


@pytest.fixture(scope="module")
def server(vllm_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's OpenAI server on the tiny model; its base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(vllm_model),
        "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
        "--kv-cache-memory-bytes", str(64 << 20), "--max-num-seqs", "16", "--enforce-eager",
        "--distributed-executor-backend", "uni",
    ]  # fmt: skip
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def test_a_server_as_the_generator(
    server: str, reference: Path, vllm_model: Path, small_pool: Path, tmp_path: Path
) -> None:
    endpoint = f"kind: openai, model: tiny, base_url: {server}, price: {{input: 0, output: 0}}"
    generator = f"recipe.generator={{{endpoint}, max_tokens: 24}}"
    config = config_for(small_pool, tmp_path / "out", *choices(vllm_model, small_pool, 1), generator)
    summary = run_local(config, Recorder())
    assert summary["engines"] == {"judge": {"started": 1, "died": 0, "blamed": 0}} and summary["calls"]["calls"] > 0
    # Without a parser for tool calls the server refuses rows with tools, so later rounds may have other batches.
    ours, theirs = (round_tables(out, "answers")[0] for out in (reference, tmp_path / "out"))
    answered = {row["row"] for row in theirs if row["error"] is None}
    assert len(answered) >= 10 and all("tool" in row["error"] for row in theirs if row["row"] not in answered)
    kept = [
        [(row["row"], row["answer"], row["finish"]) for row in one if row["row"] in answered] for one in (ours, theirs)
    ]
    assert kept[0] == kept[1]
    verdicts = [[row for row in labels(out)[0] if row[0] in answered] for out in (reference, tmp_path / "out")]
    assert verdicts[0] == verdicts[1]
