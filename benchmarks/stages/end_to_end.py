"""Whole runs on synthetic pools of several sizes: seconds per step, what a row costs as pools grow, memory.

The encoder is the hashed one, the classifier the probe, generator and judge the offline stand-ins, inference in one
pass: with `iterative` every selected row joins the hard set, so similarity costs 2 N H D operations with H a share of
N, and a row's cost grows with the pool. Pass `--set recipe.inference=iterative` to see that.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.end_to_end import describe
from benchmarks.figures import Figure, Measured, Scope, exponent
from benchmarks.pool import write_pool
from benchmarks.watch import watch
from engine.plan_steps import member_memory
from engine.settings import load_config

DRIVER_MB = 1500
STEPS = ("ingest", "embed", "diverse", "scores", "write")
MEMBER = "Host"  # the class of the processes that hold vectors


def measure(scope: Scope) -> Measured:
    """One run per size, each in processes of its own."""
    rows = scope.rows or 50_000  # below, the start of a run hides what a row costs
    sizes = list(scope.sizes) or [rows // 10, rows]
    runs, planned = [], []
    for size in sizes:
        pool, out = scope.folder / f"pool-{size}.jsonl", scope.folder / f"run-{size}"
        write_pool(pool, size, topics=scope.clusters)
        words = settings(scope, str(pool), str(out))
        runs.append(describe(out, watch([sys.executable, "-m", "engine", "run", "iterselect", *words, "--quiet"])))
        memory = member_memory(load_config("iterselect", words), size, runs[-1]["workers"])
        planned.append(memory["megabytes"] if memory else None)
    return Measured(figures(sizes, runs), {"sizes": sizes, "runs": runs}, lines(sizes, runs, planned))


def settings(scope: Scope, pool: str, out: str) -> list[str]:
    """Arguments of `run iterselect`; those of the scope come last and win."""
    return [
        pool, f"out={out}", f"encoder.model=hash:{scope.dim}", f"recipe.clusters={scope.clusters}",
        "recipe.max_rounds=3", "recipe.inference=one_shot", "budget=0.2", *scope.settings,
    ]  # fmt: skip


def figures(sizes: list[int], runs: list[dict[str, Any]]) -> list[Figure]:
    """Of the largest run, and of the growth from the smallest."""
    last = runs[-1]
    found = [
        Figure("rows", sizes[-1], "rows"),
        Figure("wall seconds", last["wall_s"], "s", "lower"),
        Figure("CPU seconds of all processes", last["cpu_s"], "s", "lower"),
        Figure("driver's peak memory", last["memory"]["driver_mb"], "MB", "lower", DRIVER_MB),
    ]
    for name in STEPS:
        cost = [cpu_s(run, name) for run in runs]
        if len(sizes) > 1 and all(cost):
            slope = round(exponent(sizes, cost), 3)
            found.append(Figure(f"exponent of CPU seconds per row, {name}", slope, "", "lower"))
    return found


def cpu_s(run: dict[str, Any], name: str) -> float:
    """0 where the step did not run, or was too short to be seen."""
    return next((step["cpu_s"] or 0.0 for step in run["steps"] if step["name"] == name), 0.0)


def lines(sizes: list[int], runs: list[dict[str, Any]], planned: list[Any]) -> list[dict[str, Any]]:
    """One line per step and size, then the memory of each size."""
    found: list[dict[str, Any]] = [
        {"rows": size, "step": step["name"], "seconds": step["seconds"], "CPU s": step["cpu_s"], "MB": None}
        for size, run in zip(sizes, runs, strict=True)
        for step in run["steps"]
        if step["name"] in STEPS
    ]
    for size, run, megabytes in zip(sizes, runs, planned, strict=True):
        workers = run["memory"]["workers_mb"]
        peaks = {"driver": run["memory"]["driver_mb"], "a member with its libraries": workers.get(MEMBER)}
        peaks["a member by `plan`, without them"] = megabytes
        found += [{"rows": size, "step": f"peak of {what}", "MB": value} for what, value in peaks.items()]
    return found
