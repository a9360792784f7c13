"""What a pass over many parts costs beside the work in them: a real Ray on this machine, real commits, no work.

    python -m benchmarks.scheduler [--parts 1000 --seconds 0.5 --workers 4] [--folder DIR] [--name scheduler]

A part is eight numbers, made where they are read, so that only the pass itself is measured: Ray Data, the actors, the
commits (each a Parquet file and a marker, synced), progress, and the record. With --seconds a part waits so long, as on
a GPU or an endpoint: a part of 4,096 rows takes a CPU encoder 4 s, a language model minutes. Overhead is the wall time
beyond the waits, without the start of the actors, which a pass of one part for each worker shows. With 0 seconds the
parts do nothing, and parts/s are the scheduler's own. Waits leave the processor free, so a busy machine disturbs them
less than work would; the CPU seconds of this process do not depend on its neighbours at all.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from benchmarks.record import write_record
from engine.artifacts import Part, Step, StepRecord
from engine.config import RuntimeConfig
from engine.events import EventObserver, Events
from engine.live_table import LiveTable
from engine.runtime import StageSpec
from engine.schema import ROW
from engine.store import Store

ROWS = 8  # of a part


class Numbers:
    """A source of parts that lie nowhere."""

    def __init__(self, parts: int) -> None:
        self.parts, self.fingerprint = parts, f"numbers-{parts}"

    def require(self) -> StepRecord:
        parts = [self.part(index) for index in range(self.parts)]
        return StepRecord("numbers", self.fingerprint, {}, [], ROWS * self.parts, 0, 0.0, 0.0, parts, {})

    def part(self, index: int) -> Part:
        return Part(index, "", ROWS, 0, 0.0, "")

    def read(self, index: int, columns: Any = None) -> pa.Table:
        return pa.table({ROW: pa.array(range(index * ROWS, (index + 1) * ROWS), pa.int64())})


class Wait:
    """Stage: waits, and gives nothing but zeros."""

    columns_in = (ROW,)
    columns_out = (pa.field("zero", pa.int8()),)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, table: pa.Table) -> pa.Table:
        time.sleep(self.seconds)
        return pa.table({"zero": pa.array([0] * len(table), pa.int8())})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each part")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=None, help="where the run folder is made; a temporary one")
    parser.add_argument("--name", default="scheduler")
    arguments = parser.parse_args()
    from actors.cluster import connect, plan
    from actors.runtime import RayRuntime

    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    store = Store(folder)
    observer = EventObserver(Events(store), LiveTable(quiet=True))
    runtime = RayRuntime(plan(connect("local"), RuntimeConfig(workers=arguments.workers)), observer)
    try:
        result = measure(runtime, store, arguments)
    finally:
        runtime.close()
        shutil.rmtree(folder)
    Console().print_json(data=result)
    print(f"record: {write_record(arguments.name, result)}")


def measure(runtime: Any, store: Store, arguments: argparse.Namespace) -> dict[str, Any]:
    """A pass of one part for each worker, twice, the first of which warms up; then all parts."""
    timed(runtime, store, "warm-up", arguments.workers, 0.0)
    start_s, _ = timed(runtime, store, "start", arguments.workers, 0.0)
    before_mb = peak_mb()
    wall_s, cpu_s = timed(runtime, store, "pass", arguments.parts, arguments.seconds)
    waits_s = -(-arguments.parts // arguments.workers) * arguments.seconds
    return {
        "parts": arguments.parts,
        "part_s": arguments.seconds,
        "workers": arguments.workers,
        "start_s": round(start_s, 2),
        "wall_s": round(wall_s, 2),
        "waits_s": round(waits_s, 2),
        "overhead": round((wall_s - start_s) / waits_s - 1, 4) if waits_s else None,
        "overhead_with_start": round(wall_s / waits_s - 1, 4) if waits_s else None,
        "parts_per_s": round(arguments.parts / (wall_s - start_s), 1),
        "driver_cpu_ms_per_part": round(1000 * cpu_s / arguments.parts, 3),
        "driver_peak_mb": {"before": before_mb, "after": peak_mb()},
    }


def timed(runtime: Any, store: Store, name: str, parts: int, seconds: float) -> tuple[float, float]:
    """Wall seconds and CPU seconds of this process, for one pass."""
    wall, cpu = time.perf_counter(), time.process_time()
    record = runtime.map_parts(StageSpec.of(name, Wait, seconds=seconds), Numbers(parts), Step(store, name, {}))
    assert len(record.parts) == parts
    return time.perf_counter() - wall, time.process_time() - cpu


def peak_mb() -> float:
    """Largest resident set of this process so far, in 10^6 bytes."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)


if __name__ == "__main__":
    main()
