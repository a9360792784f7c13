"""A Ray cluster whose nodes have a network of their own each: namespaces with one address, joined by a bridge.

A link that goes down is what a cable, a switch or a firewall does to a node: its processes live on, and hear nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.ray_head import RAY

# A lost node is noticed within seconds, and a busy machine may make one wait to begin with.
PATIENCE = {
    "RAY_health_check_initial_delay_ms": "3000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_raylet_start_wait_time_s": "180",
}


def refusal() -> str:
    """Why this machine lets nobody make networks, empty when it does."""
    if os.name != "posix" or os.geteuid() != 0:
        return "only root makes network namespaces"
    if shutil.which("ip") is None:
        return "there is no `ip` (iproute2)"
    name = f"isprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"ip netns add: {made.stderr.strip()}"
    ip("netns", "del", name)
    return ""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Networks:
    """A bridge and so many namespaces, each with a Ray node of one CPU in it; the first is the head.

    `close` ends what `start` has started, also where that failed.

    Attributes:
        address: of the cluster, for drivers in the head's namespace.
    """

    def __init__(self, nodes: int) -> None:
        self.tag, self.subnet = f"is{os.getpid() % 100_000}", f"10.231.{os.getpid() % 250}"
        self.names = [f"{self.tag}n{number}" for number in range(nodes)]
        self.folder = Path(tempfile.mkdtemp(prefix="rn", dir="/tmp"))  # a socket's path must be short
        self.environment = {**os.environ, **PATIENCE, "RAY_AUTH_MODE": "disabled"}
        self.environment.pop("RAY_ADDRESS", None)
        self.address = f"{self.subnet}.10:6379"
        self.nodes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Returns when every node has joined."""
        ip("link", "add", self.tag, "type", "bridge")
        ip("addr", "add", f"{self.subnet}.1/24", "dev", self.tag)
        ip("link", "set", self.tag, "up")
        for number, name in enumerate(self.names):
            self._start_node(number, name)
            self._wait_for_nodes(number + 1)  # one after another: each takes a processor to start

    def _start_node(self, number: int, name: str) -> None:
        host, link = f"{self.subnet}.{10 + number}", self._link(number)
        ip("netns", "add", name)
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", link, "master", self.tag, "up")
        ip("-n", name, "addr", "add", f"{host}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", name, "link", "set", device, "up")
        role = ["--head", "--port=6379", f"--temp-dir={self.folder}/ray", "--include-dashboard=false"]
        if number:
            role = [f"--address={self.address}"]
        command = [
            *RAY, "start", *role, "--block", f"--node-ip-address={host}", "--num-cpus=1",
            "--object-store-memory=100000000", "--disable-usage-stats",
        ]  # fmt: skip
        with open(self.folder / f"node{number}.log", "wb") as log:
            self.nodes.append(self.popen(command, name, stdout=log, stderr=subprocess.STDOUT))

    def _link(self, number: int) -> str:
        return f"{self.tag}v{number}"

    def popen(self, command: list[str], name: str | None = None, **more: Any) -> subprocess.Popen[Any]:
        """A command inside a namespace, the head's by default."""
        inside = ["ip", "netns", "exec", name or self.names[0], *command]
        return subprocess.Popen(inside, env=self.environment, **more)

    def addresses(self) -> list[str]:
        """Of the live nodes, as the head knows them."""
        code = "import ray, sys; ray.init(sys.argv[1], logging_level=50); print(*(n['NodeManagerAddress'] for n in"
        code += " ray.nodes() if n['Alive']))"
        asked = self.popen([sys.executable, "-c", code, self.address], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        told, _ = asked.communicate(timeout=120)
        return sorted(told.decode().split())

    def _wait_for_nodes(self, count: int) -> None:
        end = time.monotonic() + 240
        while len(self.addresses()) < count:
            assert time.monotonic() < end, "".join(log.read_text() for log in sorted(self.folder.glob("*.log")))
            time.sleep(1)

    def cut(self, number: int) -> None:
        """Takes the link of a node down; what runs there runs on."""
        ip("link", "set", self._link(number), "down")

    def mend(self, number: int) -> None:
        ip("link", "set", self._link(number), "up")

    def close(self) -> None:
        for name in self.names:
            inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            subprocess.run(["kill", "-9", *inside.stdout.split()], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        for node in self.nodes:
            node.wait()
        subprocess.run(["ip", "link", "del", self.tag], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)
