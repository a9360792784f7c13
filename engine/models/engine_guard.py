"""Takes an engine's processes down with the process that started them, however that one ended.

vLLM's engine runs in processes of its own; when their parent is killed they go on, and hold the GPU. A shell waits for
the end of a pipe that only this process holds open, and then kills every process that carries this engine's mark in
its environment. Linux only, as vLLM. It knows nothing of vLLM.
"""

from __future__ import annotations

import os
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

MARK = "ITERSELECT_ENGINE"
_SCRIPT = """
read -r _
for process in /proc/[0-9]*; do
    if tr '\\0' '\\n' 2>/dev/null < "$process/environ" | grep -qx "$1"; then kill -9 "${process#/proc/}"; fi
done 2>/dev/null
"""
_marking = threading.Lock()  # the environment is the process's, and two engines may start in it


class Guard:
    """Watches over the processes of one engine."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "guard", f"{MARK}={self.mark}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt from the terminal is not for it
        )

    @contextmanager
    def marking(self) -> Iterator[None]:
        """Processes that start meanwhile are this engine's."""
        with _marking:
            os.environ[MARK] = self.mark
            try:
                yield
            finally:
                del os.environ[MARK]

    def kill(self) -> None:
        """Kills the engine's processes now; blocks until it is done."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
