"""What people ask of a ledger: what it holds and cost, its replies as JSON lines, and whether its bytes are sound.

Reads whole segments, one at a time, and writes nothing into the ledger. It knows the frames, not what was asked.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TextIO

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from engine.errors import ConfigError
from engine.paid.ledger_frames import (
    NANO,
    PURPOSES,
    Kind,
    Record,
    Scan,
    Segment,
    Span,
    frame_spans,
    fresh_rows,
    join_spans,
    list_segments,
    scan,
    unpack,
    unpack_index,
)
from engine.paid.ledger_index import LedgerIndex, Totals
from engine.screen import clean, line, table_of
from engine.store import Store

_EXPORTED = ("key", "purpose", "round", "run", "cost_usd", "tokens_in", "tokens_out")
_FIGURES = ("calls", "cost_usd", "tokens_in", "tokens_out", "spoiled", "in_doubt", "repeated")


class _Read(NamedTuple):
    """A segment in memory; `fresh` are the rows that no earlier segment held (a merge may leave both)."""

    segment: Segment
    data: bytes
    found: Scan
    fresh: np.ndarray

    def records(self) -> Iterator[Record]:
        for offset in self.fresh["offset"].tolist():
            yield unpack(self.data, offset - self.segment.begin)


class Place(NamedTuple):
    """Bytes of a segment that are no record."""

    segment: str
    offset: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify` found.

    Attributes:
        segments: files.
        frames: good records, each counted once.
        damaged: stretches with good frames behind them: something changed the file after it was written.
        torn: ends of segments that hold no whole frame: a crash, or a write that is not finished.
        bad_indexes: index files that do not fit their segment; readers do without them.
        repeated: DONE records whose key was done before.
        in_doubt: calls without DONE or SPOILED; calls in flight among them.
    """

    segments: int
    frames: int
    damaged: tuple[Place, ...]
    torn: tuple[Place, ...]
    bad_indexes: tuple[str, ...]
    repeated: int
    in_doubt: int

    @property
    def problems(self) -> bool:
        """A record may be lost: damaged in the middle."""
        return bool(self.damaged)


def show(store: Store) -> dict[str, Any]:
    """What a ledger holds.

    Returns:
        `segments`, `bytes`, `records`, `total` and `by_purpose`, `by_model`, `by_run`: name -> figures. Figures are
        `calls`, `spoiled`, `in_doubt`, `repeated`, `cost_usd`, `tokens_in`, `tokens_out`.
    """
    index = LedgerIndex(store)
    index.refresh()
    groups = index.groups()
    models, segments, size, records = _Models(), 0, 0, 0
    for read in _segments(store):
        segments, size, records = segments + 1, size + len(read.data), records + len(read.fresh)
        models.add(read)
    by_purpose: dict[str, Totals] = defaultdict(Totals)
    by_run: dict[str, Totals] = defaultdict(Totals)
    for group, totals in groups.items():
        by_purpose[group.purpose] += totals
        by_run[group.run] += totals
    return {
        "segments": segments,
        "bytes": size,
        "records": records,
        "total": _figures(sum(groups.values(), Totals())),
        "by_purpose": _table(by_purpose),
        "by_model": _table(models.totals()),
        "by_run": _table(by_run),
    }


def export(store: Store, stream: TextIO, purpose: str | None = None) -> int:
    """Writes every DONE record as a line of JSON, by segment and offset.

    Args:
        stream: UTF-8 text.
        purpose: only these; None: all.

    Returns:
        Number of lines.

    Raises:
        ConfigError: no such purpose.
    """
    if purpose is not None and purpose not in PURPOSES:
        raise ConfigError(f"no purpose is called {purpose!r}", fix=f"choose one of {', '.join(PURPOSES)}")
    lines = 0
    for read in _segments(store):
        for record in read.records():
            if record.kind != Kind.DONE or purpose not in (None, record.purpose):
                continue
            facts = {name: getattr(record, name) for name in _EXPORTED}
            stream.write(json.dumps({**facts, **record.payload, **facts}) + "\n")
            lines += 1
    return lines


def verify(store: Store) -> Verification:
    """Reads and checks every byte."""
    damaged, torn, bad_indexes, segments, frames = [], [], [], 0, 0
    for read in _segments(store):
        segment, found = read.segment, read.found
        segments, frames = segments + 1, frames + len(read.fresh)
        damaged += [_place(segment, span) for span in found.damaged]
        tail_end = found.tail[1] if segment.end is None else segment.end
        if tail_end > found.tail[0]:
            torn.append(_place(segment, (found.tail[0], tail_end)))
        if segment.indexed and unpack_index(store.read_bytes(segment.index_name), len(read.data)) is None:
            bad_indexes.append(segment.index_name)
    index = LedgerIndex(store)
    index.refresh()
    totals = index.totals()
    return Verification(
        segments=segments,
        frames=frames,
        damaged=tuple(damaged),
        torn=tuple(torn),
        bad_indexes=tuple(bad_indexes),
        repeated=totals.repeated,
        in_doubt=totals.in_doubt,
    )


