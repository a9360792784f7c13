"""The ledger on disk: frames, segments and their index files, as bytes.

A writer's records form one byte stream that nobody else ever writes. The stream is cut into segments, and the name of
a segment says which bytes of the stream it holds, so a record is known by (writer, offset in the stream) wherever its
bytes lie. On a local disk a segment grows: `seg-<writer>-<begin>.log`. On an object store it is immutable:
`seg-<writer>-<begin>-<end>.log`, and one that was merged from small ones simply covers their range.

A frame is a fixed header and a JSON payload. The CRC-32 covers both. JSON has no control characters, and byte 4 of a
frame is one, so no payload can pretend to hold a frame. It knows nothing of who writes or reads.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from engine.store import Store

MAGIC, INDEX_MAGIC = b"ILG1", b"ILX1"
# a place in it is kept in the file
PURPOSES = ("answer", "judge", "canary", "rating", "check", "rules", "tags", "tree", "choice", "rewrite")
HEADER = struct.Struct("<4sBBH32s8sqIIII")
HEADER_BYTES = HEADER.size
NANO = 10**9  # money is whole nano-dollars in the file

# one indexed record: where its frame begins in the writer's stream, then the frame's header as it lies on disk
ROW = np.dtype(
    [
        ("offset", "<u8"), ("magic", "S4"), ("kind", "u1"), ("purpose", "u1"), ("round", "<u2"), ("key", "S32"),
        ("run", ">u8"), ("cost_nano_usd", "<i8"), ("tokens_in", "<u4"), ("tokens_out", "<u4"), ("length", "<u4"),
        ("crc", "<u4"),
    ]
)  # fmt: skip

_NAME = re.compile(r"seg-([0-9a-f]{12})-(\d{15})(?:-(\d{15}))?\.(log|idx)")
_OFFSET, _TAIL, _INDEX = struct.Struct("<Q"), struct.Struct("<II"), struct.Struct("<4sIQI")
_NO_CRC = bytes(4)
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

Span = tuple[int, int]  # bytes [begin, end) of a writer's stream


class Kind(IntEnum):
    """What a record says. SPOILED: perhaps paid, but nothing usable came back; charged at its estimate."""

    INTENT = 1
    DONE = 2
    SPOILED = 3


@dataclass(frozen=True, slots=True)
class Record:
    """One event of a paid call.

    Attributes:
        key: 64 hex digits, the request's hash.
        payload: a JSON object.
        purpose: one of PURPOSES.
        round: 0..65535.
        run: 16 hex digits that name the run.
        cost_usd: estimate (INTENT), price (DONE) or charge (SPOILED); kept to the nano-dollar.
        tokens_in, tokens_out: 0..2^32-1.
    """

    kind: Kind
    key: str
    payload: Mapping[str, Any]
    purpose: str
    round: int
    run: str
    cost_usd: float
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes [begin, end) of a writer's stream; `end` is None for a local file, which may still grow."""

    writer: str
    begin: int
    end: int | None = None
    indexed: bool = False  # its index file is there

    @property
    def name(self) -> str:
        end = "" if self.end is None else f"-{self.end:015d}"
        return f"seg-{self.writer}-{self.begin:015d}{end}.log"

    @property
    def index_name(self) -> str:
        return f"{self.name[:-4]}.idx"


@dataclass(frozen=True, slots=True)
class Scan:
    """What a stretch of a stream holds.

    Attributes:
        rows: (N,) ROW, the good frames in order.
        damaged: stretches that are no frames and have a good frame behind them.
        tail: the rest after the last good frame; begin = end when there is none.
    """

    rows: np.ndarray
    damaged: list[Span]
    tail: Span


def list_segments(store: Store) -> list[Segment]:
    """All segments, by writer and first byte, the longest first; foreign files are ignored."""
    found = [match for match in map(_NAME.fullmatch, store.list()) if match]
    indexed = {match[0][:-4] for match in found if match[4] == "idx"}
    segments = [
        Segment(match[1], int(match[2]), int(match[3]) if match[3] else None, match[0][:-4] in indexed)
        for match in found
        if match[4] == "log"
    ]
    return sorted(segments, key=lambda segment: (segment.writer, segment.begin, -(segment.end or 0)))


def pack(record: Record) -> bytes:
    """The frame of a record."""
    key, run = bytes.fromhex(record.key), bytes.fromhex(record.run)
    if len(key) != 32 or len(run) != 8:
        raise ValueError(f"a key has 64 hex digits and a run 16, got {record.key!r} and {record.run!r}")
    text = _to_json(record.payload)
    try:
        payload = text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: only its escape is UTF-8
        payload = json.dumps(record.payload).encode()
    purpose, cost = PURPOSES.index(record.purpose), round(record.cost_usd * NANO)
    header = HEADER.pack(
        MAGIC, record.kind, purpose, record.round, key, run, cost, record.tokens_in, record.tokens_out, len(payload), 0
    )
    crc = zlib.crc32(payload, zlib.crc32(header))
    return b"%b%b%b" % (header[:-4], crc.to_bytes(4, "little"), payload)


