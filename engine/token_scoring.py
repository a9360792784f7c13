"""What the methods that stand on a causal language model share: its settings, and a pass of it over the pool.

A pass is one step, such as `steps/token_scores-<8 hex>`, known by the pool, the model and how texts are laid out, so
methods that agree on these share it. What a method adds is arithmetic on its columns. It knows no method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from engine.artifacts import Step
from engine.backends import pinned
from engine.config_base import PathOrName, Strict
from engine.config_vllm import EXECUTION_ARGS
from engine.recipes.base import Context
from engine.runtime import StageSpec


class CausalModelConfig(Strict):
    """Which model, and how it is computed."""

    model: PathOrName = Field(
        default="openai-community/gpt2", description="Causal language model that reads the pool: path or id"
    )
    max_tokens: int = Field(
        default=1024, ge=8, description="Longest prompt plus response; a longer response is cut, at its end"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 where the processor has it; see docs/vllm.md on what it costs"
    )

    def taken_by(self, score: type[Strict]) -> dict[str, Any]:
        """The settings that a score has too, by name."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in score.model_fields}


class LanguageModelConfig(CausalModelConfig):
    """Settings of the pass `token_scores`. Two scores with the same ones share it."""

    template: Literal["chat", "alpaca", "plain"] = Field(
        default="chat",
        description="How prompt and response become one text; chat: the model's own template, plain if it has none",
    )

    backend: Literal["transformers", "vllm"] = Field(
        default="transformers", description="What runs the model; vllm: for models above about 2B, on GPUs"
    )
    engine_args: dict[str, Any] = Field(
        default_factory=dict,
        description="With backend vllm: arguments of its engine, passed verbatim, e.g. {tensor_parallel_size: 4}",
    )

    @model_validator(mode="after")
    def _engine_args_have_an_engine(self) -> LanguageModelConfig:
        if self.engine_args and self.backend != "vllm":
            raise ValueError("engine_args needs backend vllm")
        if found := sorted({"model", "dtype", "max_model_len"} & self.engine_args.keys()):
            raise ValueError(f"engine_args must not set {', '.join(found)}: model, precision and max_tokens do")
        return self

    def shared(self) -> dict[str, Any]:
        """These settings alone, of a model that has more."""
        return {name: getattr(self, name) for name in LanguageModelConfig.model_fields}


def model_pass(
    context: Context,
    name: str,
    factory: Any,
    columns_out: Sequence[pa.Field],
    config: CausalModelConfig,
    further: Mapping[str, Any],
    inputs: Mapping[str, Step] | None = None,
    execution: Mapping[str, Any] | None = None,
    version: int = 1,
) -> Step:
    """A pass of a language model over the pool: the step `name`, parallel to the pool's parts.

    Args:
        factory: the stage; takes model, max_tokens, precision, device, weights, and what follows.
        further: its other arguments, JSON-able.
        inputs: steps among its arguments, by name.
        execution: what its arguments are to be in place of those in `further`, where that does not change its bytes.
        version: of the step, raised when the code changes its bytes.

    Raises:
        EnvironmentProblem: E320, the model is not here.
        TooManyFailures: E600, more rows than `max_failed` have no score.
    """
    from engine.models.encoder import resolve_precision

    # A GPU rounds differently, so the device is part of what is hashed.
    device = "cuda" if context.config.runtime.gpus else "cpu"
    chosen = {"model": config.model, "max_tokens": config.max_tokens, **further, "device": device}
    chosen["precision"] = resolve_precision(config.precision, device)
    settings, identity = pinned(name, chosen)
    steps = dict(inputs or {})
    fingerprints = [step.fingerprint for step in steps.values()]
    target = context.step(name, identity, [context.pool.fingerprint, *fingerprints], version)
    stage = StageSpec(
        name=name,
        factory=factory,
        kwargs={**settings, "weights": identity["model"], **steps, **(execution or {})},
        columns_in=factory.columns_in,
        columns_out=columns_out,
        resources=context.resources(),
    )
    record = context.runtime.map_parts(stage, context.pool, target)
    context.check_failures(target.folder, record.failed, record.rows)
    return target


def token_scores(context: Context, config: LanguageModelConfig) -> Step:
    """The step `token_scores`: `row` and TOKEN_SCORE_COLUMNS.

    Raises:
        EnvironmentProblem: E350, the backend is vllm and vLLM is not installed. Otherwise as `model_pass`.
    """
    from engine.models.token_rows import TOKEN_SCORE_COLUMNS
    from engine.models.token_scores import TokenScores
    from engine.models.vllm_token_scores import VllmTokenScores

    further: dict[str, Any] = {"template": config.template}
    if config.backend == "transformers":
        return model_pass(context, "token_scores", TokenScores, TOKEN_SCORE_COLUMNS, config, further, version=2)
    # The engine rounds in another way than transformers, and by arguments that do not only say how it is executed.
    execution = {*EXECUTION_ARGS, "tensor_parallel_size", "pipeline_parallel_size"}
    further |= {"engine_args": {name: value for name, value in config.engine_args.items() if name not in execution}}
    return model_pass(
        context, "token_scores", VllmTokenScores, TOKEN_SCORE_COLUMNS, config, further,
        execution={"engine_args": dict(config.engine_args)}, version=2,
    )  # fmt: skip


def digits(context: Context, config: CausalModelConfig, prompt: Mapping[str, Any], template: str, turns: str) -> Step:
    """The step `digits`: `row` and DIGIT_COLUMNS. Raises: as `model_pass`."""
    from engine.models.digit_scores import DIGIT_COLUMNS, DigitScores

    further = {"prompt": dict(prompt), "template": template, "turns": turns}
    return model_pass(context, "digits", DigitScores, DIGIT_COLUMNS, config, further)


def one_shot(context: Context, config: CausalModelConfig, anchors: Step, anchor_tokens: int, template: str) -> Step:
    """The step `one_shot`: `row` and ONE_SHOT_COLUMNS. Raises: as `model_pass`."""
    from engine.models.one_shot import ONE_SHOT_COLUMNS, OneShotScores

    further = {"anchor_tokens": anchor_tokens, "template": template}
    return model_pass(context, "one_shot", OneShotScores, ONE_SHOT_COLUMNS, config, further, {"anchors": anchors})
