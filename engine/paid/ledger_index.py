"""Finds paid calls again: which keys are done and where their replies lie, and what everything cost.

The index lives in memory and follows the ledger: `refresh` reads only what was added since. A DONE record costs 48
bytes in sorted arrays; replies stay in storage; of the INTENTs only those are kept that nothing has closed yet. Several
writers may append meanwhile, and the small objects of an object store may be merged: a record is known by its place
in its writer's stream, so nothing counts twice. It writes nothing.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from engine.paid.ledger_frames import (
    HEADER_BYTES,
    NANO,
    PURPOSES,
    Kind,
    Segment,
    Span,
    frame_end,
    frame_spans,
    fresh_rows,
    join_spans,
    list_segments,
    missing_spans,
    scan,
    unpack,
    unpack_index,
)
from engine.store import Store

READ_BYTES = 64 << 20  # read at once, and kept of the replies on an object store
_PASSES = 5  # listings of one refresh, when merging removes what was just listed
_NO_END = 1 << 62
_PLACE = np.dtype([("writer", "<u4"), ("length", "<u4"), ("offset", "<u8")])


@dataclass(frozen=True, slots=True)
class Totals:
    """What a part of the ledger adds up to.

    Attributes:
        calls: DONE records; each was paid.
        spoiled: calls that were perhaps paid for nothing.
        in_doubt: calls that were perhaps sent and that nothing is known of; a call in flight is one too.
        repeated: DONE records whose key was done before.
        cost_nano_usd: DONE + SPOILED + estimates of those in doubt, exact.
        tokens_in, tokens_out: of DONE and SPOILED.
    """

    calls: int = 0
    spoiled: int = 0
    in_doubt: int = 0
    repeated: int = 0
    cost_nano_usd: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    @property
    def cost_usd(self) -> float:
        return self.cost_nano_usd / NANO

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.calls + other.calls,
            self.spoiled + other.spoiled,
            self.in_doubt + other.in_doubt,
            self.repeated + other.repeated,
            self.cost_nano_usd + other.cost_nano_usd,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
        )


class Group(NamedTuple):
    """What totals are kept for."""

    run: str
    round: int
    purpose: str


class _Sorted(NamedTuple):
    """Distinct DONE records in the order of their keys."""

    key_N: np.ndarray  # S32
    place_N: np.ndarray  # _PLACE


class _Job(NamedTuple):
    """Bytes to read: [begin, end) of the stream, or the segment's index file."""

    segment: Segment
    begin: int
    end: int
    of_index: bool = False
    last: bool = False  # to the end of a segment whose end is known


