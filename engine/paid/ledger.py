"""The ledger of paid calls: what was asked, what came back, what it cost. Nothing that was paid is ever lost.

`LedgerWriter` appends records and returns when they are durable; `LedgerIndex` finds them again. One process has its
own writer, and a restarted one a new writer, so there are no locks and nothing is ever rewritten. INTENT goes in
before a call is sent and DONE before its reply is used: after a crash, what has an INTENT and no DONE is in doubt. It
knows nothing of prompts, prices or networks; the bytes are in `ledger_frames`, the reading in `ledger_index`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from contextlib import suppress

from engine.errors import EnvironmentProblem
from engine.paid.ledger_frames import PURPOSES, Kind, Record, Segment, pack, pack_index, row_bytes
from engine.paid.ledger_index import LedgerIndex, Totals
from engine.store import Store, storage_problem

__all__ = ["PURPOSES", "Kind", "LedgerIndex", "LedgerWriter", "Record", "Totals"]

ROLL_BYTES = 64 << 20  # a local segment is sealed at this size
MERGE_BYTES = 8 << 20  # an object store's small objects are merged at this size


class LedgerWriter:
    """Appends to the ledger. Not thread-safe: one thread writes groups of records.

    Args:
        store: the ledger's folder; no call is begun when its fence has fallen.
        roll_bytes: a segment is sealed when it is longer; on an object store at most MERGE_BYTES.

    Attributes:
        writer: 12 hex digits that name this writer.
    """

    def __init__(self, store: Store, roll_bytes: int = ROLL_BYTES) -> None:
        self.writer = uuid.uuid4().hex[:12]
        self._store = store
        self._stream = (_Files if store.is_local else _Objects)(Store(store.root), self.writer, roll_bytes)

    def write(self, records: Sequence[Record]) -> None:
        """Returns when the records are durable: one append and one fsync, or one new object.

        Raises:
            EnvironmentProblem: E310, E312..E314, the storage refused. Earlier records are safe, these may or may not be
                there, and a later call may succeed. E341, a call is to be made and another driver has taken over.
        """
        try:
            if any(record.kind == Kind.INTENT for record in records):
                self._store.check_fence()
        except EnvironmentProblem:
            self._append([record for record in records if record.kind != Kind.INTENT])  # they are paid for
            raise
        self._append(records)

    def _append(self, records: Sequence[Record]) -> None:
        if records:
            self._stream.append([pack(record) for record in records])

    def close(self) -> None:
        """Seals the segment: writes its index file."""
        self._stream.seal()


class _Files:
    """A stream on a local disk: a segment is a file that grows until it is sealed."""

    def __init__(self, store: Store, writer: str, roll_bytes: int) -> None:
        self.store, self.writer, self.roll_bytes = store, writer, roll_bytes
        self.position = 0  # bytes of the stream so far
        self.segment: Segment | None = None
        self.descriptor = -1
        self.rows = bytearray()

    def append(self, frames: list[bytes]) -> None:
        data = b"".join(frames)
        segment = self.segment or Segment(self.writer, self.position)
        begin, self.position = self.position, self.position + len(data)
        try:
            if self.segment is None:
                self._open(segment)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]
            os.fsync(self.descriptor)
        except (OSError, EnvironmentProblem) as error:
            self._leave()  # it may end in half a frame, and a failed fsync cannot be tried again: the next is a new one
            if isinstance(error, EnvironmentProblem):
                raise
            raise storage_problem(error, self.store.path(segment.name)) from error
        for frame in frames:
            self.rows += row_bytes(begin, frame)
            begin += len(frame)
        if self.position - segment.begin >= self.roll_bytes:
            self.seal()

    def _open(self, segment: Segment) -> None:
        if not self.store.create(segment.name, b""):
            raise FileExistsError(f"another writer is called {self.writer}")
        self.segment = segment
        self.descriptor = os.open(self.store.path(segment.name), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.fchmod(self.descriptor, 0o600)  # replies may be private

    def seal(self) -> None:
        if self.segment is None:
            return
        index = pack_index(self.rows, self.position - self.segment.begin)
        with suppress(OSError, EnvironmentProblem):  # an index saves time; readers do without
            self.store.write_bytes(self.segment.index_name, index)
        self._leave()

    def _leave(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.segment, self.descriptor = None, -1
        self.rows.clear()


class _Objects:
    """A stream on an object store: a segment is one write, until many are merged."""

    def __init__(self, store: Store, writer: str, roll_bytes: int) -> None:
        self.store, self.writer, self.roll_bytes = store, writer, min(roll_bytes, MERGE_BYTES)
        self.position = 0
        self.recent: list[tuple[Segment, bytes]] = []  # written one by one, not merged yet
        self.rows = bytearray()

    def append(self, frames: list[bytes]) -> None:
        data = b"".join(frames)
        begin, self.position = self.position, self.position + len(data)
        segment = Segment(self.writer, begin, self.position)
        try:
            # an object that is there already is our own, from a try whose answer was lost
            if not self.store.create(segment.name, data) and self.store.read_bytes(segment.name) != data:
                raise FileExistsError(f"another writer is called {self.writer}")
        except (OSError, EnvironmentProblem) as error:
            self._forget()  # what is merged must have no gap
            if isinstance(error, EnvironmentProblem):
                raise
            raise storage_problem(error, self.store.path(segment.name)) from error
        self.recent.append((segment, data))
        for frame in frames:
            self.rows += row_bytes(begin, frame)
            begin += len(frame)
        if self.position - self.recent[0][0].begin >= self.roll_bytes:
            self.seal()

    def seal(self) -> None:
        """Merges the recent objects into one. A crash at any point leaves every record in one or two of them."""
        if not self.recent:
            return
        merged = Segment(self.writer, self.recent[0][0].begin, self.position)
        small = [segment for segment, _ in self.recent if segment != merged]
        with suppress(OSError, EnvironmentProblem):  # merging saves time; readers do with the small ones
            if small:
                self.store.create(merged.name, b"".join([data for _, data in self.recent]))
            self.store.create(merged.index_name, pack_index(self.rows, self.position - merged.begin))
            for segment in small:
                self.store.remove(segment.name)
        self._forget()

    def _forget(self) -> None:
        self.recent.clear()
        self.rows.clear()
