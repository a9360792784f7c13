"""Token scores on real vLLM: the same columns and, to 1e-3, the same numbers as the way of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.errors import ConfigError
from engine.models.token_scores import TokenScores
from engine.models.vllm_token_scores import VllmTokenScores
from engine.settings import load_config
from tests.conftest import Recorder
from tests.models.test_token_scores import WORDS, mixed_rows, pool_table
from tests.runs import run_local
from tests.token_models import make_tiny_llama

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

SHAPE: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 2, "head_dim": 32}  # vLLM's kernels want 32 or more


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_llama(tmp_path_factory.mktemp("tiny"), [" ".join(WORDS)] * 3, **SHAPE))


@pytest.fixture(scope="module")
def stage(tiny: str) -> VllmTokenScores:
    return VllmTokenScores(tiny, 400, "chat", "float32", "cpu")


def test_both_ways_agree(tiny: str, stage: VllmTokenScores) -> None:
    turns = ("why is water wet ?", "is it ?", "sort the list", "the sea")
    odd = [("", "an empty prompt"), ("¿qué? 🌊", "海水 🌊‍🧜 é"), turns, turns[-2:]]
    long = [("sea", "x " * 700), ("sea " * 600, "x"), ("why", "x")]
    table = pool_table([*mixed_rows(60), *odd, *long])
    ours, theirs = stage(table), TokenScores(tiny, 400, "chat", "float32", "cpu")(table)
    assert ours.schema == theirs.schema
    assert theirs["error"].null_count == len(table) - 1
    for one, other in zip(ours.to_pylist(), theirs.to_pylist(), strict=True):
        for name, value in other.items():
            assert one[name] == (pytest.approx(value, abs=1e-3) if isinstance(value, float) else value)


def test_neighbours_change_no_score_by_more_than_rounding(stage: VllmTokenScores) -> None:
    table = pool_table(mixed_rows(40))
    together, alone = stage(table).to_pylist(), [stage(table.slice(k, 1)).to_pylist()[0] for k in range(5)]
    for one, other in zip(together, alone, strict=False):
        assert one["nll_conditioned"] == pytest.approx(other["nll_conditioned"], abs=1e-4)
    assert stage(pool_table([])).num_rows == 0


def test_a_run_selects_as_the_other_backend_does(tiny: str, small_pool: Path, tmp_path: Path) -> None:
    selected = []
    for backend in ("transformers", "vllm"):
        out = tmp_path / backend
        words = [
            f"out={out}", "budget=20", f"recipe.model={tiny}", "recipe.max_tokens=400", "recipe.precision=float32",
            f"recipe.backend={backend}", "max_failed=0.2",
        ]  # fmt: skip
        run_local(load_config("perplexity", [str(small_pool), *words, "recipe.band=low"]), Recorder())
        selected.append(set((out / "ids.txt").read_text().split()))
    assert len(selected[0]) == 20 and len(selected[0] & selected[1]) >= 19  # a tie to 1e-3 may fall either way


def test_arguments_vllm_does_not_know(tiny: str) -> None:
    with pytest.raises(ConfigError, match="E236"):
        VllmTokenScores(tiny, 400, "chat", "float32", "cpu", engine_args={"no_such_argument": 1})
