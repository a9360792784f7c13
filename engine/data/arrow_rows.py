"""Rows of Parquet and Arrow IPC files (file or stream format), in batches, as plain JSON values.

JSON has no dates, decimals, bytes or NaN: dates and decimals become text, NaN and infinities become null, and a row
that holds bytes is refused. Only columns whose type can hold such values are visited.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pat

from engine.data.inputs import InputFile, opened
from engine.data.rows import DECODER, BadRow, Reject, SourceRow, check_row, encode, snippet

_BATCH_ROWS = 2048


def read_arrow_rows(file: InputFile, max_row_bytes: int) -> Iterator[SourceRow | Reject]:
    """Yields the rows in order; a file that breaks off ends with one Reject "truncated_file".

    Args:
        file: kind "parquet" or "arrow".
        max_row_bytes: a row whose JSON text is longer is rejected as "too_large".
    """
    number = 0
    try:
        for batch in _batches(file):
            for value in _values(batch):
                number += 1
                yield _row(file.path, number, value, max_row_bytes)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        yield Reject(file.path, number + 1, "truncated_file", f"{error}; the rest of the file could not be read")


def _batches(file: InputFile) -> Iterator[pa.RecordBatch]:
    with opened(file) as stream:
        if file.kind == "parquet":
            yield from pq.ParquetFile(stream).iter_batches(_BATCH_ROWS)
            return
        magic = stream.read(6)
        stream.seek(0)
        if magic == b"ARROW1":
            reader = pa.ipc.open_file(stream)
            batches = (reader.get_batch(k) for k in range(reader.num_record_batches))
        else:
            batches = pa.ipc.open_stream(stream)
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield batch.slice(start, _BATCH_ROWS)


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | BadRow]:
    names = batch.schema.names
    columns = []
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if pat.is_temporal(field.type) or pat.is_decimal(field.type):
            column = column.cast(pa.string())
        columns.append(column)
    try:
        lists = [column.to_pylist() for column in columns]
    except UnicodeDecodeError:
        yield from (_lone_value(names, columns, k) for k in range(batch.num_rows))
        return
    visited = [name for name, column in zip(names, columns, strict=True) if _needs_visit(column.type)]
    types = dict(zip(names, (column.type for column in columns), strict=True))
    for items in zip(*lists, strict=True):
        value = dict(zip(names, items, strict=True))
        try:
            for name in visited:
                value[name] = _plain(value[name], types[name], name)
        except BadRow as bad:
            yield bad
        else:
            yield value


def _lone_value(names: list[str], columns: list[pa.Array], k: int) -> dict[str, Any] | BadRow:
    try:
        return {name: _plain(column[k].as_py(), column.type, name) for name, column in zip(names, columns, strict=True)}
    except UnicodeDecodeError as error:
        return BadRow("bad_utf8", str(error))
    except BadRow as bad:
        return bad


def _needs_visit(kind: pa.DataType) -> bool:
    """Whether values of this type may differ from their JSON form."""
    if pat.is_list(kind) or pat.is_large_list(kind) or pat.is_fixed_size_list(kind):
        return _needs_visit(kind.value_type)
    if pat.is_struct(kind):
        return any(_needs_visit(field.type) for field in kind)
    plain = pat.is_string(kind) or pat.is_large_string(kind) or pat.is_integer(kind) or pat.is_boolean(kind)
    return not (plain or pat.is_null(kind))


def _plain(value: Any, kind: pa.DataType, name: str) -> Any:
    """One Arrow value as JSON holds it; raises BadRow for bytes and for broken JSON in a JSON column."""
    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        try:
            return DECODER.decode(value)
        except (json.JSONDecodeError, RecursionError) as error:
            raise BadRow("bad_json", f"column {name}: {error}") from error
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(value, kind.storage_type, name)
    if pat.is_struct(kind):
        return {field.name: _plain(value[field.name], field.type, field.name) for field in kind}
    if pat.is_map(kind):
        return {str(key): _plain(item, kind.item_type, name) for key, item in value}
    if isinstance(value, list):
        return [_plain(item, kind.value_type, name) for item in value]
    if isinstance(value, bytes):
        raise BadRow("unsupported_type", f"column {name} holds bytes")
    if pat.is_floating(kind):
        return float(value) if math.isfinite(value) else None
    return value if isinstance(value, (str, bool, int)) else str(value)


def _row(path: str, number: int, value: dict[str, Any] | BadRow, max_row_bytes: int) -> SourceRow | Reject:
    if isinstance(value, BadRow):
        return Reject(path, number, value.reason, value.detail)
    text = encode(value)
    if len(text) * 4 > max_row_bytes and len(text.encode("utf-8", "replace")) > max_row_bytes:
        detail = f"{len(text):,} characters; a row may have {max_row_bytes:,} bytes"
        return Reject(path, number, "too_large", detail, snippet(text))
    try:
        return SourceRow(path, number, text, check_row(value, text))
    except BadRow as bad:
        return Reject(path, number, bad.reason, bad.detail, snippet(text))
