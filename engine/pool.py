"""Freezes input files into a pool: the step that everything else reads rows from.

Formats and checks are in engine/data; this file writes what they yield, and knows nothing of methods.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time

from engine.artifacts import Step
from engine.config import DataConfig, RunConfig
from engine.data.ingest import Ingest, IngestOptions
from engine.data.inputs import InputFile
from engine.data.rows import Reject
from engine.remote import filesystem, told
from engine.runtime import Runtime
from engine.store import Store


def ingest(config: RunConfig, store: Store, runtime: Runtime, inputs: list[InputFile], name: str = "ingest") -> Step:
    """Freezes the rows of `config.data`: the step `ingest`, its rejects in `rejected.jsonl` beside the parts.

    Args:
        name: of the step, for rows that are not the pool to select from.

    Raises:
        DataError: no row could be used.
    """
    data = config.data
    settings = data.model_dump(exclude={"path"})
    files = [[file.path, file.size_bytes, modified(file)] for file in inputs]
    step = Step(store, name, {**settings, "files": files})
    record = step.record()
    if record is not None:
        runtime.observer.step_done(name, record.rows, 0.0, 0, reused=True)
        return step
    started = time.monotonic()
    runtime.observer.step_started(name, 0)
    options = ingest_options(data)
    with tempfile.TemporaryFile() as rejects:

        def on_reject(reject: Reject) -> None:
            rejects.write((json.dumps(reject.to_dict(), ensure_ascii=True) + "\n").encode())

        source = Ingest(inputs, options, on_reject)
        done = step.committed()
        for index, table in enumerate(source):
            if index not in done:
                step.commit(index, table)
            runtime.observer.advance(name, table.num_rows)
        rejects.seek(0)
        store.write_bytes(f"{step.folder}/rejected.jsonl", rejects.read())
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
