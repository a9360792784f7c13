"""A real Ray head on this machine with token authentication: own ports, own folder, own token; ended by its process."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import requests

ROOT = Path(__file__).parents[1]
RAY = (sys.executable, "-m", "ray.scripts.scripts")  # the command `ray` of this very environment


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Head:
    """Started by `ray start --head --block`, as a person would.

    Attributes:
        address: of the dashboard, which takes jobs.
        metrics_url: what Prometheus would scrape.
        environment: of a client that knows the token.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rh", dir="/tmp"))  # a socket's path must be short
        token = self.folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        gcs, dashboard, client, agent, metrics = free_ports(5)
        self.address, self.metrics_url = f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics"
        known = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "PYTHONPATH")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = known | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PATH": path}
        command = [
            *RAY, "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=100000000",
            "--dashboard-host=127.0.0.1", f"--port={gcs}", f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
            f"--metrics-export-port={metrics}", f"--temp-dir={self.folder}/ray", "--disable-usage-stats",
        ]  # fmt: skip
        self.log = open(self.folder / "head.log", "wb")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, env=self.environment, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._wait(token.read_text())

    def _wait(self, token: str) -> None:
        """Until jobs are taken."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.folder / "head.log").read_text()
            try:
                headers = {"Authorization": f"Bearer {token}"}
                if requests.get(f"{self.address}/api/jobs/", headers=headers, timeout=10).ok:
                    return
            except requests.ConnectionError:
                pass  # not yet
            time.sleep(0.5)
        raise TimeoutError((self.folder / "head.log").read_text())

    def run(self, *command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """A client's command, from another folder."""
        everything = self.environment | environment
        return subprocess.run(command, cwd=cwd, env=everything, capture_output=True, text=True, check=False)

    def iterselect(self, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """`iterselect ARGUMENTS` against this cluster."""
        command = [sys.executable, "-c", "from engine.__main__ import main; main()", *arguments]
        address = {"RAY_API_SERVER_ADDRESS": self.address, "PYTHONPATH": str(ROOT)}
        return self.run(*command, cwd=cwd, **{**address, **environment})

    def close(self) -> None:
        processes = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()  # first, or it would wait for each of the others in turn
        self.process.wait()
        for process in processes:
            if process.is_running():  # the same process, not another with its number
                process.terminate()
        for process in psutil.wait_procs(processes, timeout=10)[1]:
            process.kill()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)