class LedgerIndex:
    """An index over one ledger, empty until the first `refresh`.

    One thread may call `done` while another refreshes.

    Args:
        store: the ledger's folder.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._segments: dict[str, list[Segment]] = {}  # by writer
        self._finished: set[str] = set()  # names of segments that hold nothing more to read
        self._spans: dict[str, list[Span]] = defaultdict(list)  # by writer: where the records lie that were read
        self._writers: list[str] = []
        self._sorted: tuple[_Sorted, ...] = ()  # each at least four times as long as the next
        self._groups: dict[Group, Totals] = {}
        self._open: dict[str, dict[bytes, tuple[Group, int]]] = {}  # by writer and key: INTENTs and nano-dollars
        self._cache: OrderedDict[str, bytes] = OrderedDict()  # objects that replies were read from

    def __len__(self) -> int:
        """Distinct keys that are done."""
        return sum(len(part.key_N) for part in self._sorted)

    def refresh(self) -> None:
        """Reads what was added since the last time."""
        with self._lock:
            for _ in range(_PASSES):
                self._list()
                if self._read_new():
                    break

    def done(self, key: str) -> Mapping[str, Any] | None:
        """The reply that a key was answered with, as far as the last `refresh` saw.

        Args:
            key: 64 hex digits.

        Returns:
            Payload of the first DONE record; None when there is none or its frame has been damaged since.
        """
        place = _find(self._sorted, bytes.fromhex(key))
        if place is None:
            return None
        writer, length, offset = place
        frame = self._frame(self._writers[writer], offset, HEADER_BYTES + length)
        if frame is None:  # the object it lay in was merged into another
            self._list()
            frame = self._frame(self._writers[writer], offset, HEADER_BYTES + length)
        return unpack(frame).payload if frame is not None else None

    def totals(self, run: str | None = None, round: int | None = None, live: Collection[str] = ()) -> Totals:
        """Calls, money and tokens.

        Args:
            run, round: only these; None: all.
            live: writers that still work; their open INTENTs are in flight, not in doubt, and cost nothing yet.
        """
        found = self.groups(live).items()
        return sum((t for g, t in found if run in (None, g.run) and round in (None, g.round)), Totals())

    def groups(self, live: Collection[str] = ()) -> dict[Group, Totals]:
        """Totals by run, round and purpose."""
        with self._lock:
            groups = dict(self._groups)
            for writer, calls in self._open.items():
                for group, cost in calls.values() if writer not in live else ():
                    groups[group] = groups.get(group, Totals()) + Totals(in_doubt=1, cost_nano_usd=cost)
        return groups

    # ---------------------------------------------------------------------------------------------- following

    def _list(self) -> None:
        segments: dict[str, list[Segment]] = {}
        for segment in list_segments(self.store):
            segments.setdefault(segment.writer, []).append(segment)
        self._segments = segments  # at once: `done` may run in another thread

    def _read_new(self) -> bool:
        """False when a segment vanished between listing and reading."""
        gone: set[str] = set()
        for jobs in self._batches():
            for job, data in zip(jobs, _read(self.store, jobs), strict=True):
                segment = job.segment
                if segment.writer in gone:
                    continue  # in the order of the stream, or a DONE would come before its INTENT
                if data is None:
                    gone.add(segment.writer)
                elif job.of_index:
                    self._take_index(segment, data)
                else:
                    self._take(segment.writer, scan(data, job.begin).rows)
                    if job.last and job.begin + len(data) >= job.end:
                        self._finished.add(segment.name)
        return not gone

    def _jobs(self) -> Iterator[_Job]:
        for writer, segments in self._segments.items():
            for at, segment in enumerate(segments):
                if segment.name in self._finished:
                    continue
                end = segment.end
                if end is None:  # a local file ends at the latest where the next one begins
                    end = segments[at + 1].begin if at + 1 < len(segments) else _NO_END
                missing = missing_spans(self._spans[writer], segment.begin, end)
                if not missing:
                    self._finished.add(segment.name)
                elif segment.indexed and missing == [(segment.begin, end)]:
                    yield _Job(segment, segment.begin, end, of_index=True)
                else:
                    yield from (_Job(segment, *span, last=span[1] == end) for span in missing)

    def _batches(self) -> Iterator[list[_Job]]:
        """Jobs that are read together: one file, or objects of READ_BYTES, whose latencies overlap."""
        jobs: list[_Job] = []
        size = 0
        for job in self._jobs():
            size += job.end - job.begin
            if jobs and (self.store.is_local or size > READ_BYTES):
                yield jobs
                jobs, size = [], job.end - job.begin
            jobs.append(job)
        if jobs:
            yield jobs

    def _take_index(self, segment: Segment, data: bytes) -> None:
        size = os.path.getsize(self.store.path(segment.name)) if segment.end is None else segment.end - segment.begin
        rows = unpack_index(data, size)
        if rows is None:  # damaged: the segment itself says the same
            rows = scan(self.store.read_bytes(segment.name), segment.begin).rows
        self._take(segment.writer, rows)
        self._finished.add(segment.name)

    def _take(self, writer: str, rows: np.ndarray) -> None:
        """Counts records that were not read before, in the order of their stream."""
        rows = fresh_rows(rows, self._spans[writer])  # a merged object and its small ones may both be there
        if not len(rows):
            return
        self._spans[writer] = join_spans([*self._spans[writer], *frame_spans(rows)])
        if writer not in self._writers:
            self._writers.append(writer)
        again = self._add_done(self._writers.index(writer), rows[rows["kind"] == Kind.DONE])
        for group, totals in _add_up(rows, again):
            self._groups[group] = self._groups.get(group, Totals()) + totals
        _follow(self._open.setdefault(writer, {}), rows)

    def _add_done(self, writer: int, rows: np.ndarray) -> np.ndarray:
        """Remembers where DONE records lie.

        Returns:
            (N,) bool: the key was done before.
        """
        key_N = np.ascontiguousarray(rows["key"])
        order_N = np.argsort(key_N, kind="stable")
        key_N = key_N[order_N]
        known_N = np.zeros(len(key_N), bool)
        known_N[1:] = key_N[1:] == key_N[:-1]
        for part in self._sorted:
            at_N = part.key_N.searchsorted(key_N)
            at_N[at_N == len(part.key_N)] = 0
            known_N |= part.key_N[at_N] == key_N
        again_N = np.empty(len(key_N), bool)
        again_N[order_N] = known_N
        place_N = np.empty(len(key_N), _PLACE)
        place_N["writer"], place_N["length"], place_N["offset"] = writer, rows["length"], rows["offset"]
        if not known_N.all():
            fresh_N = order_N[~known_N]
            self._sorted = _merged([*self._sorted, _Sorted(key_N[~known_N], place_N[fresh_N])])
        return again_N

    # ---------------------------------------------------------------------------------------------- reading replies

    def _frame(self, writer: str, offset: int, length: int) -> bytes | None:
        """A good frame; None where its segment is gone or damaged."""
        segments = self._segments.get(writer, [])
        for segment in reversed(segments[: bisect_right(segments, offset, key=lambda segment: segment.begin)]):
            if segment.end is None or offset < segment.end:
                data = self._part(segment, offset - segment.begin, length)
                if data is not None and frame_end(memoryview(data), 0) == length:
                    return data
                if segment.end is None:
                    break
        return None

    def _part(self, segment: Segment, start: int, length: int) -> bytes | None:
        try:
            if segment.end is None:
                with open(self.store.path(segment.name), "rb", buffering=0) as file:
                    return os.pread(file.fileno(), length, start)
            data = self._cache.get(segment.name)
            if data is None:  # replies that were written together are asked for together
                data = self._cache[segment.name] = self.store.read_bytes(segment.name)
                while len(self._cache) > 1 and sum(map(len, self._cache.values())) > READ_BYTES:
                    self._cache.popitem(last=False)
        except FileNotFoundError:
            return None
        self._cache.move_to_end(segment.name)
        return data[start : start + length]


def _read(store: Store, jobs: list[_Job]) -> list[bytes | None]:
    """The bytes of jobs, None where a file has vanished; a local file that may grow is read to its end."""
    if not store.is_local:
        paths = [store.path(job.segment.index_name if job.of_index else job.segment.name) for job in jobs]
        starts = [0 if job.of_index else job.begin - job.segment.begin for job in jobs]
        ends = [None if job.of_index else job.end - job.segment.begin for job in jobs]
        return store.remote.read_ranges(paths, starts, ends)
    found: list[bytes | None] = []
    for job in jobs:
        try:
            with open(store.path(job.segment.index_name if job.of_index else job.segment.name), "rb") as file:
                file.seek(0 if job.of_index else job.begin - job.segment.begin)
                found.append(file.read(-1 if job.of_index or job.end == _NO_END else job.end - job.begin))
        except FileNotFoundError:
            found.append(None)
    return found


def _find(parts: tuple[_Sorted, ...], key: bytes) -> tuple[int, int, int] | None:
    """Number of the writer, length of the payload and offset of a DONE record."""
    wanted = np.array(key, "S32")
    for part in parts:
        at = int(part.key_N.searchsorted(wanted))
        if at < len(part.key_N) and part.key_N[at] == wanted:
            return part.place_N[at].item()
    return None


def _merged(parts: list[_Sorted]) -> tuple[_Sorted, ...]:
    """Joins the last parts until each is four times as long as the next: few parts, and few copies of a record."""
    while len(parts) > 1 and len(parts[-2].key_N) < 4 * len(parts[-1].key_N):
        last, before = parts.pop(), parts.pop()
        key_N = np.concatenate([before.key_N, last.key_N])
        order_N = np.argsort(key_N, kind="stable")  # two sorted halves: one pass of merging
        parts.append(_Sorted(key_N[order_N], np.concatenate([before.place_N, last.place_N])[order_N]))
    return tuple(parts)


def _group(row: Any) -> Group:
    return Group(f"{int(row['run']):016x}", int(row["round"]), PURPOSES[row["purpose"]])


def _add_up(rows: np.ndarray, again: np.ndarray) -> Iterator[tuple[Group, Totals]]:
    """Totals by group of the records that cost something; `again` marks the DONE ones that are repeated."""
    rows = rows[rows["kind"] != Kind.INTENT]
    done_N = rows["kind"] == Kind.DONE
    again_N = np.zeros(len(rows), bool)
    again_N[done_N] = again
    run_N = np.unique(rows["run"], return_inverse=True)[1]
    code_N = np.asarray((run_N << 24) | (rows["round"].astype(np.int64) << 8) | rows["purpose"], np.int64)
    _, first_G, group_N = np.unique(code_N, return_index=True, return_inverse=True)
    columns = [done_N, ~done_N, again_N, rows["cost_nano_usd"], rows["tokens_in"], rows["tokens_out"]]
    sums_G = np.zeros((len(first_G), len(columns)), np.int64)
    np.add.at(sums_G, group_N, np.stack([column.astype(np.int64) for column in columns], axis=1))
    for first, (done, spoiled, repeated, nano, tokens_in, tokens_out) in zip(first_G, sums_G.tolist(), strict=True):
        yield _group(rows[first]), Totals(done, spoiled, 0, repeated, nano, tokens_in, tokens_out)


def _follow(calls: dict[bytes, tuple[Group, int]], rows: np.ndarray) -> None:
    """Updates the open INTENTs of one writer: a call is open when the last that is known of its key is an INTENT."""
    key_K, last_K = np.unique(np.asarray(rows["key"][::-1], "S32"), return_index=True)
    last = rows[::-1][last_K]
    opened_K = last["kind"] == Kind.INTENT
    if calls:
        for key in calls.keys() & set(key_K[~opened_K].tolist()):
            del calls[key]
    for row in last[opened_K]:
        calls[bytes(row["key"])] = _group(row), int(row["cost_nano_usd"])
