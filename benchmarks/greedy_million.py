"""Selection by vectors from a million rows: seconds, and the peak memory of driver and members.

    python -m benchmarks.greedy_million [--rows 1000000 --dim 64 --num 10000] [--local] [kcenter dq filter]

Synthetic unit vectors around centres, made in parts and stored as steps; each method then runs in a process of its own
on Ray, whose members read them from there; with `--local` the one member is in that process, and counts as driver.
`kcenter` and `dq` select within K-Means clusters; `filter` is DEITA's with a score per row that is there already.
`select_cpu_s` is the CPU time of the process itself, members on Ray not included.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import RECORDS, write_record
from benchmarks.vector_pool import Quiet, context_for, make_pool
from benchmarks.watch import watch
from engine.algorithms.ranking import top_rows
from engine.config import RuntimeConfig
from engine.greedy_methods import GraphCutSettings, KCenterSettings, diverse, graph_cut, kcenter
from engine.local import LocalRuntime
from engine.recipes.base import Context
from engine.schema import ID, id_words
from engine.space import Space, whole_pool


def by_kcenter(context: Context, space: Space, num: int) -> int:
    return len(kcenter(context, space, KCenterSettings(scope="cluster"), num, scored=True).rows)


def by_dq(context: Context, space: Space, num: int) -> int:
    return len(graph_cut(context, space, GraphCutSettings(scope="cluster"), num).rows)


def by_filter(context: Context, space: Space, num: int) -> int:
    words_N = np.concatenate([id_words(context.pool.read(p.index, [ID])[ID]) for p in context.pool.require().parts])
    scores_N = np.random.default_rng(2).random(len(words_N))
    return len(diverse(context, space, top_rows(scores_N, words_N, len(words_N)), 0.9, num).rows)


METHODS = {"kcenter": by_kcenter, "dq": by_dq, "filter": by_filter}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--num", type=int, default=10_000)
    parser.add_argument("--local", action="store_true", help="in one process, without Ray")
    parser.add_argument("--run-in", type=Path, default=None, help="folder of the pool: be the process that selects")
    parser.add_argument("--name", default="greedy_million")
    arguments = parser.parse_args()
    if arguments.run_in:
        select(arguments.run_in, arguments.methods[0], arguments.num, arguments.local)
        return
    path = RECORDS / f"{arguments.name}.json"
    result: dict[str, Any] = {"rows": arguments.rows, "dim": arguments.dim, "vectors": "synthetic, 20,000 centres"}
    with tempfile.TemporaryDirectory() as folder:
        make_pool(Path(folder), arguments.rows, arguments.dim, 20_000, 0.25)
        for method in arguments.methods:
            load = os.getloadavg()[0]
            own = ["--run-in", folder, "--num", str(arguments.num), *(["--local"] if arguments.local else [])]
            watched = watch([sys.executable, "-m", "benchmarks.greedy_million", method, *own])
            found = json.loads((Path(folder) / f"{method}.json").read_text())
            result[method] = {
                "wall_s": round(watched.seconds, 1),
                "load_before": round(load, 2),
                "memory": watched.memory,
                **found,
            }
            print(method, result[method], flush=True)
            write_record(arguments.name, result, path)
    print(f"record: {path}")


def select(folder: Path, method: str, num: int, local: bool) -> None:
    """Selects, and leaves its figures in the folder."""
    observer = Quiet()
    runtime = LocalRuntime(observer) if local else on_ray(observer)
    with tempfile.TemporaryDirectory() as out:
        context, vectors = context_for(folder, Path(out), runtime, num)
        started, started_cpu = time.monotonic(), time.process_time()
        selected = METHODS[method](context, whole_pool(context, vectors), num)
        found = {
            "selected": selected,
            "members": "in the driver's process" if local else f"{runtime.shards} on Ray",
            "select_s": round(time.monotonic() - started, 1),
            "select_cpu_s": round(time.process_time() - started_cpu, 1),
        }
        runtime.close()
    (folder / f"{method}.json").write_text(json.dumps(found | {"steps_s": observer.seconds}))


def on_ray(observer: Quiet) -> Any:
    from actors.cluster import connect, plan, resources
    from actors.runtime import RayRuntime

    connect("local")
    return RayRuntime(plan(resources(), RuntimeConfig()), observer)


if __name__ == "__main__":
    main()
