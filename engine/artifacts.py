"""Steps on disk: immutable parts, commit markers, and a record written last.

A step is a folder whose name ends in a fingerprint of everything that determines its bytes. A part is committed by
creating its marker; readers follow markers only, so a late or repeated writer is harmless and `kill -9` at any moment
costs at most the parts in hand. `step.json` is written last: its existence means the step is complete.
This file knows nothing of what the parts hold or of who computes them.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import StepError
from engine.remote import FINISHED, READS
from engine.schema import ROW, canonical_json
from engine.store import Store


@dataclass(frozen=True)
class Part:
    """One committed part: its file, its size, and what making it cost; `tokens` are those that models saw."""

    index: int
    file: str
    rows: int
    failed: int
    seconds: float
    sha256: str
    read_requests: int = 0  # remote reads of the process that made it, since it made the one before
    read_bytes: int = 0
    size_bytes: int = 0  # 0, as tokens, in parts that were made before these were counted
    tokens: int = 0

    @staticmethod
    def of(values: Mapping[str, Any]) -> Part:
        """From its JSON; a part may have been made before a fact was counted, or when it had another name."""
        return Part(**{name: values[name] for name in Part.__dataclass_fields__ if name in values})

    def used(self) -> dict[str, float]:
        """What observers add up."""
        return {
            "rows": self.rows,
            "failed": self.failed,
            "busy_s": self.seconds,
            "bytes": self.size_bytes,
            "tokens": self.tokens,
        }


@dataclass(frozen=True)
class StepRecord:
    """What step.json holds.

    `seconds` is wall time from the first part to the record; `busy_s` sums over the parts. `read_requests` and
    `read_bytes` are the remote reads that made it, of the workers and of the process that wrote the record.
    """

    name: str
    fingerprint: str
    settings: Mapping[str, Any]
    inputs: Sequence[str]
    rows: int
    failed: int
    seconds: float
    busy_s: float
    parts: Sequence[Part]
    extra: Mapping[str, Any]
    read_requests: int = 0
    read_bytes: int = 0

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode()

    @staticmethod
    def from_json(data: bytes) -> StepRecord:
        fields = json.loads(data)
        fields["parts"] = [Part.of(part) for part in fields["parts"]]
        return StepRecord(**fields)


def fingerprint(name: str, version: int, settings: Mapping[str, Any], inputs: Sequence[str]) -> str:
    """16 hex digits of the SHA-256 of what determines a step's bytes."""
    text = canonical_json([name, version, settings, list(inputs)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def rows_digest(rows_I: np.ndarray) -> str:
    """Hex SHA-256 of row numbers in their order: what a choice of rows is known by, whatever led to it."""
    return hashlib.sha256(rows_I.astype("<i8").tobytes()).hexdigest()


class Step:
    """One transformation of a run: `steps/<name>-<8 hex>`, or a path such as `rounds/000/answers-<8 hex>`.

    Args:
        store: the run folder.
        name: plain name, or a path with slashes for steps that live elsewhere in the run folder.
        settings: JSON-able settings that determine the bytes; never worker counts or batch sizes.
        inputs: fingerprints of the steps or files it reads.
        version: raised by hand when the code changes the bytes.
    """

    def __init__(
        self, store: Store, name: str, settings: Mapping[str, Any], inputs: Sequence[str] = (), version: int = 1
    ) -> None:
        self.store, self.name, self.settings, self.inputs = store, name, dict(settings), tuple(inputs)
        self.fingerprint = fingerprint(name, version, self.settings, self.inputs)
        self.folder = (name if "/" in name else f"steps/{name}") + f"-{self.fingerprint[:8]}"
        self._record: StepRecord | None = None
        self._parts: dict[int, Part] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the cached record: a step travels to every worker, and each can read it."""
        return {**self.__dict__, "_record": None, "_parts": {}}

    def __repr__(self) -> str:
        return f"Step({self.folder})"

    @staticmethod
    def at(store: Store, folder: str) -> Step:
        """A complete step of an earlier run, found by its folder."""
        record = StepRecord.from_json(store.read_bytes(f"{folder}/step.json"))
        step = Step(store, record.name, record.settings, record.inputs)
        step.folder, step.fingerprint = folder, record.fingerprint
        return step

    def record(self) -> StepRecord | None:
        """The step's record, or None while it is not complete."""
        if self._record is None:
            try:
                self._record = StepRecord.from_json(self.store.read_bytes(f"{self.folder}/step.json"))
            except FileNotFoundError:
                return None
            self._parts = {part.index: part for part in self._record.parts}
        return self._record

    def require(self) -> StepRecord:
        """The step's record.

        Raises:
            StepError: the step is not complete.
        """
        record = self.record()
        if record is None:
            raise StepError(f"step {self.folder} is not complete", fix="run the same command again")
        return record

    def committed(self) -> dict[int, Part]:
        """Parts committed so far, by index."""
        if self.record() is not None:
            return dict(self._parts)
        names = [f"{self.folder}/{name}" for name in self.store.list(self.folder) if name.endswith(".commit")]
        parts = [Part.of(json.loads(data)) for data in self.store.read_many(names)]
        return {part.index: part for part in sorted(parts, key=lambda part: part.index)}

    def part(self, index: int) -> Part:
        if self.record() is not None:
            return self._parts[index]
        return Part.of(json.loads(self.store.read_bytes(f"{self.folder}/part-{index:05d}.commit")))

    def read(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One part's rows, in their order."""
        source = self.store.open_read(f"{self.folder}/{self.part(index).file}", whole=columns is None)
        return pq.read_table(source, columns=list(columns) if columns else None)

    def read_all(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All parts in order, in memory: for small steps such as a round's batch."""
        return pa.concat_tables([self.read(part.index, columns) for part in self.require().parts])

    def commit(self, index: int, table: pa.Table, *, seconds: float = 0.0, failed: int = 0, tokens: int = 0) -> Part:
        """Writes one part under an attempt's name and commits it, unless somebody else has.

        Returns:
            The committed part, which is an earlier writer's when it came first.
        """
        data = parquet_bytes(table)
        file = f"part-{index:05d}-{uuid.uuid4().hex[:8]}.parquet"
        self.store.write_bytes(f"{self.folder}/{file}", data)
        digest, reads = hashlib.sha256(data).hexdigest(), READS.take()
        part = Part(
            index, file, table.num_rows, failed, round(seconds, 4), digest,
            size_bytes=len(data), tokens=tokens, read_requests=reads.requests, read_bytes=reads.bytes,
        )  # fmt: skip
        if not self.store.create(f"{self.folder}/part-{index:05d}.commit", json.dumps(asdict(part)).encode()):
            return self.part(index)
        return part

    def finish(self, *, started: float, rows: int, extra: Mapping[str, Any] | None = None) -> StepRecord:
        """Writes the record. All parts must be committed, numbered 0..n-1.

        Args:
            started: `time.monotonic()` when the step began in this process.
            rows: rows the parts must hold together.
            extra: JSON-able facts worth keeping beside the record.
        """
        parts = list(self.committed().values())
        if [part.index for part in parts] != list(range(len(parts))):
            raise StepError(f"step {self.folder} has gaps: parts {[part.index for part in parts]}")
        if sum(part.rows for part in parts) != rows:
            raise StepError(f"step {self.folder} holds {sum(part.rows for part in parts)} rows, not {rows}")
        reads = READS.take()
        record = StepRecord(
            name=self.name,
            fingerprint=self.fingerprint,
            settings=self.settings,
            inputs=self.inputs,
            rows=rows,
            failed=sum(part.failed for part in parts),
            seconds=round(time.monotonic() - started, 3),
            busy_s=round(sum(part.seconds for part in parts), 3),
            parts=parts,
            extra=dict(extra or {}),
            read_requests=reads.requests + sum(part.read_requests for part in parts),
            read_bytes=reads.bytes + sum(part.read_bytes for part in parts),
        )
        FINISHED.add(record.read_bytes, record.read_requests)
        self.store.create(f"{self.folder}/step.json", record.to_json())
        return self.require()


class Joined:
    """Two complete sources with the same rows in the same parts, read as one."""

    def __init__(self, left: Source, right: Source) -> None:
        self.left, self.right = left, right
        self.fingerprint = fingerprint("joined", 1, {}, [left.fingerprint, right.fingerprint])

    def require(self) -> StepRecord:
        return self.left.require()

    def part(self, index: int) -> Part:
        return self.left.part(index)

    def read(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Columns of both; where both have a column of a name, the left one's."""
        left, right = self.left.read(index), self.right.read(index)
        for name in right.column_names:
            if name not in left.column_names:
                left = left.append_column(right.schema.field(name), right[name])
        return left.select(list(columns)) if columns else left


class Source(Protocol):
    """What a pass reads from: a step, or two joined."""

    fingerprint: str

    def require(self) -> StepRecord: ...
    def part(self, index: int) -> Part: ...
    def read(self, index: int, columns: Sequence[str] | None = None) -> pa.Table: ...


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as a Parquet file: same table, same bytes for one version of pyarrow."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=4096)
    return buffer.getvalue()


def write_table(
    step: Step,
    table: pa.Table,
    part_rows: int,
    extra: Mapping[str, Any] | None = None,
    started: float | None = None,
) -> StepRecord:
    """Makes a small step from a table that is already in memory; reuses it when it is complete.

    `part_rows` must be among the settings of the step when a caller may change it: parts resume by index. `started` is
    `time.monotonic()` from before the table was computed, when that shall count as the step's time.
    """
    record = step.record()
    if record is not None:
        return record
    started = time.monotonic() if started is None else started
    done = step.committed()
    for index, offset in enumerate(range(0, max(table.num_rows, 1), part_rows)):
        if index not in done:
            step.commit(index, table.slice(offset, part_rows))
    return step.finish(started=started, rows=table.num_rows, extra=extra)


def take_rows(
    step: Step,
    rows_I: np.ndarray,
    columns: Sequence[str] | None = None,
    prepare: Callable[[pa.Table], pa.Table] = lambda table: table,
) -> pa.Table:
    """Rows of a step whose parts hold consecutive row numbers from 0.

    Args:
        step: a complete step.
        rows_I: (I,) int64 row numbers, in any order, without repeats.
        columns: columns wanted; `row` is always among them.
        prepare: applied to the rows of each part before the next one is read; keeps their number and order.

    Returns:
        The I rows in the order asked for. Only the parts that hold them are read, one at a time.
    """
    wanted = None if columns is None else [ROW, *[name for name in columns if name != ROW]]
    order = np.argsort(rows_I, kind="stable")
    pieces = [prepare(table) for table in tables_of_rows(step, rows_I[order], wanted)]
    if not pieces:
        return step.read(0, wanted).slice(0, 0)
    back = np.empty(len(rows_I), dtype=np.int64)
    back[order] = np.arange(len(rows_I))
    return pa.concat_tables(pieces).combine_chunks().take(pa.array(back))


def tables_of_rows(step: Step, rows_I: np.ndarray, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """As `take_rows` for ascending rows, one table for each part that holds some of them."""
    starts = np.cumsum([0, *[part.rows for part in step.require().parts]])
    for index in np.unique(np.searchsorted(starts, rows_I, side="right") - 1):
        low, high = np.searchsorted(rows_I, [starts[index], starts[index + 1]])
        yield step.read(int(index), columns).take(pa.array(rows_I[low:high] - starts[index]))
