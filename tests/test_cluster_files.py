"""cluster.yaml and the KubeRay manifests: the launcher's own check, the API's schema, and what they promise."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
KUBERAY = ROOT / "docs" / "kuberay"
RAY = dict(line.strip().split("==") for line in open(ROOT / "constraints.txt") if "==" in line)["ray"]  # noqa: SIM115
SCHEMA = json.loads((ROOT / "tests" / "kuberay_schema.json").read_text())


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERAY / name).read_text()))


def flags_of(command: str) -> dict[str, str]:
    """The options of the `ray start` in a shell command."""
    words = shlex.split(command)
    start = words.index("start")
    assert words[start - 1] == "ray"
    pairs = [word.partition("=") for word in words[start + 1 :]]
    return {name: value for name, _, value in pairs}


def test_the_launcher_accepts_cluster_yaml(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))
    with pytest.raises(jsonschema.ValidationError):  # the check is one
        validate_config(prepare_config({**cluster, "head_node": 1}))


def test_every_flag_of_the_start_commands_is_one_of_this_ray(cluster: dict[str, Any]) -> None:
    from ray.scripts.scripts import start

    known = {name for parameter in start.params for name in parameter.opts}
    for command in (cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]):
        assert flags_of(command).keys() <= known


def test_cluster_yaml_keeps_its_promises(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    head, worker = (flags_of(cluster[f"{who}_start_ray_commands"][-1]) for who in ("head", "worker"))
    assert head["--num-cpus"] == "0" and types[cluster["head_node_type"]]["resources"]["CPU"] == 0
    assert head["--dashboard-host"] == "127.0.0.1" and "0.0.0.0" not in (ROOT / "cluster.yaml").read_text()
    assert "GPU" in types["gpu"]["resources"] and "GPU" not in types["cpu"]["resources"]
    workers = [kind for name, kind in types.items() if name != cluster["head_node_type"]]
    assert "InstanceMarketOptions" not in types[cluster["head_node_type"]]["node_config"]
    assert all(kind["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot" for kind in workers)
    assert all(kind["min_workers"] == kind["max_workers"] for kind in workers)
    assert cluster["max_workers"] == sum(kind["max_workers"] for kind in workers)
    images = re.findall(r"rayproject/ray:([\w.-]+)", (ROOT / "cluster.yaml").read_text())
    assert len(images) == 2 and all(image.startswith(f"{RAY}-py311-") for image in images)
    for who, flags in (("head", head), ("worker", worker)):
        command = cluster[f"{who}_start_ray_commands"][-1]
        assert "ulimit -n 65535" in command and "RAY_AUTH_MODE=token" in command
        assert flags["--object-spilling-directory"].startswith("/mnt/nvme")
    assert "~/.ray/auth_token" in cluster["file_mounts"] and "-c constraints.txt" in cluster["setup_commands"][-1]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay_manifests_follow_the_api(name: str) -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    for document in documents(name):
        jsonschema.validate(document, SCHEMA)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**document, "specs": {}}, SCHEMA)
        spec = document["spec"].get("rayClusterSpec", document["spec"])
        if "headGroupSpec" not in spec:
            continue
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        assert spec["rayVersion"] == RAY and spec["authOptions"]["mode"] == "token"
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        for group in groups:
            assert {f"--{flag}" for flag in group["rayStartParams"]} <= known
            (container,) = group["template"]["spec"]["containers"]
            assert container["resources"]["requests"] == container["resources"]["limits"]
            volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes >= {"shared"}
        for group in spec["workerGroupSpecs"]:
            assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    assert f"rayproject/ray:{RAY}-py311-cpu" in (KUBERAY / "Dockerfile").read_text()
