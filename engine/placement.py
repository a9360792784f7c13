"""Where models go: pure arithmetic from what nodes have and what a config asks, before anything is started.

A run is a sequence of phases; models of one phase are up at the same time, and what a phase holds on GPUs is released
before the next one that needs GPUs. The ranks of one engine are placed on one node when they fit there (tensor
parallelism wants one machine's links); only whole pipeline stages spread over nodes. It refuses to know Ray, vLLM and
the config's classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.errors import EnvironmentProblem

EPSILON = 1e-9


@dataclass(frozen=True)
class Node:
    """What one node offers.

    Attributes:
        memory_gb: 0 when not known, which refuses nothing.
    """

    name: str
    cpus: float
    gpus: int = 0
    memory_gb: float = 0.0


@dataclass(frozen=True)
class Model:
    """What a config asks for one model.

    Attributes:
        name: such as "generator".
        replicas: independent copies.
        tensor_parallel: GPUs that share each layer of a replica; they must be on one node.
        pipeline_parallel: groups of such GPUs, one after another; they may be on several nodes if `spread`.
        gpus: per rank (tensor x pipeline ranks): 1, a share of one, or 0 for a model on CPUs.
        cpus: of each rank.
        memory_gb: host memory of each rank.
        setting: where the user changes it, such as "recipe.generator".
        spread: a replica may span nodes.
    """

    name: str
    replicas: int = 1
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    gpus: float = 0.0
    cpus: float = 1.0
    memory_gb: float = 0.0
    setting: str = ""
    spread: bool = True


@dataclass(frozen=True)
class Phase:
    """Models that are up at the same time. `keeps`: they stay up afterwards, as long as nobody needs their GPUs."""

    name: str
    models: tuple[Model, ...]
    keeps: bool = False


@dataclass(frozen=True)
class Placed:
    """One replica: node name of each of its pipeline stages."""

    model: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class PhasePlan:
    """A phase on the nodes.

    Attributes:
        released: models of earlier phases that end before it starts, since it needs their GPUs, CPUs or memory.
    """

    name: str
    placed: tuple[Placed, ...]
    released: tuple[str, ...]

    def replicas_per_node(self) -> dict[str, dict[str, int]]:
        """{model: {node: replicas whose first stage is there}}."""
        found: dict[str, Counter[str]] = {}
        for one in self.placed:
            found.setdefault(one.model, Counter())[one.nodes[0]] += 1
        return {model: dict(nodes) for model, nodes in found.items()}

    def facts(self) -> dict[str, Any]:
        """JSON-able."""
        return {"phase": self.name, "releases": list(self.released), "replicas": self.replicas_per_node()}


class _Free:
    """What is left of a node: a GPU is shared only by shares of itself."""

    def __init__(self, node: Node) -> None:
        self.node, self.cpus, self.memory_gb = node, node.cpus, node.memory_gb
        self.gpus = [1.0] * node.gpus

    def take(self, model: Model) -> bool:
        """Takes one pipeline stage if it fits, else nothing."""
        ranks = model.tensor_parallel
        if self.cpus + EPSILON < ranks * model.cpus:
            return False
        if self.node.memory_gb and self.memory_gb + EPSILON < ranks * model.memory_gb:
            return False
        if model.gpus:
            # The fullest GPU that still has room, so that whole ones stay whole.
            fitting = sorted((left, k) for k, left in enumerate(self.gpus) if left + EPSILON >= model.gpus)
            if len(fitting) < ranks:
                return False
            for _, k in fitting[:ranks]:
                self.gpus[k] -= model.gpus
        self.cpus -= ranks * model.cpus
        self.memory_gb -= ranks * model.memory_gb
        return True

    def copy(self) -> _Free:
        found = _Free(self.node)
        found.cpus, found.memory_gb, found.gpus = self.cpus, self.memory_gb, list(self.gpus)
        return found


def place(nodes: Sequence[Node], phases: Sequence[Phase]) -> list[PhasePlan]:
    """Places every phase, in order. Pure.

    Replicas go where most is left, so they spread over nodes; a model on CPUs goes to nodes without GPUs first. A
    phase that fits beside what earlier phases keep releases nothing, otherwise it releases all of it.

    Args:
        nodes: the cluster.
        phases: in the order they run.

    Raises:
        EnvironmentProblem: E331 too few GPUs, E330 too few CPUs, E336 too little memory, for a phase on an otherwise
            empty cluster.
    """
    kept: list[str] = []  # models that stay up
    free = [_Free(node) for node in nodes]
    plans = []
    for phase in phases:
        trial = [one.copy() for one in free]
        placed, failed = _place_phase(trial, phase)
        released: list[str] = []
        if failed is not None:
            released, kept = kept, []
            free = [_Free(node) for node in nodes]
            trial = [one.copy() for one in free]
            placed, failed = _place_phase(trial, phase)
        if failed is not None:
            raise _refusal(nodes, phase, failed, len([one for one in placed if one.model == failed.name]))
        if phase.keeps:
            kept += [model.name for model in phase.models]
            free = trial
        plans.append(PhasePlan(phase.name, tuple(placed), tuple(released)))
    return plans


def _place_phase(free: list[_Free], phase: Phase) -> tuple[list[Placed], Model | None]:
    """The replicas that fit, largest models first, and the first model that does not, if one does not."""
    placed: list[Placed] = []
    sizes = sorted(phase.models, key=lambda m: (-m.tensor_parallel * m.pipeline_parallel * m.gpus, -m.cpus))
    for model in sizes:
        for _ in range(model.replicas):
            stages = _place_replica(free, model)
            if stages is None:
                return placed, model
            placed.append(Placed(model.name, stages))
    return placed, None


def _place_replica(free: list[_Free], model: Model) -> tuple[str, ...] | None:
    """Nodes of its stages; on one node if any can hold all, else stage by stage."""
    if model.gpus:
        order = sorted(range(len(free)), key=lambda k: (-sum(free[k].gpus), -free[k].cpus, k))
    else:
        order = sorted(range(len(free)), key=lambda k: (free[k].node.gpus > 0, -free[k].cpus, k))
    for k in order:
        trial = free[k].copy()
        if all(trial.take(model) for _ in range(model.pipeline_parallel)):
            free[k] = trial
            return (trial.node.name,) * model.pipeline_parallel
    if not model.spread:
        return None
    trials = [one.copy() for one in free]
    names: list[str] = []
    for _ in range(model.pipeline_parallel):
        found = next((k for k in order if trials[k].take(model)), None)
        if found is None:
            return None
        names.append(trials[found].node.name)
    free[:] = trials
    return tuple(names)


def _refusal(nodes: Sequence[Node], phase: Phase, model: Model, fitted: int) -> EnvironmentProblem:
    """What is missing, in the terms of the settings the user can change."""
    ranks = model.tensor_parallel * model.pipeline_parallel
    where = f"{model.setting}." if model.setting else ""
    head = f"{phase.name}: {model.replicas} x {model.name} fit {fitted} times"
    shape = f"each needs {_amount(model, ranks)}"
    if ranks > 1:
        shape += f" (tensor {model.tensor_parallel} x pipeline {model.pipeline_parallel})"
    most = max((node.gpus for node in nodes), default=0)
    together = model.tensor_parallel * (1 if model.spread else model.pipeline_parallel)
    if model.gpus and most < (together if model.gpus == 1 else 1):
        group = "its GPUs" if not model.spread else f"the {together} GPUs of a tensor-parallel group"
        return EnvironmentProblem(
            head,
            why=f"{shape}; {group} must be on one node, and the largest node has {most}",
            fix=f"lower {where}tensor_parallel_size, or add a larger node",
            code="E331",
        )
    total = f"the cluster has {sum(n.gpus for n in nodes)} GPUs, {sum(n.cpus for n in nodes):g} CPUs"
    beside = [other.name for other in phase.models if other.name != model.name]
    if beside:
        total += f", shared with {', '.join(beside)} in this phase"
    code, what = _scarce(nodes, model)
    return EnvironmentProblem(
        head,
        why=f"{shape}; {total}; {what} run out",
        fix=f"lower {where}replicas to {fitted}" if fitted else f"ask for less {what} per replica, or add nodes",
        code=code,
    )


def _scarce(nodes: Sequence[Node], model: Model) -> tuple[str, str]:
    """Code and name of the resource without which the replicas of a model alone would fit."""
    needs_no = {
        ("E331", "GPUs"): {"gpus": 0.0},
        ("E330", "CPUs"): {"cpus": 0.0},
        ("E336", "memory"): {"memory_gb": 0.0},
    }
    for (code, what), change in needs_no.items():
        less = replace(model, **change)
        if _place_phase([_Free(node) for node in nodes], Phase(model.name, (less,)))[1] is None:
            return code, what
    return ("E331", "GPUs") if model.gpus else ("E330", "CPUs")


def _amount(model: Model, ranks: int) -> str:
    parts = [f"{ranks * model.gpus:g} GPUs"] if model.gpus else []
    parts += [f"{ranks * model.cpus:g} CPUs"] if model.cpus else []
    parts += [f"{ranks * model.memory_gb:g} GB"] if model.memory_gb else []
    return ", ".join(parts)


def describe(plans: Sequence[PhasePlan]) -> list[str]:
    """Lines for a terminal."""
    lines = []
    for plan in plans:
        if plan.released:
            lines.append(f"{plan.name}: first releases {', '.join(plan.released)}")
        for model, nodes in plan.replicas_per_node().items():
            spread = [one for one in plan.placed if one.model == model and len(set(one.nodes)) > 1]
            where = ", ".join(f"{count} on {node}" for node, count in nodes.items())
            note = f" (stages over {' + '.join(dict.fromkeys(spread[0].nodes))})" if spread else ""
            lines.append(f"{plan.name}: {model}: {sum(nodes.values())} x: {where}{note}")
    return lines
