"""Reading JSON Lines into a pool, beside parsing the same lines and nothing else. Same file, interleaved rounds."""

from __future__ import annotations

import json
import resource
import time

from benchmarks.figures import Figure, Measured, Scope, against_peer, exponent
from benchmarks.pool import write_pool
from benchmarks.record import paired
from engine.data.ingest import Ingest
from engine.data.inputs import resolve_inputs


def measure(scope: Scope) -> Measured:
    """CPU seconds at a tenth of the rows and at all of them, and the ratio to the bare parser."""
    rows = scope.rows or 100_000
    sizes = [rows // 10, rows]
    cost = []
    for size in sizes:
        path = scope.folder / f"ingest-{size}.jsonl"
        write_pool(path, size)
        started = time.process_time()
        read(str(path))
        cost.append(time.process_time() - started)
    small = str(scope.folder / f"ingest-{sizes[0]}.jsonl")
    pair = paired(lambda: read(small), lambda: parse(small), scope.rounds)
    return Measured(
        [
            *against_peer("json.loads alone", pair),
            Figure("rows per CPU second", round(rows / cost[1]), "rows/s", "higher"),
            Figure("exponent of CPU seconds per row", round(exponent(sizes, cost), 3), "", "lower"),
            Figure("peak memory of the process", peak_mb(), "MB"),
        ],
        {"sizes": sizes, "cpu_s": cost, "pair": pair},
    )


def read(path: str) -> None:
    """The pool, part by part, kept nowhere."""
    for _ in Ingest(resolve_inputs(path)):
        pass


def parse(path: str) -> None:
    """What reading cannot do without."""
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            json.loads(line)


def peak_mb() -> float:
    """Of this process so far, in 10^6 bytes."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)
