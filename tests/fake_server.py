"""Starts the scripted server of fake_openai.py in a process of its own, for the length of a `with` block.

The process also ends by itself when the one that started it dies: it watches the pipe that is its standard input.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]


class FakeServer:
    """A running scripted server.

    Args:
        options: of the command line, with underscores: `latency_s=0.02`, `api_key="k"`, `models=["a", "b"]`,
            `no_logprobs=True`, `rate_limited=0.1`, `real_rate_limit=600`.

    Attributes:
        url: what a client takes as base URL, ending in `/v1`.
        pid: of the server's process.
    """

    def __init__(self, **options: Any) -> None:
        self.arguments: list[str] = []
        for name, value in options.items():
            flag = "--" + name.replace("_", "-")
            if value is True:
                self.arguments.append(flag)
            elif value is not False:
                self.arguments += [flag, ",".join(value) if isinstance(value, list | tuple) else str(value)]

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.fake_openai", "--watch-stdin", *self.arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise RuntimeError(f"the scripted server ended with {self.process.returncode}: {command}")
        self.pid = self.process.pid
        self.port: int = json.loads(line)["port"]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def chat(self, messages: list[dict[str, Any]], **parameters: Any) -> dict[str, Any]:
        """The chat completion of these messages."""
        return self._call("/v1/chat/completions", {"model": "m", "messages": messages, **parameters})

    def _call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as response:
            return json.load(response)

    def stats(self) -> dict[str, Any]:
        """Counts since the last reset."""
        return self._call("/admin/stats")

    def log(self, n: int = 100) -> list[dict[str, Any]]:
        """The last n requests (at most 300): time, sha256, attempt, status, fault, mode, value, obeyed, body ..."""
        return self._call(f"/admin/log?n={n}")

    def faults(self, **rates: Any) -> dict[str, Any]:
        """Replace all fault rates; settings such as `latency_s` or `style` may be named too and stay otherwise."""
        return self._call("/admin/faults", rates)

    def baseline(self, messages: list[dict[str, Any]]) -> None:
        """Make this request the honest one of its system prompt: what others say outside their blocks must equal it."""
        self._call("/admin/baseline", {"messages": messages})

    def reset(self) -> None:
        """Forget counts, attempts, baselines and the log; settings and fault rates stay."""
        self._call("/admin/reset", {})
