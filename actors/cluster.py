"""Reaching a Ray cluster, and deciding what to place on it.

`connect` is the only place that calls `ray.init`. `plan` is arithmetic: it turns what the cluster has and what the
user asked for into numbers, and says "needs X, cluster has Y" instead of waiting for ever.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from engine.config import RuntimeConfig
from engine.errors import ConfigError, EnvironmentProblem

PASS_SHARE = 0.9  # of a CPU per thread: the rest of each CPU keeps resident members and Ray's own tasks schedulable
RESIDENT_CPUS = 0.001  # what a member that mostly waits reserves


@dataclass(frozen=True)
class ClusterResources:
    """What Ray says the cluster has, over all live nodes."""

    nodes: int
    cpus: float
    gpus: float
    memory_gb: float


@dataclass(frozen=True)
class Plan:
    """What a run places on the cluster."""

    workers: int
    shards: int
    threads: int
    gpus: float
    pass_cpus: float  # CPUs each worker of a pass reserves

    def describe(self, has: ClusterResources) -> str:
        """The preflight line."""
        gpus = f", {self.workers * self.gpus:g} GPUs" if self.gpus else ""
        return (
            f"needs {self.workers * self.pass_cpus:.3g} CPUs{gpus} ({self.workers} workers x {self.threads} threads, "
            f"{self.shards} shards); cluster has {has.cpus:g} CPUs, {has.gpus:g} GPUs, {has.memory_gb:.1f} GB on "
            f"{has.nodes} node{'s' if has.nodes > 1 else ''}"
        )


def plan(has: ClusterResources, want: RuntimeConfig) -> Plan:
    """Sizes a run for a cluster. Pure.

    Args:
        has: the cluster's resources.
        want: the user's settings; what is None follows from the cluster.

    Raises:
        EnvironmentProblem: a worker can never be placed.
    """
    if has.cpus <= 0:
        raise EnvironmentProblem("the cluster has no CPUs for workers", fix="add a worker node", code="E330")
    if want.gpus > has.gpus:
        raise EnvironmentProblem(
            f"needs {want.gpus:g} GPUs for one worker, cluster has {has.gpus:g}",
            fix="lower runtime.gpus or add a GPU node",
            code="E331",
        )
    by_cpu = max(1, int(has.cpus // want.threads))
    fitting = min(by_cpu, int(has.gpus // want.gpus)) if want.gpus else by_cpu
    workers = want.workers or max(1, fitting)
    if want.gpus and workers * want.gpus > has.gpus:
        raise EnvironmentProblem(
            f"needs {workers * want.gpus:g} GPUs ({workers} workers x {want.gpus:g}), cluster has {has.gpus:g}",
            fix="lower runtime.workers or runtime.gpus",
            code="E331",
        )
    # More workers than CPUs is allowed (they share), so that any count can be tried anywhere.
    pass_cpus = PASS_SHARE * min(float(want.threads), has.cpus / workers)
    return Plan(workers, want.shards or workers, want.threads, want.gpus, pass_cpus)


def connect(address: str | None) -> ClusterResources:
    """Joins the cluster at `address`, else the one in RAY_ADDRESS, else starts one on this machine.

    Raises:
        ConfigError: a Ray Client address; results would cross it and the driver must live in the cluster.
        EnvironmentProblem: no cluster answers, or it refuses the token.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address and address.startswith("ray://"):
        raise ConfigError(
            f"{address} is a Ray Client address",
            why="the driver must run inside the cluster",
            fix="run on the head node, or submit the run as a Ray job",
            code="E230",
        )
    if not address:
        # A private cluster for this run on loopback. Ray 2.60 would otherwise write a token into the home directory.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Ray's C++ log warns about actors of Ray Data that it restarts anyway.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Workers started here inherit this environment; a runtime_env would make Ray discard its prestarted workers.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(
            address=address,
            include_dashboard=False if not address else None,
            configure_logging=True,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EnvironmentProblem(
            f"cannot reach a Ray cluster at {address or 'this machine'}",
            why=str(error).splitlines()[0],
            fix="check the address and RAY_AUTH_MODE / RAY_AUTH_TOKEN, or run with --local",
            code="E332",
        ) from error
    return resources()


def resources() -> ClusterResources:
    """Read from Ray, never from the driver's own machine."""
    total = ray.cluster_resources()
    alive = [node for node in ray.nodes() if node["Alive"]]
    return ClusterResources(
        len(alive), total.get("CPU", 0.0), total.get("GPU", 0.0), round(total.get("memory", 0.0) / 2**30, 1)
    )


def code_hash() -> str:
    """SHA-256 of the sources of engine and actors, as this process would import them."""
    import actors
    import engine

    digest = hashlib.sha256()
    for package in (engine, actors):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def check_same_code() -> None:
    """Compares the driver's code with that of one worker per node.

    Raises:
        EnvironmentProblem: a node runs another version, which would make results depend on where a part ran.
    """
    mine = code_hash()
    remote = ray.remote(num_cpus=0)(code_hash)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return  # this machine's own files
    theirs = ray.get(
        [
            remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)).remote()
            for n in nodes
        ]
    )
    for node, found in zip(nodes, theirs, strict=True):
        if found != mine:
            raise EnvironmentProblem(
                f"node {node['NodeManagerAddress']} runs other code ({found}) than the driver ({mine})",
                fix="install the same version on every node",
                code="E333",
            )
