"""The resource plan is arithmetic: sizes for small and large clusters, and clear refusals."""

from __future__ import annotations

import pytest

from actors.cluster import PASS_SHARE, ClusterResources, NodeResources, plan
from engine.config import RuntimeConfig
from engine.errors import EnvironmentProblem


def cluster(cpus: float, gpus: float = 0.0, nodes: int = 1) -> ClusterResources:
    """Equal nodes, with so much on each."""
    return ClusterResources((NodeResources(cpus, gpus),) * nodes, 16.0)


HEAD_AND_TWO = ClusterResources((NodeResources(0, 0), NodeResources(16, 0), NodeResources(6, 2)), 16.0)


@pytest.mark.parametrize(
    ("has", "want", "workers", "shards"),
    [
        (cluster(1), {}, 1, 1),
        (cluster(2), {}, 2, 2),
        (cluster(16, nodes=4), {"threads": 4}, 16, 16),
        (cluster(64, gpus=8), {"gpus": 1.0, "threads": 4}, 8, 8),
        (cluster(64, gpus=8), {"gpus": 0.5, "threads": 4}, 16, 16),
        (cluster(2), {"workers": 3, "shards": 7}, 3, 7),
        (cluster(5, nodes=4), {"threads": 4}, 4, 4),  # 20 CPUs, but one worker per node
        (cluster(16, nodes=4), {"threads": 8}, 8, 8),
        (cluster(16, gpus=2), {"gpus": 0.6}, 2, 2),  # a share does not span two GPUs
        (cluster(16, gpus=3, nodes=2), {"gpus": 2.0}, 2, 2),
        (cluster(2, gpus=8), {"gpus": 1.0, "threads": 2}, 1, 1),
        (cluster(2, gpus=8), {"gpus": 1.0, "threads": 2, "workers": 8}, 8, 8),
        (HEAD_AND_TWO, {"threads": 3}, 7, 7),
        (HEAD_AND_TWO, {"threads": 3, "gpus": 0.5}, 2, 2),
        (HEAD_AND_TWO, {"threads": 3, "gpus": 0.5, "workers": 4}, 4, 4),
        (HEAD_AND_TWO, {"threads": 3, "workers": 50}, 50, 50),
    ],
)
def test_sizes(has: ClusterResources, want: dict[str, float], workers: int, shards: int) -> None:
    made = plan(has, RuntimeConfig(**want))  # pyright: ignore[reportArgumentType]
    assert (made.workers, made.shards) == (workers, shards)
    assert made.workers * made.pass_cpus < has.cpus  # headroom: a pool that takes every CPU deadlocks
    assert sum(int(node.cpus / made.pass_cpus) for node in has.nodes) >= workers  # all of them can be placed


@pytest.mark.parametrize(
    ("has", "want", "message"),
    [
        (cluster(0), {}, "no CPUs"),
        (cluster(8), {"gpus": 1.0}, "needs 1 GPUs for one worker, the largest node has 0"),
        (cluster(64, gpus=2), {"gpus": 1.0, "workers": 3}, "needs 3 GPUs .* cluster has 2"),
        (cluster(64, gpus=2), {"gpus": 0.6, "workers": 3}, "needs 1.8 GPUs .* cluster has 2"),
        (cluster(4, nodes=4), {"threads": 8}, "needs 8 CPUs for one worker, the largest node has 4"),
        (cluster(4, nodes=4), {"threads": 8, "workers": 1}, "needs 8 CPUs for one worker, the largest node has 4"),
        (cluster(8, gpus=1, nodes=2), {"gpus": 2.0}, "needs 2 GPUs for one worker, the largest node has 1"),
        (HEAD_AND_TWO, {"gpus": 1.0, "threads": 8}, "needs 8 CPUs .* the largest node with enough GPUs has 6"),
    ],
)
def test_refusals(has: ClusterResources, want: dict[str, float], message: str) -> None:
    with pytest.raises(EnvironmentProblem, match=message):
        plan(has, RuntimeConfig(**want))  # pyright: ignore[reportArgumentType]


def test_more_workers_than_cpus_share_each_node() -> None:
    made = plan(cluster(4, nodes=4), RuntimeConfig(threads=4, workers=5))
    assert made.pass_cpus == pytest.approx(PASS_SHARE * 2)  # one node takes two of them


def test_the_preflight_line() -> None:
    made = plan(cluster(2), RuntimeConfig())
    assert made.describe(cluster(2)) == (
        "needs 1.8 CPUs (2 workers x 1 threads, 2 shards); cluster has 2 CPUs, 0 GPUs, 16.0 GB on 1 node"
    )
    assert made.describe(cluster(4, gpus=1, nodes=2)).endswith("cluster has 8 CPUs, 2 GPUs, 16.0 GB on 2 nodes")


@pytest.mark.parametrize("nodes", [(1, 1, 1), (4, 4), (2, 3, 5), (16, 64, 64, 64)])
def test_the_workers_of_a_lost_node_fit_on_the_others(nodes: tuple[float, ...]) -> None:
    has = ClusterResources(tuple(NodeResources(cpus, 0.0) for cpus in nodes), 16.0)
    made = plan(has, RuntimeConfig())
    left = sorted(nodes)[:-1]
    assert made.workers == sum(nodes)
    assert sum(int(cpus / made.pass_cpus) for cpus in left) >= made.workers
    assert made.pass_cpus >= PASS_SHARE / 2


def test_a_large_node_is_not_crammed_onto_a_small_one() -> None:
    has = ClusterResources((NodeResources(1.0, 0.0), NodeResources(64.0, 0.0)), 16.0)
    assert plan(has, RuntimeConfig()).pass_cpus == PASS_SHARE / 2
    alone = ClusterResources((NodeResources(64.0, 0.0),), 16.0)
    assert plan(alone, RuntimeConfig()).pass_cpus == PASS_SHARE
