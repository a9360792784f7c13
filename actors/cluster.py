"""Reaching a Ray cluster, and deciding what to place on it.

`connect` is the only place that calls `ray.init`. `plan` is arithmetic: it turns what the cluster has and what the
user asked for into numbers, and says "needs X, cluster has Y" instead of waiting for ever.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from engine.config import RuntimeConfig
from engine.errors import ConfigError, EnvironmentProblem

PASS_SHARE = 0.9  # of a CPU per thread: the rest of each CPU keeps resident members and Ray's own tasks schedulable
RESIDENT_CPUS = 0.001  # what a member that mostly waits reserves


class NodeResources(NamedTuple):
    """What one live node offers."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class ClusterResources:
    """What Ray says the live nodes have. A worker lives on one node, so totals alone do not say what can be placed."""

    nodes: tuple[NodeResources, ...]
    memory_gb: float

    @property
    def cpus(self) -> float:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        return sum(node.gpus for node in self.nodes)


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
            f"{len(has.nodes)} node{'s' if len(has.nodes) > 1 else ''}"
        )


def plan(has: ClusterResources, want: RuntimeConfig) -> Plan:
    """Sizes a run for a cluster. Pure.

    Args:
        has: the cluster's resources.
        want: the user's settings; what is None follows from the cluster.

    Raises:
        EnvironmentProblem: a worker fits on no node, or more GPUs are asked for than there are.
    """
    nodes = [node for node in has.nodes if node.cpus > 0]
    if not nodes:
        raise EnvironmentProblem("the cluster has no CPUs for workers", fix="add a worker node", code="E330")
    fitting = sum(_fits(node, want) for node in nodes)
    if not fitting:
        raise _nothing_fits(nodes, want)
    workers = want.workers or fitting
    if want.gpus and workers > sum(_fits_gpus(node, want.gpus) for node in nodes):
        raise EnvironmentProblem(
            f"needs {workers * want.gpus:g} GPUs ({workers} workers x {want.gpus:g}), cluster has {has.gpus:g}",
            why="a worker uses the GPUs of one node, and a share of a GPU cannot span two",
            fix="lower runtime.workers or runtime.gpus",
            code="E331",
        )
    share = _share(nodes, want, workers)
    rest = sorted(nodes, key=lambda node: node.cpus)[:-1]
    if rest and not want.gpus:
        # A lost node that nobody replaces: its workers start again on the others, or the pass would wait for ever.
        # But not less than half, since Ray spreads workers over nodes as far as their CPUs go, small ones too.
        share = max(min(share, _share(rest, want, workers)), share / 2)
    pass_cpus = PASS_SHARE * share
    return Plan(workers, want.shards or workers, want.threads, want.gpus, pass_cpus)


def _share(nodes: list[NodeResources], want: RuntimeConfig, workers: int) -> float:
    """CPUs, at most its threads, that each of so many workers can have.

    More workers than CPUs is allowed (they share), so that any count can be tried anywhere: the k-th worker of a node
    leaves each of them cpus / k, and the workers-th largest of these shares can be had by all.
    """
    shares = sorted(
        (
            node.cpus / k
            for node in nodes
            for k in range(1, 1 + (min(workers, _fits_gpus(node, want.gpus)) if want.gpus else workers))
        ),
        reverse=True,
    )
    return min(float(want.threads), shares[workers - 1])


def _fits_gpus(node: NodeResources, gpus: float) -> int:
    """Workers of `gpus` > 0 each that the node's GPUs hold; a share stays within one GPU."""
    return int(node.gpus) * int(1 / gpus) if gpus < 1 else int(node.gpus // gpus)


def _fits(node: NodeResources, want: RuntimeConfig) -> int:
    """Workers that the node holds without sharing CPUs."""
    by_cpu = int(node.cpus // want.threads)
    return min(by_cpu, _fits_gpus(node, want.gpus)) if want.gpus else by_cpu


def _nothing_fits(nodes: list[NodeResources], want: RuntimeConfig) -> EnvironmentProblem:
    """Why no node can hold a single worker."""
    if want.gpus and not any(_fits_gpus(node, want.gpus) for node in nodes):
        return EnvironmentProblem(
            f"needs {want.gpus:g} GPUs for one worker, the largest node has {max(node.gpus for node in nodes):g}",
            fix="lower runtime.gpus or add a larger GPU node",
            code="E331",
        )
    able = [node for node in nodes if not want.gpus or _fits_gpus(node, want.gpus)]
    which = "the largest node with enough GPUs" if want.gpus else "the largest node"
    return EnvironmentProblem(
        f"needs {want.threads} CPUs for one worker, {which} has {max(node.cpus for node in able):g}",
        fix="lower runtime.threads or add a larger node",
        code="E330",
    )


def connect(address: str | None) -> ClusterResources:
    """Joins the cluster at `address`, else the one in RAY_ADDRESS, else starts one on this machine.

    Raises:
        ConfigError: a Ray Client address; results would cross it and the driver must live in the cluster.
        EnvironmentProblem: no cluster answers, or it refuses the token.
    """
    # "local" said outright: without an address Ray joins whatever cluster it finds on this machine.
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    private = address == "local"
    if address.startswith("ray://"):
        raise ConfigError(
            f"{address} is a Ray Client address",
            why="the driver must run inside the cluster",
            fix="run on the head node, or submit the run as a Ray job",
            code="E270",
        )
    if private:
        # A private cluster for this run on loopback. Ray 2.60 would otherwise write a token into the home directory.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Ray's C++ log warns about actors of Ray Data that it restarts anyway.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Workers started here inherit this environment; a runtime_env would make Ray discard its prestarted workers.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            include_dashboard=False if private else None,
            configure_logging=True,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EnvironmentProblem(
            f"cannot reach a Ray cluster at {'this machine' if private else address}",
            why=str(error).splitlines()[0],
            fix="check the address and RAY_AUTH_MODE / RAY_AUTH_TOKEN, or run with --local",
            code="E332",
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray has put its own, which ends the driver without a word
    return resources()


def resources() -> ClusterResources:
    """Read from Ray, never from the driver's own machine."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    memory = sum(node.get("memory", 0.0) for node in alive)
    return ClusterResources(
        tuple(NodeResources(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in alive), round(memory / 2**30, 1)
    )


def spilled_bytes() -> int | None:
    """Bytes that the object stores of all nodes have written to disk since the cluster started; None: nobody answers.

    Asked as Ray Data asks for its own statistics; there is no public call, and it asks a node that may just be lost.
    """
    from grpc import RpcError

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    try:
        return int(get_memory_info_reply(state).store_stats.spilled_bytes_total)
    except (RpcError, RuntimeError):
        return None


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
        EnvironmentProblem: a node lacks the package, or runs another version, which would make results depend on
            where a part ran.
    """
    mine = code_hash()
    remote = ray.remote(num_cpus=0)(code_hash)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return  # this machine's own files
    theirs = [
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)).remote()
        for n in nodes
    ]
    for node, reference in zip(nodes, theirs, strict=True):
        try:
            found = ray.get(reference)
        except RayTaskError as error:
            raise EnvironmentProblem(
                f"node {node['NodeManagerAddress']} cannot import this package",
                why=str(error).strip().splitlines()[-1],
                fix="install the same version on every node",
                code="E333",
            ) from error
        if found != mine:
            raise EnvironmentProblem(
                f"node {node['NodeManagerAddress']} runs other code ({found}) than the driver ({mine})",
                fix="install the same version on every node",
                code="E333",
            )
