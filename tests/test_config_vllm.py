"""Settings of vLLM that can be checked without it: what changes the bytes, how many GPUs, and what is said when it is
not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from engine.config_vllm import VllmGeneratorConfig, VllmJudgeConfig, vllm_identity
from engine.errors import ConfigError, EnvironmentProblem
from engine.models.vllm_stages import Serving, VllmGenerator, engine_facts
from engine.store import Store
from tests.runs import config_for


def config(**changes: Any) -> VllmGeneratorConfig:
    return VllmGeneratorConfig(model="m", **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"replicas": 4},
        {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "gpus": 4},
        {"gpus": 0.5, "parts": 1, "hang_s": 5.0, "give_up_after_s": 9.0},
        {"engine_args": {"gpu_memory_utilization": 0.5, "max_num_seqs": 8, "enforce_eager": True}},
    ],
)
def test_how_it_is_executed_is_not_in_the_identity(changes: dict[str, Any]) -> None:
    assert vllm_identity(config(**changes)) == vllm_identity(config())


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.5},
        {"stop": ["###"]},
        {"sampling": {"top_k": 5}},
        {"max_model_len": 512},
        {"engine_args": {"dtype": "bfloat16"}},
        {"engine_args": {"quantization": "fp8"}},
        {"engine_args": {"something_of_a_later_version": 1}},
    ],
)
def test_what_changes_the_answers_is_in_the_identity(changes: dict[str, Any]) -> None:
    assert vllm_identity(config(**changes)) != vllm_identity(config())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"engine_args": {"tensor_parallel_size": 2}}, "settings of their own"),
        ({"sampling": {"seed": 1}}, "settings of their own"),
        ({"gpus": 2}, "gpus must be 1"),
        ({"tensor_parallel_size": 2, "gpus": 0.5}, "gpus must be 2"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        config(**changes)


def test_a_recipe_takes_both_and_says_where_a_mistake_is(small_pool: Path, tmp_path: Path) -> None:
    found = config_for(
        small_pool, tmp_path, "recipe.generator={kind: vllm, model: m}", "recipe.judge={kind: vllm, model: m}"
    ).recipe
    assert isinstance(found.generator, VllmGeneratorConfig) and isinstance(found.judge, VllmJudgeConfig)  # pyright: ignore
    with pytest.raises(ConfigError, match="structured"):
        config_for(small_pool, tmp_path, "recipe.judge={kind: vllm, model: m, structured: json_object}")


def test_without_vllm_the_error_says_what_to_install() -> None:
    if importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed here")
    serving = Serving(name="answer", args={"model": "m"}, sampling={}, hang_s=1.0, give_up_after_s=1.0, seed=0)
    with pytest.raises(EnvironmentProblem, match=r"iterselect\[vllm\]") as caught:
        VllmGenerator(serving, None)
    assert caught.value.code == "E350"


def test_engines_are_counted_by_stage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert engine_facts(store) == {}
    for name in ("answer-started-1", "answer-died-2", "answer-started-3", "judge-started-4"):
        store.write_bytes(f"engines/{name}.json", b"{}")
    assert engine_facts(store) == {
        "answer": {"started": 2, "died": 1, "blamed": 0},
        "judge": {"started": 1, "died": 0, "blamed": 0},
    }
