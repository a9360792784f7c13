"""Placement is arithmetic: small and large clusters, CPU and GPU nodes, what is released, clear refusals."""

from __future__ import annotations

import pytest

from engine.errors import ConfigError, EnvironmentProblem
from engine.placement import Model, Node, Phase, describe, place
from engine.plan_run import parse_nodes, phases_of, place_run
from engine.settings import load_config

ONE_GPU = [Node("a", 16, 1)]
EIGHT = [Node("a", 64, 8)]
FOUR_BY_EIGHT = [Node(name, 64, 8) for name in "abcd"]
MIXED = [Node("head", 4), Node("cpu1", 32), Node("cpu2", 32), Node("gpu1", 16, 2), Node("gpu2", 16, 2)]


def phases(generator: Model, judge: Model, workers: int = 4, gpus: float = 0.0) -> list[Phase]:
    encoder = Model("encoder", workers, gpus=gpus)
    return [
        Phase("embed", (encoder,)),
        Phase("generate", (generator,), keeps=True),
        Phase("judge", (judge,), keeps=True),
        Phase("classify", (Model("classifier", workers, gpus=gpus),)),
    ]


def llm(name: str, replicas: int = 1, tp: int = 1, pp: int = 1, gpus: float = 1.0, **more: float) -> Model:
    return Model(name, replicas, tp, pp, gpus, 0.0, setting=f"recipe.{name}", **more)


def test_one_gpu_is_handed_from_phase_to_phase() -> None:
    plans = place(ONE_GPU, phases(llm("generator"), llm("judge"), 1, 1.0))
    assert [plan.released for plan in plans] == [(), (), ("generator",), ("judge",)]
    assert all(plan.replicas_per_node() == {plan.placed[0].model: {"a": 1}} for plan in plans)
    assert describe(plans)[2:4] == ["judge: first releases generator", "judge: judge: 1 x: 1 on a"]


def test_two_models_share_one_gpu_when_they_ask_for_shares() -> None:
    plans = place(ONE_GPU, phases(llm("generator", gpus=0.5), llm("judge", gpus=0.4)))
    assert [plan.released for plan in plans] == [()] * 4
    plans = place(ONE_GPU, phases(llm("generator", gpus=0.6), llm("judge", gpus=0.6)))
    assert plans[2].released == ("generator",)


def test_models_on_cpus_do_not_release_gpus() -> None:
    plans = place(ONE_GPU, phases(llm("generator"), llm("judge", gpus=0.0)))
    assert [plan.released for plan in plans] == [()] * 4


def test_eight_gpus() -> None:
    plans = place(EIGHT, phases(llm("generator", 4), llm("judge", tp=4)))
    assert plans[1].replicas_per_node() == {"generator": {"a": 4}} and not plans[2].released
    plans = place(EIGHT, phases(llm("generator", 2, tp=4), llm("judge", tp=2), 8, 1.0))
    assert [plan.released for plan in plans] == [(), (), ("generator",), ("judge",)]
    assert len(place(EIGHT, [Phase("all", (llm("generator", 16, gpus=0.5),))])[0].placed) == 16


def test_four_nodes_of_eight() -> None:
    plans = place(FOUR_BY_EIGHT, phases(llm("generator", 4, tp=4), llm("judge", 4, tp=4), 32, 1.0))
    assert plans[1].replicas_per_node() == {"generator": dict.fromkeys("abcd", 1)}
    assert plans[2].replicas_per_node() == {"judge": dict.fromkeys("abcd", 1)} and not plans[2].released
    assert plans[3].released == ("generator", "judge")
    (plan,) = place(FOUR_BY_EIGHT, [Phase("generate", (llm("generator", 2, tp=8, pp=2),))])
    assert [one.nodes for one in plan.placed] == [("a", "b"), ("c", "d")]
    (plan,) = place(FOUR_BY_EIGHT, [Phase("generate", (llm("generator", 4, tp=4, pp=2),))])
    assert [one.nodes for one in plan.placed] == [("a", "a"), ("b", "b"), ("c", "c"), ("d", "d")]
    both = Phase("both", (llm("judge", 8), llm("generator", 3, tp=8)))
    (plan,) = place(FOUR_BY_EIGHT, [both])  # the large one is placed first, else the small ones would be in its way
    assert plan.replicas_per_node() == {"generator": {"a": 1, "b": 1, "c": 1}, "judge": {"d": 8}}


