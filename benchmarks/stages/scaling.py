"""Encode and classify with more and more workers, one thread each: throughput, and efficiency over one worker.

Workers are resident, as a run's are: loading a model is not part of it, reading and committing parts is. All numbers of
workers take turns in one process. On a machine with other work the cores are not there to scale onto, and it shows.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import encode
from benchmarks.figures import Figure, Measured, Scope
from benchmarks.vector_pool import Quiet, hex_ids
from engine.artifacts import Step
from engine.config import RuntimeConfig
from engine.models.classifier import FinetuneSettings, FinetuneStage, train_finetune
from engine.models.encoder import EmbedStage, encoder_settings
from engine.runtime import PartWorker, Resources, StageSpec, map_on_group
from engine.schema import ID, PROBABILITY_COLUMNS, PROMPT, ROW, VECTOR
from engine.store import Store

PART_ROWS, LABELS, TARGET = 256, 64, 0.9


def measure(scope: Scope) -> Measured:
    """Seconds of one pass by workers, and E(w) = t(w0) w0 / (t(w) w) over the fewest workers w0."""
    from actors.cluster import connect, plan, resources
    from actors.runtime import RayRuntime

    texts = encode.read_texts(encode.EXAMPLE, scope.rows or 16 * PART_ROWS)
    store = Store(str(scope.folder / "scaling"))
    source = write_prompts(store, texts)
    connect(None)
    runtime = RayRuntime(plan(resources(), RuntimeConfig(workers=max(scope.workers))), Quiet())
    figures, lines, facts = [], [], {}
    try:
        for stage in (embed_stage(), classify_stage(texts, scope.folder / "classifier")):
            times = facts[stage.name] = {
                str(workers): seconds
                for workers, seconds in passes(runtime, stage, source, scope.workers, scope.rounds).items()
            }
            first = min(scope.workers)
            one_s = statistics.median(times[str(first)])
            for workers in scope.workers:
                seconds = statistics.median(times[str(workers)])
                efficiency = one_s * first / (seconds * workers)
                lines.append({"stage": stage.name, "workers": workers, "seconds": round(seconds, 2),
                              "rows/s": round(len(texts) / seconds), "efficiency": round(efficiency, 3)})  # fmt: skip
                if workers != first:
                    name = f"{stage.name}: efficiency of {workers} workers over {first}"
                    figures.append(Figure(name, round(efficiency, 3), "x", "higher", TARGET))
    finally:
        runtime.close()
    return Measured(figures, {"rows": len(texts), "part_rows": PART_ROWS, "seconds": facts}, lines)


def passes(runtime: Any, stage: StageSpec, source: Step, workers: Sequence[int], rounds: int) -> dict[int, list[float]]:
    """Seconds of every pass by number of workers; each has its model loaded and has done one part before."""
    found: dict[int, list[float]] = {number: [] for number in workers}
    for turn in range(rounds):
        for number in workers if turn % 2 == 0 else workers[::-1]:
            group = runtime.group(PartWorker, [{"stage": stage}] * number, stage.resources)
            settings = {"turn": turn, "workers": number}
            group.call("run", 0, source, Step(source.store, f"{stage.name}-warm", settings))
            started = time.perf_counter()
            map_on_group(runtime.observer, group, source, Step(source.store, stage.name, settings))
            found[number].append(time.perf_counter() - started)
            group.close()
    return found


def write_prompts(store: Store, texts: list[str]) -> Step:
    """A pool with prompts only."""
    step, started = Step(store, "ingest", {}), time.monotonic()
    for part, low in enumerate(range(0, len(texts), PART_ROWS)):
        some = texts[low : low + PART_ROWS]
        columns = {ROW: np.arange(low, low + len(some)), ID: hex_ids(len(some), 0, low)}
        step.commit(part, pa.table({**columns, PROMPT: pa.array(some, pa.large_string())}))
    step.finish(started=started, rows=len(texts))
    return step


def embed_stage() -> StageSpec:
    settings = encoder_settings({"model": "bundled:minilm", "device": "cpu"})
    return _pinned("encode", EmbedStage, {"encoder": settings}, [pa.field(VECTOR, pa.null())])


def classify_stage(texts: list[str], folder: Path) -> StageSpec:
    """A fine-tuned encoder: one epoch on a few rows, since what it learned does not change its speed."""
    words = np.arange(1, LABELS + 1, dtype=np.uint64) << np.uint64(40)
    hard = np.arange(LABELS) % 2 == 0
    train_finetune(texts[:LABELS], hard, words, FinetuneSettings(epochs=1), 0, folder)
    return _pinned("classify", FinetuneStage, {"directory": str(folder), "max_tokens": 256}, PROBABILITY_COLUMNS)


def _pinned(name: str, factory: Any, kwargs: dict[str, Any], columns: list[pa.Field]) -> StageSpec:
    """A stage of one thread per worker."""
    resources = Resources(cpus=1, resident=True)
    return StageSpec(
        name=name, factory=factory, kwargs=kwargs, columns_in=[PROMPT], columns_out=columns, resources=resources
    )
