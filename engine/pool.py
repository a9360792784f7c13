"""Freezes input files into a pool: the step that everything else reads rows from.

Formats and checks are in engine/data; this file writes what they yield, and knows nothing of methods.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time

import numpy as np
import pyarrow as pa

from engine.artifacts import Step, take_rows
from engine.config import DataConfig, RunConfig
from engine.data.ingest import Ingest, IngestOptions
from engine.data.inputs import InputFile
from engine.data.rows import Reject
from engine.remote import filesystem, told
from engine.runtime import Runtime
from engine.schema import ID, ROW, id_words, seeded_hash
from engine.store import Store

PILOT = "pilot"  # the step, and the draw by hash that makes it


def run_pool(config: RunConfig, store: Store, runtime: Runtime, inputs: list[InputFile]) -> Step:
    """The rows that a run selects from: all that are ingested, or with `data.limit` a sample of them.

    The sample is the step `pilot`, which looks like `ingest` to everything after it; its `left_out` counts the others.
    A later run without the limit finds the ingested rows where they are.

    Raises:
        DataError: no row could be used.
    """
    whole, limit = ingest(config, store, runtime, inputs), config.data.limit
    counts = whole.require()
    if limit is None or limit >= counts.rows:
        return whole
    settings = {"limit": limit, "seed": config.seed, "files": whole.settings["files"]}
    step = Step(store, PILOT, settings, [whole.fingerprint])
    if step.record() is None:
        started = time.monotonic()
        runtime.observer.step_started(PILOT, limit)
        rows_I, done = pilot_rows(whole, limit, config.seed), step.committed()
        for index, low in enumerate(range(0, limit, config.data.part_rows)):
            if index not in done:
                table = take_rows(whole, rows_I[low : low + config.data.part_rows])
                numbers = pa.array(np.arange(low, low + len(table)))
                step.commit(index, table.set_column(0, table.schema.field(ROW), numbers))
        store.copy_file(store, f"{whole.folder}/rejected.jsonl", f"{step.folder}/rejected.jsonl")
        step.finish(started=started, rows=limit, extra={**counts.extra, "pool": limit, "left_out": counts.rows - limit})
        runtime.observer.step_done(PILOT, limit, step.require().seconds, 0, reused=False)
    else:
        runtime.observer.step_done(PILOT, limit, 0.0, 0, reused=True)
    runtime.observer.note(f"a pilot: {limit:,} of {counts.rows:,} rows, drawn at random")
    return step


def pilot_rows(pool: Step, limit: int, seed: int) -> np.ndarray:
    """(limit,) int64 rows of a pool, ascending: those whose ids have the smallest hashes, whatever the rows' order."""
    rows, hashes = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64)
    for part in pool.require().parts:
        table = pool.read(part.index, [ROW, ID])
        rows = np.concatenate([rows, table[ROW].to_numpy()])
        hashes = np.concatenate([hashes, seeded_hash(id_words(table[ID]), seed, PILOT)])
        kept = np.argsort(hashes, kind="stable")[:limit]
        rows, hashes = rows[kept], hashes[kept]
    return np.sort(rows)


def ingest(config: RunConfig, store: Store, runtime: Runtime, inputs: list[InputFile], name: str = "ingest") -> Step:
    """Freezes the rows of `config.data`: the step `ingest`, its rejects in `rejected.jsonl` beside the parts.

    Args:
        name: of the step, for rows that are not the pool to select from.

    Raises:
        DataError: no row could be used.
    """
    data = config.data
    settings = data.model_dump(exclude={"path", "limit"})
    files = [[file.path, file.size_bytes, modified(file)] for file in inputs]
    step = Step(store, name, {**settings, "files": files})
    record = step.record()
    if record is not None:
        runtime.observer.step_done(name, record.rows, 0.0, 0, reused=True)
        return step
    started = time.monotonic()
    runtime.observer.step_started(name, 0)
    options = ingest_options(data)
    with tempfile.NamedTemporaryFile() as rejects:

        def on_reject(reject: Reject) -> None:
            rejects.write((json.dumps(reject.to_dict(), ensure_ascii=True) + "\n").encode())

        source = Ingest(inputs, options, on_reject)
        done = step.committed()
        for index, table in enumerate(source):
            if index not in done:
                runtime.observer.used(name, step.commit(index, table).used())
            runtime.observer.advance(name, table.num_rows)
        rejects.flush()
        store.write_file(f"{step.folder}/rejected.jsonl", rejects.name)
    formats = {path: dataclasses.asdict(found) for path, found in source.formats.items()}
    facts = {**source.counts.to_dict(), "formats": formats, "empty_files": source.empty_files}
    record = step.finish(started=started, rows=source.counts.pool, extra=facts)
    runtime.observer.step_done(name, record.rows, record.seconds, 0, reused=False)
    return step


def ingest_options(data: DataConfig) -> IngestOptions:
    """How the input is read."""
    return IngestOptions(
        columns=data.columns,
        format="" if data.format == "auto" else data.format,
        source_column=data.source_column,
        max_row_bytes=data.max_row_bytes,
        part_rows=data.part_rows,
    )


def modified(file: InputFile) -> str:
    """What tells two versions of a file apart without reading it: modification time, or the store's own tag."""
    if "://" not in file.path:
        return str(os.stat(file.path).st_mtime_ns)
    with told(file.path):
        fs, path = filesystem(file.path)
        facts = fs.info(path)
    return str(next((facts[key] for key in ("ETag", "etag", "mtime", "LastModified", "created") if facts.get(key)), ""))
