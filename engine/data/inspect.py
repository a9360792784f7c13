"""What an input holds, before anything is spent on it: format, accounting, lengths, examples of refused rows.

It reads through `Ingest`, so its counts are those of a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.data.formats import common_format
from engine.data.ingest import Ingest, IngestOptions
from engine.data.inputs import InputFile
from engine.data.rows import Reject
from engine.errors import DataError
from engine.schema import PROMPT, RESPONSE, SOURCE, SYSTEM, TOOLS, TURNS

if TYPE_CHECKING:
    from rich.console import RenderableType

_EXAMPLES = 5
_QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class Inspection:
    """Facts about an input.

    Attributes:
        detected: phrase naming the format, "mixed: ..." when files differ.
        formats: path -> phrase.
        counts: `Counts.to_dict()`.
        reject_examples: reason -> up to 5 of "file:line: detail".
        multi_turn_share, system_share, tools_share: shares of the pool in [0, 1].
        prompt_chars, response_chars: quantile name -> characters.
        sources: source name -> rows, most frequent first.
        empty_files: paths without a readable row.
        stopped_early: whether `limit` ended the reading.
    """

    detected: str
    formats: dict[str, str]
    counts: dict[str, Any]
    reject_examples: dict[str, list[str]]
    multi_turn_share: float
    system_share: float
    tools_share: float
    prompt_chars: dict[str, int]
    response_chars: dict[str, int]
    sources: dict[str, int]
    empty_files: list[str]
    stopped_early: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)


def inspect_pool(
    inputs: Sequence[InputFile], options: IngestOptions | None = None, limit: int | None = None
) -> Inspection:
    """Reads the input once and sums it up.

    Args:
        inputs: from `resolve_inputs`.
        options: as for a run.
        limit: stop after the part of the pool that reaches this many rows; None reads everything.

    Raises:
        ConfigError, DataError: as `Ingest`, but for E407: an input without a usable row is described.
    """
    examples: dict[str, list[str]] = {}

    def remember(reject: Reject) -> None:
        kept = examples.setdefault(reject.reason, [])
        if len(kept) < _EXAMPLES:
            kept.append(f"{reject.file}:{reject.line}: {reject.detail}")

    ingest = Ingest(inputs, options, remember)
    stats = _Stats()
    stopped = False
    try:
        for part in ingest:
            stats.add(part)
            stopped = limit is not None and ingest.counts.pool >= limit
            if stopped:
                break
    except DataError as error:
        if error.code != "E407":  # no usable row: the examples below say why
            raise
    formats = {path: fmt.describe() for path, fmt in ingest.formats.items()}
    common = common_format(ingest.formats.values())
    pool = max(ingest.counts.pool, 1)
    return Inspection(
        detected=common.describe() if common else "mixed: " + "; ".join(dict.fromkeys(formats.values())),
        formats=formats,
        counts=ingest.counts.to_dict(),
        reject_examples=dict(sorted(examples.items())),
        multi_turn_share=stats.multi_turn / pool,
        system_share=stats.system / pool,
        tools_share=stats.tools / pool,
        prompt_chars=_quantiles(stats.prompt_chars),
        response_chars=_quantiles(stats.response_chars),
        sources=dict(stats.sources.most_common()),
        empty_files=ingest.empty_files,
        stopped_early=stopped,
    )


class _Stats:
    """Sums over the parts; keeps two int32 lengths a row."""

    def __init__(self) -> None:
        self.multi_turn = self.system = self.tools = 0
        self.prompt_chars: list[np.ndarray] = []
        self.response_chars: list[np.ndarray] = []
        self.sources: Counter[str] = Counter()

    def add(self, part: pa.Table) -> None:
        self.multi_turn += int(np.count_nonzero(part[TURNS].to_numpy() > 1))
        self.system += int(np.count_nonzero(_chars(part[SYSTEM])))
        self.tools += int(np.count_nonzero(_chars(part[TOOLS])))
        self.prompt_chars.append(_chars(part[PROMPT]))
        self.response_chars.append(_chars(part[RESPONSE]))
        self.sources.update(part[SOURCE].to_pylist())


def _chars(column: pa.ChunkedArray) -> np.ndarray:
    return pc.utf8_length(column).to_numpy().astype(np.int32)  # type: ignore[attr-defined]


def _quantiles(parts: list[np.ndarray]) -> dict[str, int]:
    if not parts:
        return {}
    lengths = np.concatenate(parts)
    return {name: int(np.quantile(lengths, q, method="nearest")) for name, q in _QUANTILES.items()}


def headline(inspection: Inspection) -> str:
    """One line: format, rows, shares, what was left out."""
    counts = inspection.counts
    parts = [f"detected: {inspection.detected}", f"{counts['rows_read']:,} rows"]
    shares = (
        (inspection.multi_turn_share, "multi-turn"),
        (inspection.system_share, "with system"),
        (inspection.tools_share, "with tools"),
    )
    parts += [f"{100 * share:.3g} % {name}" for share, name in shares if share]
    if counts["duplicates"]:
        parts.append(f"{counts['duplicates']:,} exact duplicates")
    if counts["rejected"]:
        parts.append(f"{counts['rejected']:,} rejected")
    if inspection.stopped_early:
        parts.append("stopped early")
    return ", ".join(parts)


def render(inspection: Inspection) -> RenderableType:
    """The inspection for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    lengths = Table("characters", *_QUANTILES)
    for name, chars in (("prompt", inspection.prompt_chars), ("response", inspection.response_chars)):
        lengths.add_row(name, *(f"{count:,}" for count in chars.values()))
    items: list[Any] = [Text(headline(inspection)), lengths]
    if len(inspection.sources) > 1:
        sources = Table("source", "rows")
        for name, rows in list(inspection.sources.items())[:20]:
            sources.add_row(Text(name), f"{rows:,}")
        items.append(sources)
    if inspection.reject_examples:
        rejects = Table("rejected", "rows", "examples")
        reasons = inspection.counts["rejected_by_reason"]
        for reason, places in inspection.reject_examples.items():
            rejects.add_row(reason, f"{reasons[reason]:,}", Text("\n".join(places)))
        items.append(rejects)
    items += [Text(f"no rows in {path}") for path in inspection.empty_files]
    return Group(*items)
