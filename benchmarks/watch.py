"""Runs a command and watches it: wall and CPU seconds, peak memory of it and of Ray's workers, by what they do.

CPU seconds are of the command and of every process under it, so they hold on a machine that is shared. Figures are
sampled, so a peak shorter than PERIOD_S can be missed. It knows nothing of what the command does.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil

PERIOD_S = 0.25


@dataclass
class Watched:
    """What a command took.

    Attributes:
        seconds: wall time.
        driver_mb: peak of the command's own process, in 10^6 bytes as all here.
        workers_mb: kind of worker -> peak of the largest one; Ray's processes that do not run our code are left out.
        together_mb: peak of all workers at one moment.
        cpu: (Unix time, CPU seconds until then) of the whole tree, ascending.
    """

    seconds: float = 0.0
    driver_mb: float = 0.0
    workers_mb: dict[str, float] = field(default_factory=dict)
    together_mb: float = 0.0
    cpu: list[tuple[float, float]] = field(default_factory=list)

    @property
    def memory(self) -> dict[str, float]:
        """The peaks as records have them."""
        return {
            "driver_mb": round(self.driver_mb, 1),
            "largest_worker_mb": round(max(self.workers_mb.values(), default=0.0), 1),
            "workers_together_mb": round(self.together_mb, 1),
        }

    @property
    def cpu_s(self) -> float:
        return self.cpu[-1][1] if self.cpu else 0.0

    def cpu_between(self, start: float, end: float) -> float:
        """CPU seconds between two Unix times, from the samples next to them."""
        import numpy as np

        times, seconds = np.array(self.cpu).T
        low, high = np.interp([start, end], times, seconds)
        return float(high - low)


def watch(command: Sequence[str]) -> Watched:
    """Runs a command to its end; what it prints on stdout is dropped.

    Raises:
        SystemExit: it failed.
    """
    found, started = Watched(), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    driver = psutil.Process(process.pid)
    spent: dict[int, float] = {}
    while process.poll() is None:
        together = 0.0
        for one in [driver, *descendants(driver)]:
            size, seconds, kind = facts(one)
            spent[one.pid] = max(seconds, spent.get(one.pid, 0.0))
            if one.pid == driver.pid:
                found.driver_mb = max(found.driver_mb, size)
            elif kind:
                together += size
                found.workers_mb[kind] = max(size, found.workers_mb.get(kind, 0.0))
        found.together_mb = max(found.together_mb, together)
        found.cpu.append((time.time(), sum(spent.values())))
        time.sleep(PERIOD_S)
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}")
    found.seconds = time.monotonic() - started
    return found


def descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def facts(process: psutil.Process) -> tuple[float, float, str]:
    """MB of private memory (shared pages of the object store are not counted), CPU seconds, and the kind of worker:
    Ray names one that runs an actor `ray::Kind.method` or `ray::Kind(...)`; "" for other processes."""
    try:
        with process.oneshot():
            info, times = process.memory_info(), process.cpu_times()
            name = next((part for part in process.cmdline() if part.startswith("ray::")), "")
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0.0, 0.0, ""
    kind = re.match(r"ray::(\w+)", name)
    return (info.rss - getattr(info, "shared", 0)) / 1e6, times.user + times.system, kind[1] if kind else ""