def test_cpu_and_gpu_nodes() -> None:
    plans = place(MIXED, phases(llm("generator", 4), llm("judge", 2, tp=2), workers=64))
    encoders = plans[0].replicas_per_node()["encoder"]
    assert set(encoders) == {"head", "cpu1", "cpu2"} and sum(encoders.values()) == 64
    assert plans[1].replicas_per_node() == {"generator": {"gpu1": 2, "gpu2": 2}}
    assert plans[2].released == ("generator",)
    assert plans[3].released == ()
    heavy = place([Node("a", 8, 0, 16.0), Node("b", 8, 0, 64.0)], [Phase("x", (Model("m", 2, memory_gb=30.0),))])
    assert heavy[0].replicas_per_node() == {"m": {"b": 2}}


@pytest.mark.parametrize(
    ("nodes", "models", "code", "message"),
    [
        (MIXED, [llm("generator", tp=4)], "E331", "must be on one node, and the largest node has 2"),
        (MIXED, [llm("generator", 5)], "E331", "lower recipe.generator.replicas to 4"),
        (ONE_GPU, [llm("generator"), llm("judge")], "E331", "fit 0 times.*shared with generator in this phase"),
        ([Node("a", 4)], [llm("judge")], "E331", "the largest node has 0"),
        (
            [Node("a", 4), Node("b", 4)],
            [Model("encoder", 3, cpus=3.0)],
            "E330",
            "the cluster has 0 GPUs, 8 CPUs.*lower",
        ),
        ([Node("a", 8, 0, 16.0)], [Model("encoder", 2, memory_gb=10.0)], "E336", "memory run out"),
        (FOUR_BY_EIGHT, [llm("generator", 3, tp=8, pp=2)], "E331", r"16 GPUs \(tensor 8 x pipeline 2\).*replicas to 2"),
        ([Node("a", 64, 3)], [llm("generator", 4, gpus=0.6)], "E331", "needs 0.6 GPUs.*replicas to 3"),
    ],
)
def test_refusals(nodes: list[Node], models: list[Model], code: str, message: str) -> None:
    with pytest.raises(EnvironmentProblem, match=f"(?s){message}") as caught:
        place(nodes, [Phase("generate", tuple(models))])
    assert caught.value.code == code


def test_order_of_replicas_and_names_of_nodes_do_not_matter_for_what_fits() -> None:
    for nodes in (MIXED, MIXED[::-1], MIXED[2:] + MIXED[:2]):
        plans = place(nodes, phases(llm("generator", 4), llm("judge", 2, tp=2), workers=64))
        assert plans[1].replicas_per_node() == {"generator": {"gpu1": 2, "gpu2": 2}}


def test_nodes_are_described_in_a_word() -> None:
    nodes = parse_nodes("1x16, 2x64:8:500,4")
    assert [(n.cpus, n.gpus, n.memory_gb) for n in nodes] == [(16, 0, 0), (64, 8, 500), (64, 8, 500), (4, 0, 0)]
    for wrong in ("", "x4", "4x", "4x8:a", "8:1:2:3"):
        with pytest.raises(ConfigError, match="COUNTxCPUS"):
            parse_nodes(wrong)


def test_a_run_with_local_engines_on_described_clusters() -> None:
    pytest.importorskip("engine.config_vllm")
    engine = "kind: vllm, model: m, gpus: 4, tensor_parallel_size: 4, replicas: 4"
    lines = ["pool.jsonl", f"recipe.generator={{{engine}}}", f"recipe.judge={{{engine}}}", "runtime.gpus=1"]
    config = load_config("iterselect", lines)
    assert [phase.name for phase in phases_of(config, 8, 1.0)] == [
        "passes over the pool", "generator", "judge", "passes over the pool",
    ]  # fmt: skip
    plans = place_run(config, parse_nodes("4x64:8"), 32, 0.9)
    assert [plan.released for plan in plans] == [(), (), (), ("generator", "judge")]
    plans = place_run(config, parse_nodes("4x64:4"), 16, 0.9)
    assert [plan.released for plan in plans] == [(), (), ("generator",), ("judge",)]
    with pytest.raises(EnvironmentProblem, match="largest node has 2"):
        place_run(config, parse_nodes("8x64:2"), 16, 0.9)


@pytest.mark.parametrize("nodes", ["1x1", "2", "1x4,3x16", "2x64:8"])
def test_a_run_without_local_engines_fits_wherever_its_workers_do(nodes: str) -> None:
    from actors.cluster import ClusterResources, NodeResources, plan

    cluster = parse_nodes(nodes)
    has = ClusterResources(tuple(NodeResources(n.cpus, n.gpus) for n in cluster), 0.0)
    for more in ([], ["runtime.workers=9"], ["runtime.gpus=0.3"], ["runtime.gpus=2"]):
        config = load_config("random", ["pool.jsonl", *more])
        if config.runtime.gpus and not has.gpus:
            continue
        sizes = plan(has, config.runtime)
        (placed,) = place_run(config, cluster, sizes.workers, sizes.pass_cpus)
        assert len(placed.placed) == sizes.workers
