"""A whole run as a user starts it, with seconds and rows/s per step and the peak memory of driver and workers.

    python -m benchmarks.end_to_end POOL [--budget 0.2] [--out DIR] [key=value ...]

Starts `iterselect run iterselect POOL` in a process of its own, watches the memory of that process and of Ray's
workers, and writes one record. `model_share` is the part of the wall time in which workers were busy with model
passes (encoder, generator, judge; reading and committing their parts included) or the classifier was trained.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.record import write_record

MODEL_STEPS = ("embed", "answers", "verdicts", "classify", "scored")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pool")
    parser.add_argument("--budget", default="0.2")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--name", default="end_to_end")
    parser.add_argument("settings", nargs="*", help="key=value overrides")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        out = arguments.out or Path(folder) / "run"
        command = ["run", "iterselect", arguments.pool, f"out={out}", f"budget={arguments.budget}", *arguments.settings]
        seconds, memory = watch([sys.executable, "-m", "engine", *command, "--quiet"])
        result = describe(out, seconds, memory)
    print_table(result)
    print(f"record: {write_record(arguments.name, result)}")


def watch(command: list[str]) -> tuple[float, dict[str, float]]:
    """Runs a command; returns wall seconds and peak resident memory in MB of it, its workers and all together."""
    started = time.monotonic()
    process = subprocess.Popen(command)
    driver = psutil.Process(process.pid)
    peak = {"driver_mb": 0.0, "largest_worker_mb": 0.0, "workers_together_mb": 0.0}
    while process.poll() is None:
        sizes = [(p, rss_mb(p)) for p in descendants(driver)]
        workers = [size for p, size in sizes if is_worker(p)]
        peak["driver_mb"] = max(peak["driver_mb"], rss_mb(driver))
        peak["largest_worker_mb"] = max([peak["largest_worker_mb"], *workers])
        peak["workers_together_mb"] = max(peak["workers_together_mb"], sum(workers))
        time.sleep(0.25)
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}")
    return time.monotonic() - started, {name: round(value, 1) for name, value in peak.items()}


def descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def is_worker(process: psutil.Process) -> bool:
    """Ray names a worker that runs an actor or task `ray::...`."""
    try:
        return any(part.startswith("ray::") for part in process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def rss_mb(process: psutil.Process) -> float:
    """Private memory where the system tells it, so that shared object-store pages are not counted per worker."""
    try:
        info = process.memory_info()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0.0
    return (info.rss - getattr(info, "shared", 0)) / 1e6


def describe(out: Path, seconds: float, memory: dict[str, float]) -> dict[str, Any]:
    """The record of a finished run."""
    summary = json.loads((out / "run.json").read_text())["summary"]
    records = [json.loads(path.read_text()) for path in out.glob("*/**/step.json")]
    model_s = sum(record["busy_s"] for record in records if record["name"].rsplit("/")[-1] in MODEL_STEPS)
    workers = summary.get("workers", 1)
    train_s = sum(entry["train_s"] or 0.0 for entry in summary["rounds"])
    model_wall_s = model_s / workers + train_s
    return {
        "rows": summary["pool"],
        "selected": summary["selected"],
        "wall_s": round(seconds, 2),
        "rows_per_s": round(summary["pool"] / seconds, 1),
        "workers": workers,
        "model_busy_s": round(model_s, 2),
        "training_s": round(train_s, 2),
        "model_share": round(model_wall_s / seconds, 4),
        "other_share": round(1 - model_wall_s / seconds, 4),
        "memory": memory,
        "steps": summary["steps"],
        "rounds": summary["rounds"],
    }


def print_table(result: dict[str, Any]) -> None:
    print(f"{'step':<28}{'rows':>9}{'seconds':>10}{'rows/s':>11}")
    for step in result["steps"]:
        rate = f"{step['rows'] / step['seconds']:,.0f}" if step["seconds"] else "-"
        print(f"{step['name']:<28}{step['rows']:>9,}{step['seconds']:>10.2f}{rate:>11}")
    print(
        f"{result['rows']:,} rows in {result['wall_s']} s; model passes and training {result['model_share']:.1%}, "
        f"everything else {result['other_share']:.1%}; memory {result['memory']}"
    )


if __name__ == "__main__":
    main()
