"""Real vLLM with a tiny Llama of random weights. These tests run in an environment of their own: `make test-vllm`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import EXAMPLE_POOL, Recorder
from tests.runs import config_for, run_local
from tests.token_models import FOR_VLLM, make_tiny_llama
from tests.vllm.engines import choices


@pytest.fixture(scope="session")
def vllm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama that vLLM serves, with a chat template for system turns and tools."""
    pytest.importorskip("vllm")
    from engine.judging.prompts import load_prompt

    lines = EXAMPLE_POOL.read_text(encoding="utf-8", errors="replace").splitlines()[:300]
    prompt = load_prompt("pairwise")
    folder = tmp_path_factory.mktemp("vllm") / "llama"
    return make_tiny_llama(
        folder, [*lines, *[prompt.system, prompt.user] * 50], positions=4096, vocabulary=2000, **FOR_VLLM
    )


@pytest.fixture(scope="session")
def reference(vllm_model: Path, small_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in this process, undisturbed; its folder."""
    out = tmp_path_factory.mktemp("local") / "out"
    summary = run_local(config_for(small_pool, out, *choices(vllm_model, small_pool, 1)), Recorder())
    once = {"started": 1, "died": 0, "blamed": 0}
    assert summary["engines"] == {"answer": once, "judge": once} and len(summary["rounds"]) == 3
    return out