def render_show(facts: Mapping[str, Any]) -> RenderableType:
    """What `show` returned, as tables."""
    head = f"{facts['records']:,} records in {facts['segments']:,} segments, {facts['bytes'] / 2**20:,.1f} MiB"
    parts: list[RenderableType] = [Text(head)]
    for title in ("purpose", "model", "run"):
        table = table_of(title, "calls", "USD", "tokens in", "tokens out", "spoiled", "in doubt", "repeated")
        total = {"all": facts["total"]} if title == "purpose" else {}
        for name, figures in {**facts[f"by_{title}"], **total}.items():
            cells = [f"{figures[key]:,.6f}" if key == "cost_usd" else f"{figures[key]:,}" for key in _FIGURES]
            table.add_row(Text(line(name)), *map(Text, cells))
        parts += [Text(), table]
    return Group(*parts)


def render_verify(found: Verification) -> RenderableType:
    """What `verify` found, as text."""
    lines = [f"{found.frames:,} records in {found.segments:,} segments are sound"]
    for what, places in (("damaged", found.damaged), ("unfinished end, ignored", found.torn)):
        lines += [f"{what}: {place.segment} at byte {place.offset:,}, {place.bytes:,} bytes" for place in places]
    lines += [f"bad index, not used: {name}" for name in found.bad_indexes]
    if found.repeated:
        lines.append(f"{found.repeated:,} calls were repeated")
    if found.in_doubt:
        lines.append(f"{found.in_doubt:,} calls are in doubt, or in flight if the run is alive")
    return Text(clean("\n".join(lines)), style="red" if found.problems else "")


class _Models:
    """Adds up by model, in the order of each writer's stream. The model stands in the payload."""

    def __init__(self) -> None:
        self.sums: dict[str, list[int]] = {}  # calls, spoiled, in doubt, repeated, nano-dollars, tokens in, tokens out
        self.open: dict[tuple[str, str], tuple[str, int]] = {}  # INTENTs by writer and key
        self.keys: list[np.ndarray] = []
        self.models: list[str] = []  # of each DONE record

    def add(self, read: _Read) -> None:
        self.keys.append(read.fresh["key"][read.fresh["kind"] == Kind.DONE])
        for record in read.records():
            call, nano = (read.segment.writer, record.key), round(record.cost_usd * NANO)
            model = str(record.payload.get("asked") or record.payload.get("model") or "")
            if record.kind == Kind.INTENT:
                self.open[call] = model, nano
                continue
            intent = self.open.pop(call, ("", 0))
            model = sys.intern(model or intent[0])
            sums, done = self._sums(model), record.kind == Kind.DONE
            if done:
                self.models.append(model)
            for at, value in enumerate((done, not done, 0, 0, nano, record.tokens_in, record.tokens_out)):
                sums[at] += value

    def totals(self) -> dict[str, Totals]:
        for model, nano in self.open.values():
            sums = self._sums(model)
            sums[2], sums[4] = sums[2] + 1, sums[4] + nano
        if self.keys:
            key_N = np.concatenate(self.keys)
            again_N = np.ones(len(key_N), bool)
            again_N[np.unique(key_N, return_index=True)[1]] = False
            for at in np.flatnonzero(again_N).tolist():
                self.sums[self.models[at]][3] += 1
        return {model or "unknown": Totals(*sums) for model, sums in self.sums.items()}

    def _sums(self, model: str) -> list[int]:
        return self.sums.setdefault(model, [0] * 7)


def _segments(store: Store) -> Iterator[_Read]:
    """Every segment, one at a time, by writer and first byte."""
    spans: dict[str, list[Span]] = defaultdict(list)
    seen: set[str] = set()
    while todo := [segment for segment in list_segments(store) if segment.name not in seen]:
        for segment in todo:
            try:
                data = store.read_bytes(segment.name)
            except FileNotFoundError:  # merged since it was listed
                break
            seen.add(segment.name)
            found, known = scan(data, segment.begin), spans[segment.writer]
            fresh = fresh_rows(found.rows, known)
            spans[segment.writer] = join_spans([*known, *frame_spans(found.rows)])
            yield _Read(segment, data, found, fresh)


def _place(segment: Segment, span: Span) -> Place:
    return Place(segment.name, span[0] - segment.begin, span[1] - span[0])


def _figures(totals: Totals) -> dict[str, Any]:
    return {name: getattr(totals, name) for name in _FIGURES}


def _table(totals: Mapping[str, Totals]) -> dict[str, dict[str, Any]]:
    """The dearest first."""
    ranked = sorted(totals.items(), key=lambda item: (-item[1].cost_nano_usd, item[0]))
    return {name: _figures(figures) for name, figures in ranked}
