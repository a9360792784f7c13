"""The vector steps alone, on vectors that are there already: K-Means, a diverse draw, similarity, the best by F.

Memory of the driver, which must not grow with the pool, and of a member beside what `plan` predicts. A member has its
Python and libraries too, which `plan` leaves out, so what is compared is the growth from the smallest pool.
`python -m benchmarks.stages.vectors FOLDER ...` is one such run.
"""

# N rows, D dimensions, K clusters, H hard rows

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.figures import Figure, Measured, Scope, exponent
from benchmarks.greedy_million import on_ray
from benchmarks.vector_pool import Quiet, context_for, make_pool
from benchmarks.watch import watch
from engine.algorithms.kmeans import kmeans
from engine.artifacts import Step, write_table
from engine.models.probe import ProbeModel
from engine.plan_steps import member_bytes
from engine.recipes.base import Context
from engine.schema import HARD, ROW, VECTOR
from engine.trainer import MODEL_FILE, ProbeScores

HARD_ROWS, ITERATIONS, SHARE = 2000, 5, 0.2
DRIVER_GROWTH, MEMBER_ERROR = 1.2, 0.25


def measure(scope: Scope) -> Measured:
    """One run per size, smallest first."""
    rows = scope.rows or 200_000
    sizes = list(scope.sizes) or [rows // 10, rows]
    runs = []
    for size in sizes:
        folder = scope.folder / f"vectors-{size}"
        make_pool(folder, size, scope.dim, scope.clusters, 1.0)
        watched = watch([sys.executable, "-m", "benchmarks.stages.vectors", str(folder), str(scope.clusters)])
        found = json.loads((folder / "found.json").read_text())
        planned = member_bytes(-(-size // found["members"]), scope.dim, scope.clusters, HARD_ROWS) / 1e6
        memory = {"driver_mb": watched.driver_mb, "member_mb": watched.workers_mb["Host"], "planned_mb": planned}
        runs.append({"rows": size, **found, **memory, "cpu_s": watched.cpu_s, "wall_s": watched.seconds})
    first, last = runs[0], runs[-1]
    grown, expected = (last[key] - first[key] for key in ("member_mb", "planned_mb"))
    return Measured(
        [
            Figure("rows", sizes[-1], "rows"),
            Figure("driver's peak memory", round(last["driver_mb"], 1), "MB", "lower"),
            Figure(
                f"driver's memory over that of {sizes[0]:,} rows",
                round(last["driver_mb"] / first["driver_mb"], 3),
                "times", "lower", DRIVER_GROWTH,
            ),
            Figure("member's memory off the plan by", round(abs(grown / expected - 1), 3), "share", "lower",
                   MEMBER_ERROR),
            Figure("exponent of members' seconds per row", round(exponent(sizes, [r["steps_s"] for r in runs]), 3), "",
                   "lower"),
        ],
        {"sizes": sizes, "dim": scope.dim, "clusters": scope.clusters, "hard": HARD_ROWS, "iterations": ITERATIONS},
        [{key: round(value, 1) for key, value in run.items()} for run in runs],
    )  # fmt: skip


def run(folder: Path, clusters: int) -> None:
    """The steps of a run that need no text, on Ray; leaves its figures in the folder."""
    with tempfile.TemporaryDirectory() as out:
        runtime = on_ray(Quiet())
        context, vectors = context_for(folder, Path(out), runtime, 1)
        index = context.index(vectors)
        index.count()  # the members have read their vectors
        started = time.monotonic()
        result = kmeans(index, clusters, seed=0, iterations=ITERATIONS)
        kmeans_s = time.monotonic() - started
        drawn = index.draw(result.centroids_KD, result.counts_K, HARD_ROWS, "equal", 0, "bench")
        entry = Step(context.store, "labels", {})
        columns = [pa.array(drawn.rows), pa.array([True] * len(drawn.rows)), index.vectors_arrow(drawn.rows)]
        write_table(entry, pa.table(columns, names=[ROW, HARD, VECTOR]), len(drawn.rows))
        index.remember(entry)
        scores = ProbeScores(constant_probe(context, index.dim()))
        best = index.top(scores, 0.7, "clip", round(SHARE * context.pool_rows))
        seconds = time.monotonic() - started
        found = {"members": runtime.shards, "selected": len(best.rows), "kmeans_s": kmeans_s, "steps_s": seconds}
        index.close()
        runtime.close()
    (folder / "found.json").write_text(json.dumps(found))


def constant_probe(context: Context, dim: int) -> Step:
    """A committed classifier that looks at the first dimension."""
    step = Step(context.store, "classifier", {})
    model = ProbeModel(weight_D=np.eye(1, dim)[0], intercept=0.0)
    context.store.write_bytes(f"{step.folder}/{MODEL_FILE}", model.to_bytes())
    step.finish(started=time.monotonic(), rows=0)
    return step


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("clusters", type=int)
    arguments = parser.parse_args()
    run(arguments.folder, arguments.clusters)
