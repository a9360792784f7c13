"""Freezes input files into the pool: numbered, identified, deduplicated rows in Arrow parts, every row accounted for.

It writes nothing; the step that calls it stores the parts and the rejects. Memory is one part, whatever the number of
rows: the ids that exact duplicates are found by lie in a temporary file (engine/data/seen.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from engine.data.conversations import Conversation, to_conversation
from engine.data.formats import SAMPLE_ROWS, Format, detect
from engine.data.inputs import InputFile
from engine.data.readers import MAX_ROW_BYTES, read_rows
from engine.data.rows import BadRow, Reject, SourceRow, check_text, snippet
from engine.data.seen import SeenIds
from engine.errors import DataError, StepError
from engine.schema import POOL_SCHEMA, canonical_json, conversation_id


@dataclass(frozen=True)
class IngestOptions:
    """How input rows are read.

    Attributes:
        columns: formats.COLUMN_KEYS -> column of the source; overrides detection for the keys it names.
        format: one of formats.FORMAT_NAMES, "" to detect it in each file.
        source_column: column with a row's source name; None takes columns["source"], else "source". A row without it
            gets the file's name without extensions.
        max_row_bytes: longer rows are rejected as "too_large".
        part_rows: rows in each part but the last.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    format: str = ""
    source_column: str | None = None
    max_row_bytes: int = MAX_ROW_BYTES
    part_rows: int = 4096


@dataclass
class Counts:
    """Accounting of an ingest; rows_read == pool + rejected + duplicates at every moment."""

    rows_read: int = 0
    pool: int = 0
    duplicates: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def rejected(self) -> int:
        """Rows refused, for any reason."""
        return self.reasons.total()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form, reasons sorted by name."""
        return {
            "rows_read": self.rows_read,
            "pool": self.pool,
            "rejected": self.rejected,
            "duplicates": self.duplicates,
            "rejected_by_reason": dict(sorted(self.reasons.items())),
        }


class Ingest:
    """Iterates once over input files and yields the pool's parts.

    Args:
        inputs: from `resolve_inputs`, in the order the pool shall have.
        options: see IngestOptions.
        on_reject: called with every refused row, in input order.
        seen: ids that are duplicates from the start, such as those of a pool that the rows are added to.

    Attributes:
        counts: what was read so far.
        formats: path -> Format of every file that has rows; complete once iteration has begun.
        empty_files: paths without a single readable row.

    Raises:
        ConfigError: E230 from `detect`.
        DataError: E402 unreadable, E405 unknown format (where = the file), E406 no rows at all, E407 no usable row.
    """

    def __init__(
        self,
        inputs: Sequence[InputFile],
        options: IngestOptions | None = None,
        on_reject: Callable[[Reject], None] | None = None,
        seen: SeenIds | None = None,
    ) -> None:
        self.inputs, self.options = list(inputs), options or IngestOptions()
        self.counts = Counts()
        self.formats: dict[str, Format] = {}
        self.empty_files: list[str] = []
        self._on_reject = on_reject or (lambda reject: None)
        self._seen = seen or SeenIds()
        self._first_reject: Reject | None = None
        self._source_column = self.options.source_column or self.options.columns.get("source", "source")

    def __iter__(self) -> Iterator[pa.Table]:
        """Yields tables of POOL_SCHEMA with exactly `part_rows` rows each but the last."""
        self._detect_formats()
        part: list[tuple[Any, ...]] = []
        for file in self.inputs:
            stem, fmt = file.stem, self.formats.get(file.path)
            for row in read_rows(file, self.options.max_row_bytes):
                self.counts.rows_read += 1
                made = self._pool_row(row, fmt, stem)
                if made is not None:
                    part.append(made)
                if len(part) == self.options.part_rows:
                    yield _table(part)
                    part = []
        if part:
            yield _table(part)
        self._settle()

    def _detect_formats(self) -> None:
        """Looks at the head of every file first, so that a file in an unknown format stops the run before any work."""
        for file in self.inputs:
            sample: list[dict[str, Any]] = []
            for row in read_rows(file, self.options.max_row_bytes):
                if isinstance(row, SourceRow):
                    sample.append(row.value)
                if len(sample) == SAMPLE_ROWS:
                    break
            if not sample:
                self.empty_files.append(file.path)
                continue
            try:
                self.formats[file.path] = detect(sample, self.options.columns, self.options.format)
            except DataError as error:
                raise DataError(error.what, where=file.path, why=error.why, fix=error.fix, code=error.code) from error

    def _pool_row(self, row: SourceRow | Reject, fmt: Format | None, stem: str) -> tuple[Any, ...] | None:
        """One row in the order of POOL_SCHEMA, None when it is refused or a duplicate."""
        if isinstance(row, Reject):
            return self._refuse(row)
        if fmt is None:
            raise StepError(
                "rows appeared in a file that had none", where=row.file, why="it changed meanwhile", code="E111"
            )
        found, messages, tools = to_conversation(row.value, fmt), "", ""
        if isinstance(found, Conversation):
            messages, tools = canonical_json(found.messages), canonical_json(found.tools) if found.tools else ""
            found = _sound(found, messages, tools)
        if isinstance(found, BadRow):
            return self._refuse(Reject(row.file, row.line, found.reason, found.detail, snippet(row.text)))
        key = conversation_id(messages, tools)
        if not self._seen.add(key):
            self.counts.duplicates += 1
            return None
        number = self.counts.pool
        self.counts.pool += 1
        source = row.value.get(self._source_column)
        source = str(source) if isinstance(source, (str, int)) and source != "" else stem
        texts = (found.system, found.prompt, found.response)
        return number, key, row.file, row.line, source, *texts, found.turns, messages, tools, row.text

    def _refuse(self, reject: Reject) -> None:
        self.counts.reasons[reject.reason] += 1
        self._first_reject = self._first_reject or reject
        self._on_reject(reject)

    def _settle(self) -> None:
        counts = self.counts
        if counts.rows_read != counts.pool + counts.rejected + counts.duplicates:
            raise StepError(
                "the rows of the input do not add up", where="ingest", why=str(counts.to_dict()), code="E111"
            )
        if counts.rows_read == 0:
            raise DataError(
                "the input has no rows",
                where=self.inputs[0].path,
                why=f"every file is empty ({len(self.inputs):,} in all)",
                fix="check what wrote the input",
                code="E406",
            )
        if counts.pool == 0 and self._first_reject is not None:
            first = self._first_reject
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts.reasons.most_common(5))
            raise DataError(
                f"none of {counts.rows_read:,} rows can be used",
                where=f"{first.file}:{first.line}",
                why=f"{first.detail}; by reason: {reasons}",
                fix="run `iterselect inspect` on the input, or name the columns with a column mapping",
                code="E407",
            )


def _sound(found: Conversation, messages: str, tools: str) -> Conversation | BadRow:
    r"""Checks texts that came out of JSON inside a text, which the reader could not see; `\u` marks the suspects."""
    if "\\u" not in messages and "\\u" not in tools and messages.isascii() and tools.isascii():
        return found
    try:
        messages.encode()
        tools.encode()
        if "\\u" in messages or "\\u" in tools:
            check_text([found.messages, found.tools])
    except UnicodeEncodeError:
        return BadRow("lone_surrogate", "a text holds half of a surrogate pair, which UTF-8 cannot write")
    except BadRow as bad:
        return bad
    return found


def _table(part: list[tuple[Any, ...]]) -> pa.Table:
    columns = zip(*part, strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, POOL_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=POOL_SCHEMA)
