"""A pool with the rows that a model made of it: what LIFT calls expansion.

The replies become rows of a file in the chat format, one for each part of the pool, and are read as any input is: the
same checks, ids and rejects. The step `expanded` has the pool's rows first and then the new ones, and looks like
`ingest` to everything after it. It knows nothing of who rewrites, or of what is selected.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from engine.artifacts import Step
from engine.data.ingest import Counts, Ingest, IngestOptions
from engine.data.inputs import resolve_inputs
from engine.data.rows import Reject
from engine.data.seen import SeenIds
from engine.paid.passes import PaidPass
from engine.paid.rewriting import NEW_INSTRUCTION, NEW_RESPONSE
from engine.recipes.base import Context
from engine.schema import FILE, ID, ROW, SOURCE, SYSTEM

FOLDER = "rewritten/"
COUNTED = ("rows_read", "pool", "rejected", "duplicates")


def expanded(context: Context, rewriting: PaidPass) -> Context:
    """The context with a pool that has the new rows too; the budget stays.

    Raises:
        TooManyFailures: E600, more rows than `max_failed` could not be rewritten.
        DataError: E406, E407, no reply became a row.
    """
    made = rewriting.run(context)
    pool = context.pool
    files = {"files": pool.settings["files"]}  # as of every pool: what it was read from
    target = context.step("expanded", files, [pool.fingerprint, made.fingerprint])
    if not context.reused(target):
        started, observer = time.monotonic(), context.runtime.observer
        observer.step_started(target.name, None)
        rows, extra = join(pool, examples(pool, made, target), target, context.config.data.max_row_bytes)
        record = target.finish(started=started, rows=rows, extra=extra)
        observer.step_done(target.name, record.rows, record.seconds, 0, reused=False)
    return dataclasses.replace(context, pool=target)


def examples(pool: Step, made: Step, target: Step) -> list[str]:
    """Writes the new rows of each part of the pool into a file of the step's folder; returns the files."""
    paths = []
    for part in pool.require().parts:
        old = pool.read(part.index, [ID, SOURCE, SYSTEM]).to_pylist()
        new = made.read(part.index, [NEW_INSTRUCTION, NEW_RESPONSE]).to_pylist()
        lines = [json.dumps(example(*pair)) + "\n" for pair in zip(old, new, strict=True) if pair[1][NEW_RESPONSE]]
        name = f"{target.folder}/made-{part.index:05d}.jsonl"
        target.store.write_bytes(name, "".join(lines).encode())
        paths.append(target.store.path(name))
    return paths


def example(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A row in the chat format: the system message of the row that it was made of, and the reply."""
    system = [{"role": "system", "content": old[SYSTEM]}] if old[SYSTEM] else []
    turns = [("user", new[NEW_INSTRUCTION]), ("assistant", new[NEW_RESPONSE])]
    messages = [*system, *({"role": role, "content": text} for role, text in turns)]
    return {"messages": messages, "source": old[SOURCE], "rewritten_from": old[ID]}


def join(pool: Step, paths: list[str], target: Step, max_row_bytes: int) -> tuple[int, dict[str, Any]]:
    """Commits the pool's parts and those of the new rows, without what the pool has already.

    Returns:
        Number of rows, and what a record of `ingest` has.
    """
    record, done = pool.require(), target.committed()
    seen = SeenIds()
    for part in record.parts:
        table = pool.read(part.index)
        for key in table[ID].to_pylist():
            seen.add(key)
        if part.index not in done:
            target.commit(part.index, table)
    rejected = [target.store.read_bytes(f"{pool.folder}/rejected.jsonl")]

    def on_reject(reject: Reject) -> None:
        rejected.append((json.dumps(reject.to_dict() | {"file": named(reject.file)}) + "\n").encode())

    part_rows = max(part.rows for part in record.parts)
    options = IngestOptions(format="messages", max_row_bytes=max_row_bytes, part_rows=part_rows)
    source = Ingest(resolve_inputs(paths), options, on_reject, seen)
    rows, index = record.rows, len(record.parts)
    for table in source:
        names = pa.array([named(path) for path in table[FILE].to_pylist()], table.schema.field(FILE).type)
        table = table.set_column(table.schema.get_field_index(FILE), table.schema.field(FILE), names)
        table = table.set_column(0, table.schema.field(ROW), pa.array(np.arange(rows, rows + len(table))))
        if index not in done:
            target.commit(index, table)
        rows, index = rows + len(table), index + 1
    target.store.write_bytes(f"{target.folder}/rejected.jsonl", b"".join(rejected))
    formats = {named(path): dataclasses.asdict(found) for path, found in source.formats.items()}
    return rows, facts(record.extra, source.counts, formats)


def named(path: str) -> str:
    """How outputs call a file of new rows: the same in every run folder."""
    return FOLDER + path.rsplit("/", 1)[-1]


def made_of(file: str, record: str) -> str | None:
    """The id of the row that a row was made of; None for one of the input.

    Args:
        file, record: of the row.
    """
    return json.loads(record)["rewritten_from"] if file.startswith(FOLDER) else None


def facts(before: Mapping[str, Any], counts: Counts, formats: dict[str, Any]) -> dict[str, Any]:
    """The counts of both; a new row that the pool had already is a duplicate."""
    new = counts.to_dict()
    total = {name: before[name] + new[name] for name in COUNTED} | {"added": counts.pool}
    reasons = dict(before["rejected_by_reason"])
    for reason, count in counts.reasons.items():
        reasons[reason] = reasons.get(reason, 0) + count
    return {**before, **total, "rejected_by_reason": reasons, "formats": {**before["formats"], **formats}}


def twice_as_many(one: PaidPass) -> PaidPass:
    """A pass over the expanded pool, for the plan: it asks about at most two rows for each row of the pool."""

    def asked(table: pa.Table, rows: int, budget: int) -> tuple[pa.Table, int]:
        return (table, 2 * rows) if one.asked is None else one.asked(table, 2 * rows, budget)

    return dataclasses.replace(one, asked=asked)