def unpack(data: bytes, at: int = 0) -> Record:
    """The record of a good frame that begins at `at`."""
    _, kind, purpose, round_, key, run, cost, tokens_in, tokens_out, length, _ = HEADER.unpack_from(data, at)
    payload = json.loads(data[at + HEADER_BYTES : at + HEADER_BYTES + length])
    return Record(
        Kind(kind), key.hex(), payload, PURPOSES[purpose], round_, run.hex(), cost / NANO, tokens_in, tokens_out
    )


def frame_end(view: memoryview, at: int) -> int:
    """Where the frame at `at` ends; 0 when there is no good frame."""
    body = at + HEADER_BYTES
    if body > len(view) or view[at : at + 4] != MAGIC or not 1 <= view[at + 4] <= 3:
        return 0
    length, crc = _TAIL.unpack_from(view, body - 8)
    end = body + length
    if end > len(view):
        return 0
    header_crc = zlib.crc32(_NO_CRC, zlib.crc32(view[at : body - 4]))
    return end if zlib.crc32(view[body:end], header_crc) == crc else 0


def scan(data: bytes, base: int) -> Scan:
    """Finds the frames in bytes that begin at offset `base` of a stream; every CRC is checked."""
    view, at, starts, damaged = memoryview(data), 0, [], []
    while at < len(data):
        end = frame_end(view, at)
        if end:
            starts.append(at)
            at = end
            continue
        found = data.find(MAGIC, at + 1)
        while found >= 0 and not frame_end(view, found):
            found = data.find(MAGIC, found + 1)
        if found < 0:
            break
        damaged.append((base + at, base + found))
        at = found
    rows = np.empty(len(starts), ROW)
    headers = b"".join([data[start : start + HEADER_BYTES] for start in starts])
    rows.view(np.uint8).reshape(-1, ROW.itemsize)[:, 8:] = np.frombuffer(headers, np.uint8).reshape(-1, HEADER_BYTES)
    rows["offset"] = np.array(starts, np.uint64) + np.uint64(base)
    return Scan(rows, damaged, (base + at, base + len(data)))


def row_bytes(offset: int, frame: bytes) -> bytes:
    """The ROW of a frame."""
    return _OFFSET.pack(offset) + frame[:HEADER_BYTES]


def pack_index(rows: bytes | bytearray, segment_bytes: int) -> bytes:
    """The index file of a segment: magic, number of rows, length of the segment, CRC-32 of all, then the rows."""
    count = len(rows) // ROW.itemsize
    crc = zlib.crc32(rows, zlib.crc32(_INDEX.pack(INDEX_MAGIC, count, segment_bytes, 0)))
    return _INDEX.pack(INDEX_MAGIC, count, segment_bytes, crc) + rows


def unpack_index(data: bytes, segment_bytes: int) -> np.ndarray | None:
    """(N,) ROW; None when the index is damaged or belongs to a segment of another length."""
    if len(data) < _INDEX.size:
        return None
    magic, count, covered, crc = _INDEX.unpack_from(data)
    rows = memoryview(data)[_INDEX.size :]
    if magic != INDEX_MAGIC or covered != segment_bytes or len(rows) != count * ROW.itemsize:
        return None
    if zlib.crc32(rows, zlib.crc32(_INDEX.pack(magic, count, covered, 0))) != crc:
        return None
    return np.frombuffer(rows, ROW)


def frame_spans(rows: np.ndarray) -> list[Span]:
    """The stretches that frames in stream order cover, neighbours joined."""
    if not len(rows):
        return []
    begin_N = rows["offset"].astype(np.int64)
    end_N = begin_N + HEADER_BYTES + rows["length"]
    cuts = np.flatnonzero(begin_N[1:] != end_N[:-1]) + 1
    firsts, lasts = [0, *cuts.tolist()], [*(cuts - 1).tolist(), len(rows) - 1]
    return [(int(begin_N[first]), int(end_N[last])) for first, last in zip(firsts, lasts, strict=True)]


def join_spans(spans: Iterable[Span]) -> list[Span]:
    """Sorted and disjoint, neighbours joined."""
    joined: list[Span] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def missing_spans(spans: Iterable[Span], begin: int, end: int) -> list[Span]:
    """What sorted, disjoint spans leave of [begin, end)."""
    left: list[Span] = []
    for known_begin, known_end in spans:
        if known_end <= begin:
            continue
        if known_begin >= end:
            break
        if known_begin > begin:
            left.append((begin, known_begin))
        begin = known_end
    return [*left, (begin, end)] if begin < end else left


def fresh_rows(rows: np.ndarray, known: Iterable[Span]) -> np.ndarray:
    """The rows, in stream order, whose frames lie in none of the sorted, disjoint spans."""
    if not len(rows):
        return rows
    offset_N = rows["offset"]
    first, end = int(offset_N[0]), int(offset_N[-1]) + 1
    missing = missing_spans(known, first, end)
    if missing == [(first, end)]:
        return rows
    fresh_N = np.zeros(len(rows), bool)
    for span_begin, span_end in missing:
        fresh_N |= (offset_N >= span_begin) & (offset_N < span_end)
    return rows[fresh_N]
