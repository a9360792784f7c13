"""Clusters of several raylets that lose nodes, or their head, in the middle of a run: same bytes, nothing leaked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Recorder
from tests.runs import FINE, config_for, outputs, run_local, settings, wait_for_parts

pytestmark = [pytest.mark.slow, pytest.mark.ray]
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}

RAYS_OWN = {"ActorLocationTracker", "_StatsActor", "_AutoscalingCoordinatorActor"}  # Ray Data keeps them per cluster

LEFT = """
import json, time
import ray
from ray._private.state import actors
ray.init(logging_level="ERROR")
end = time.monotonic() + 60
while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"] and time.monotonic() < end:
    time.sleep(0.2)
alive = [actor["ActorClassName"] for actor in actors().values() if actor["State"] != "DEAD"]
print(json.dumps([ray.available_resources()["CPU"], ray.cluster_resources()["CPU"], alive]))
"""


@pytest.fixture(scope="module")
def reference(small_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_local(config_for(small_pool, out, *FINE), Recorder())
    return outputs(out)


def start_cluster(workers: int) -> tuple[Any, list[Any]]:
    """A head and `workers` more raylets, each with one CPU."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    nodes = [cluster.add_node(**NODE) for _ in range(workers)]
    cluster.wait_for_nodes()
    return cluster, nodes


@pytest.fixture
def clusters() -> Iterator[Callable[[int], tuple[Any, list[Any]]]]:
    started: list[Any] = []

    def start(workers: int) -> tuple[Any, list[Any]]:
        cluster, nodes = start_cluster(workers)
        started.append(cluster)
        return cluster, nodes

    yield start
    for cluster in started:
        cluster.shutdown()


def drive(cluster: Any, pool: Path, out: Path) -> subprocess.Popen[str]:
    line = settings(pool, out, *FINE, f"runtime.address={cluster.address}")
    command = [sys.executable, "-m", "engine", "run", "iterselect", *line, "--quiet"]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def left_over(cluster: Any) -> tuple[float, float, list[str]]:
    """CPUs free, CPUs in all, classes of actors that still live and are not Ray's own."""
    import json

    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    done = subprocess.run([sys.executable, "-c", LEFT], env=environment, capture_output=True, text=True, check=True)
    free, total, alive = json.loads(done.stdout)
    return free, total, sorted({*alive} - RAYS_OWN)


def test_worker_nodes_are_lost_in_the_middle_of_steps(
    small_pool: Path, reference: dict[str, bytes], tmp_path: Path, clusters: Any
) -> None:
    cluster, nodes = clusters(3)
    out = tmp_path / "out"
    process = drive(cluster, small_pool, out)
    for step, parts in (("steps/embed", 3), ("steps/embed", 20), ("rounds/000/answers", 1)):
        wait_for_parts(out, step, parts, process)
        cluster.remove_node(nodes.pop(0), allow_graceful=False)
        nodes.append(cluster.add_node(**NODE))
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert outputs(out) == reference
    free, total, alive = left_over(cluster)
    assert free == total == 4 and alive == []


def test_the_head_is_lost_and_the_command_repeated(
    small_pool: Path, reference: dict[str, bytes], tmp_path: Path, clusters: Any
) -> None:
    out = tmp_path / "out"
    cluster, _ = clusters(2)
    process = drive(cluster, small_pool, out)
    wait_for_parts(out, "steps/embed", 5, process)
    made = {path: path.stat().st_mtime_ns for path in out.glob("steps/embed-*/*.parquet")}
    cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
    _, told = process.communicate(timeout=180)
    assert process.returncode != 0, told
    cluster.shutdown()
    cluster, _ = clusters(2)
    process = drive(cluster, small_pool, out)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert outputs(out) == reference
    assert made.items() <= {path: path.stat().st_mtime_ns for path in out.glob("steps/embed-*/*.parquet")}.items()
