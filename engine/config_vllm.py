"""Settings of a model that vLLM serves inside the run's own workers, as generator or judge.

`EXECUTION` and `EXECUTION_ARGS` name what says how it is executed; everything else determines the bytes, and an
argument of the engine that nobody thought of counts as such. It knows nothing of vLLM's classes.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from engine.config_base import PathOrName, Strict
from engine.config_endpoint import JudgingConfig

EXECUTION = frozenset(
    {
        "tensor_parallel_size", "pipeline_parallel_size", "replicas", "gpus", "parts", "hang_s", "give_up_after_s",
        "engine_args",
    }
)  # fmt: skip
EXECUTION_ARGS = frozenset(
    {
        "gpu_memory_utilization", "kv_cache_memory_bytes", "max_num_seqs", "max_num_batched_tokens", "enforce_eager",
        "enable_prefix_caching", "enable_chunked_prefill", "distributed_executor_backend", "load_format",
        "download_dir", "disable_custom_all_reduce", "compilation_config", "cpu_offload_gb", "block_size",
        "async_scheduling", "max_parallel_loading_workers", "safetensors_load_strategy", "scheduling_policy",
    }
)  # fmt: skip
OURS = frozenset({"model", "max_model_len", "tensor_parallel_size", "pipeline_parallel_size", "disable_log_stats"})
OUR_SAMPLING = frozenset(
    {
        "temperature", "top_p", "max_tokens", "stop", "seed", "n", "output_kind", "logprobs", "prompt_logprobs",
        "structured_outputs", "detokenize",
    }
)  # fmt: skip


class VllmConfig(Strict):
    model: PathOrName = Field(description="Causal language model: path or id")
    max_model_len: int | None = Field(
        default=None, ge=16, description="Most tokens of prompt plus answer; default: what the model can"
    )
    temperature: float = Field(default=0.0, ge=0.0, le=2.0, description="Sampling temperature; 0: the likeliest token")
    top_p: float = Field(default=1.0, gt=0.0, le=1.0, description="Sample from the smallest set with this probability")
    sampling: dict[str, Any] = Field(
        default_factory=dict, description="Further fields of vLLM's SamplingParams, such as top_k or repetition_penalty"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Passed to the chat template, e.g. {enable_thinking: false}"
    )
    replicas: int = Field(default=1, ge=1, description="Engines; each has its own copy of the model")
    tensor_parallel_size: int = Field(default=1, ge=1, description="GPUs that share each layer of one engine")
    pipeline_parallel_size: int = Field(default=1, ge=1, description="Groups of GPUs that share the layers in turn")
    gpus: float | None = Field(
        default=None,
        ge=0.0,
        description="GPUs of each engine, or a share of one; default: tensor x pipeline parallel size, 0 where the "
        "CPU build of vLLM is installed",
    )
    parts: int = Field(default=4, ge=1, description="Parts each engine works on at a time, so that none idles")
    hang_s: float = Field(
        default=600.0, gt=0.0, description="An engine that makes no step for so long is replaced, in seconds"
    )
    give_up_after_s: float = Field(
        default=3600.0, gt=0.0, description="The run stops when engines die and no row was finished for so long"
    )
    engine_args: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of vLLM's engine, passed verbatim, e.g. {max_num_seqs: 512}"
    )

    @field_validator("engine_args")
    @classmethod
    def _args_without_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if found := sorted(OURS & value.keys()):
            raise ValueError(f"engine_args must not set {', '.join(found)}: settings of their own do")
        return value

    @field_validator("sampling")
    @classmethod
    def _sampling_without_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if found := sorted(OUR_SAMPLING & value.keys()):
            raise ValueError(f"sampling must not set {', '.join(found)}: settings of their own do, or the engine")
        return value

    @model_validator(mode="after")
    def _whole_gpus(self) -> VllmConfig:
        needed = self.tensor_parallel_size * self.pipeline_parallel_size
        if self.gpus is not None and 0 < self.gpus != needed and not (needed == 1 and self.gpus < 1):
            raise ValueError(f"gpus must be {needed} (tensor x pipeline parallel size), a share of one, or 0")
        return self


class VllmGeneratorConfig(VllmConfig):
    kind: Literal["vllm"] = "vllm"
    max_tokens: int = Field(default=512, ge=1, description="Longest answer, in tokens")
    stop: list[str] = Field(default_factory=list, description="Texts at which an answer ends; they are cut off")
    system: str | None = Field(default=None, description="System message for rows that have none")


class VllmJudgeConfig(VllmConfig, JudgingConfig):
    kind: Literal["vllm"] = "vllm"
    structured: Literal["auto", "json_schema", "choice", "text"] = Field(  # pyright: ignore
        default="auto",
        description="Form that the reply is held to; choice: only the verdict; auto: json_schema where the prompt "
        "has one",
    )


def vllm_identity(config: VllmConfig) -> dict[str, Any]:
    """What determines the replies: the settings without how they are executed, `kind` among them."""
    settings = {name: value for name, value in config.model_dump().items() if name not in EXECUTION}
    changing = {name: value for name, value in config.engine_args.items() if name not in EXECUTION_ARGS}
    return {**settings, "engine_args": changing}
