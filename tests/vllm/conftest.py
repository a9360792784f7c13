"""Real vLLM with a tiny Llama of random weights. These tests run in an environment of their own: `make test-vllm`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import EXAMPLE_POOL
from tests.token_models import FOR_VLLM, make_tiny_llama


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
