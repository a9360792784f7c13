"""The resource plan is arithmetic: sizes for small and large clusters, and clear refusals."""

from __future__ import annotations

import pytest

from actors.cluster import ClusterResources, plan
from engine.config import RuntimeConfig
from engine.errors import EnvironmentProblem


def cluster(cpus: float, gpus: float = 0.0, nodes: int = 1) -> ClusterResources:
    return ClusterResources(nodes, cpus, gpus, 16.0)


@pytest.mark.parametrize(
    ("has", "want", "workers", "shards"),
    [
        (cluster(1), {}, 1, 1),
        (cluster(2), {}, 2, 2),
        (cluster(64, nodes=4), {"threads": 4}, 16, 16),
        (cluster(64, gpus=8), {"gpus": 1.0, "threads": 4}, 8, 8),
        (cluster(64, gpus=8), {"gpus": 0.5, "threads": 4}, 16, 16),
        (cluster(2), {"workers": 3, "shards": 7}, 3, 7),
    ],
)
def test_sizes(has: ClusterResources, want: dict[str, float], workers: int, shards: int) -> None:
    made = plan(has, RuntimeConfig(**want))  # pyright: ignore[reportArgumentType]
    assert (made.workers, made.shards) == (workers, shards)
    assert made.workers * made.pass_cpus < has.cpus  # headroom: a pool that takes every CPU deadlocks


@pytest.mark.parametrize(
    ("has", "want", "message"),
    [
        (cluster(0), {}, "no CPUs"),
        (cluster(8), {"gpus": 1.0}, "needs 1 GPUs for one worker, cluster has 0"),
        (cluster(64, gpus=2), {"gpus": 1.0, "workers": 3}, "needs 3 GPUs .* cluster has 2"),
    ],
)
def test_refusals(has: ClusterResources, want: dict[str, float], message: str) -> None:
    with pytest.raises(EnvironmentProblem, match=message):
        plan(has, RuntimeConfig(**want))  # pyright: ignore[reportArgumentType]


def test_the_preflight_line() -> None:
    made = plan(cluster(2), RuntimeConfig())
    assert made.describe(cluster(2)) == (
        "needs 1.8 CPUs (2 workers x 1 threads, 2 shards); cluster has 2 CPUs, 0 GPUs, 16.0 GB on 1 node"
    )
