"""What a config asks of a cluster, in the words of engine/placement.py, and clusters that are only described.

It knows the config's fields; placing is not done here, and Ray is not known.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.config import RunConfig
from engine.errors import ConfigError
from engine.models.vllm_installed import vllm_gpus
from engine.placement import Model, Node, Phase, PhasePlan, place

_NODES = re.compile(r"(?:(\d+)x)?(\d+(?:\.\d+)?)(?::(\d+))?(?::(\d+(?:\.\d+)?))?")


def parse_nodes(text: str) -> list[Node]:
    """Nodes from `COUNTxCPUS:GPUS:MEMORY_GB`, several separated by commas; all but CPUS may be left out.

    Raises:
        ConfigError: E271, it is written otherwise.
    """
    nodes: list[Node] = []
    for group in text.split(","):
        found = _NODES.fullmatch(group.strip())
        if found is None:
            raise ConfigError(
                f"cannot read the nodes {group.strip()!r}",
                fix="write COUNTxCPUS:GPUS:MEMORY_GB, for example 1x16,4x64:8:500",
                code="E271",
            )
        count, cpus, gpus, memory = found.groups()
        for _ in range(int(count or 1)):
            nodes.append(Node(f"node {len(nodes) + 1}", float(cpus), int(gpus or 0), float(memory or 0)))
    return nodes


def this_machine() -> Node:
    """Its CPUs that this process may use, and the GPUs of NVIDIA's driver."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = Path("/proc/driver/nvidia/gpus")
    return Node("this machine", float(cpus), len(list(gpus.iterdir())) if gpus.is_dir() else 0)


def machine() -> dict[str, Any]:
    """What kind of machine this is: processor, CPUs that this process may use, GPUs."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    here = this_machine()
    return {"cpu": names[0] if names else os.uname().machine, "cpus": here.cpus, "gpus": here.gpus}


def phases_of(config: RunConfig, workers: int, worker_cpus: float) -> list[Phase]:
    """The phases of a run that place something, in order.

    Args:
        workers, worker_cpus: of a pass over the pool, as the runtime sized them.
    """
    gpus = config.runtime.gpus
    ranks = max(1, math.ceil(gpus))
    pool = Model("workers", workers, ranks, gpus=gpus / ranks, cpus=worker_cpus / ranks, setting="runtime")
    phases = [Phase("passes over the pool", (pool,))]
    for role in ("generator", "judge"):
        backend = getattr(config.recipe, role, None)
        if getattr(backend, "kind", None) == "vllm":
            phases.append(Phase(role, (_engine(role, backend),), keeps=True))
    return [*phases, phases[0]] if len(phases) > 1 and gpus else phases


def _engine(role: str, backend: Any) -> Model:
    """A resident engine is one actor on one node, waits in most phases and reserves no CPUs."""
    of_each_rank = vllm_gpus(backend) / (backend.tensor_parallel_size * backend.pipeline_parallel_size)
    return Model(
        role, backend.replicas, backend.tensor_parallel_size, backend.pipeline_parallel_size, of_each_rank, 0.0,
        setting=f"recipe.{role}", spread=False,
    )  # fmt: skip


def place_run(config: RunConfig, nodes: Sequence[Node], workers: int, worker_cpus: float) -> list[PhasePlan]:
    """Every phase of a run on the nodes.

    Raises:
        EnvironmentProblem: something does not fit.
    """
    return place(nodes, phases_of(config, workers, worker_cpus))
