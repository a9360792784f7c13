"""A whole run as a user starts it, with seconds and rows/s per step and the peak memory of driver and workers.

    python -m benchmarks.end_to_end POOL [--budget 0.2] [--out DIR] [key=value ...]

Starts `iterselect run iterselect POOL` in a process of its own, watches the memory of that process and of Ray's
workers, and writes one record. `model_share` is the part of the wall time in which workers were busy with model
passes (encoder, generator, judge; reading and committing their parts included) or the classifier was trained.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.record import write_record
from benchmarks.watch import Watched, watch

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
        result = describe(out, watch([sys.executable, "-m", "engine", *command, "--quiet"]))
    print_table(result)
    print(f"record: {write_record(arguments.name, result)}")


def describe(out: Path, watched: Watched) -> dict[str, Any]:
    """The record of a finished run."""
    summary = json.loads((out / "run.json").read_text())["summary"]
    records = [json.loads(path.read_text()) for path in out.glob("*/**/step.json")]
    model_s = sum(record["busy_s"] for record in records if record["name"].rsplit("/")[-1] in MODEL_STEPS)
    workers, seconds = summary.get("workers", 1), watched.seconds
    train_s = sum(entry["train_s"] or 0.0 for entry in summary["rounds"])
    model_wall_s = model_s / workers + train_s
    cpu_s = step_cpu(out, watched)
    return {
        "rows": summary["pool"],
        "selected": summary["selected"],
        "wall_s": round(seconds, 2),
        "cpu_s": round(watched.cpu_s, 1),
        "rows_per_s": round(summary["pool"] / seconds, 1),
        "workers": workers,
        "model_busy_s": round(model_s, 2),
        "training_s": round(train_s, 2),
        "model_share": round(model_wall_s / seconds, 4),
        "other_share": round(1 - model_wall_s / seconds, 4),
        "memory": {**watched.memory, "workers_mb": {k: round(v, 1) for k, v in watched.workers_mb.items()}},
        "steps": [{**step, "cpu_s": cpu_s.get(step["name"])} for step in summary["steps"]],
        "rounds": summary["rounds"],
    }


def step_cpu(out: Path, watched: Watched) -> dict[str, float]:
    """CPU seconds of all processes while a step ran, by its name."""
    started: dict[str, float] = {}
    found: dict[str, float] = {}
    for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        at = datetime.fromisoformat(event["t"]).timestamp()
        if event["kind"] == "step_started":
            started[event["step"]] = at
        elif event["kind"] == "step_done" and event["step"] in started:
            found[event["step"]] = watched.cpu_between(started.pop(event["step"]), at)
    return {name: round(seconds, 1) for name, seconds in found.items()}


def print_table(result: dict[str, Any]) -> None:
    print(f"{'step':<28}{'rows':>11}{'seconds':>10}{'rows/s':>11}{'CPU s':>10}")
    for step in result["steps"]:
        rate = f"{step['rows'] / step['seconds']:,.0f}" if step["seconds"] else "-"
        cpu = "-" if step["cpu_s"] is None else f"{step['cpu_s']:,.1f}"
        print(f"{step['name']:<28}{step['rows']:>11,}{step['seconds']:>10.2f}{rate:>11}{cpu:>10}")
    print(
        f"{result['rows']:,} rows in {result['wall_s']} s; model passes and training {result['model_share']:.1%}, "
        f"everything else {result['other_share']:.1%}; memory {result['memory']}"
    )


if __name__ == "__main__":
    main()
