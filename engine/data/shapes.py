"""Lossless Arrow types for training rows, decided over all rows before the first shard is written.

Plain Arrow inference merges objects: two tool calls with arguments {"a": 1} and {"b": "x"} come back as
{"a": None, "b": "x"} (reference/ux.md 1.2). Here an object becomes a struct only when every row has the same keys in
the same order. Any other mixture is kept as JSON in Arrow's `arrow.json` extension, which `datasets` >= 4.7 decodes
back to the same objects, also inside lists and structs. That holds for chat messages too: a `tool_calls` filled with
null breaks readers that test for the key (LLaMA-Factory's openai converter, Llama 3.1's chat template).

Two limits of the `ujson` inside `datasets` 5.2, measured: an integer beyond 64 bits does not decode, so a value that
holds one is kept as JSON in a plain string, marked in the field's metadata; a float inside JSON comes back with some 15
decimals, about 1 in 500 one unit in the last place off (the bytes in the file are exact).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.types as pat

from engine.data.rows import encode as to_json
from engine.errors import StepError

_SCALARS = {bool: "bool", int: "int", float: "float", str: "str"}
_ARROW = {"null": pa.string(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "str": pa.string()}
_PYTHON = {"bool": bool, "int64": int, "double": float, "string": str}
_JSON = pa.json_(pa.utf8())
_TEXT_MARK = {b"iterselect": b"json"}
_MAX_NESTING = 8  # levels of lists and structs; deeper data is JSON


@dataclass
class Shape:
    """What the values of one place look like so far.

    kind: null, bool, int, float, str, list, object, json, or text (JSON that `datasets` cannot decode).
    item: of a list. keys: of an object, in order.
    """

    kind: str = "null"
    item: Shape | None = None
    keys: dict[str, Shape] = field(default_factory=dict)


def merge_shapes(rows: Iterable[Mapping[str, Any]], into: Shape | None = None) -> Shape:
    """One pass over rows; call it again with `into` for the next batch.

    Args:
        rows: training rows, all with the same columns in the same order, or lacking some of them.
        into: the shape of the rows seen before, changed in place.

    Returns:
        The shape of all rows.
    """
    shape = into or Shape("object")
    for row in rows:
        for name, value in row.items():
            shape.keys[name] = _absorb(shape.keys.get(name, Shape()), value, 1)
    return shape


def shape_schema(shape: Shape) -> pa.Schema:
    """The Arrow schema of a shape from `merge_shapes`."""
    return pa.schema([_field(name, column) for name, column in shape.keys.items()])


def encode(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Builds a table of these rows; a column that a row lacks is null.

    Raises:
        StepError: E112 a row does not fit a schema that was decided over other rows.
    """
    rows = list(rows)
    arrays = []
    for column in schema:
        values = [_stored(row.get(column.name), column) for row in rows]
        arrays.append(pa.array(values, _storage(column.type)).cast(column.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def decode(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table made by `encode`, or read back from Parquet; the inverse of `encode`."""
    columns = [[_loaded(value, column) for value in table[column.name].to_pylist()] for column in table.schema]
    return [dict(zip(table.schema.names, items, strict=True)) for items in zip(*columns, strict=True)]


def table_from_rows(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Shape, schema and table of rows that fit in memory."""
    rows = list(rows)
    return encode(rows, shape_schema(merge_shapes(rows)))


def _absorb(shape: Shape, value: Any, level: int) -> Shape:
    """The shape that holds what `shape` held and this value."""
    if value is None or shape.kind == "text":
        return shape
    kind = _SCALARS.get(type(value))
    if kind == "int" and not -(2**63) <= value < 2**63:
        return Shape("text")
    if kind is not None:
        if shape.kind in (kind, "null"):
            shape.kind = kind
            return shape
        return _as_json(shape)
    if shape.kind == "json" or level > _MAX_NESTING:
        return Shape("text") if _undecodable(value) else _as_json(shape)
    if isinstance(value, list):
        return _absorb_list(shape, value, level)
    return _absorb_object(shape, value, level)


def _absorb_list(shape: Shape, value: list[Any], level: int) -> Shape:
    if shape.kind not in ("list", "null"):
        return Shape("text") if _undecodable(value) else _as_json(shape)
    item = shape.item or Shape()
    for element in value:
        item = _absorb(item, element, level + 1)
    shape.kind, shape.item = "list", item
    return shape


def _absorb_object(shape: Shape, value: Mapping[str, Any], level: int) -> Shape:
    fits = shape.kind == "null" or (shape.kind == "object" and list(shape.keys) == list(value))
    if not value or not fits:
        return Shape("text") if _undecodable(value) else _as_json(shape)
    shape.kind = "object"
    for name, item in value.items():
        shape.keys[name] = _absorb(shape.keys.get(name, Shape()), item, level + 1)
    return shape


def _as_json(shape: Shape) -> Shape:
    return Shape("text" if _holds_text(shape) else "json")


def _holds_text(shape: Shape) -> bool:
    children = [*shape.keys.values(), *([shape.item] if shape.item else [])]
    return shape.kind == "text" or any(_holds_text(child) for child in children)


def _undecodable(value: Any) -> bool:
    if isinstance(value, int):
        return not -(2**63) <= value < 2**63
    if isinstance(value, list):
        return any(_undecodable(item) for item in value)
    return isinstance(value, Mapping) and any(_undecodable(item) for item in value.values())


def _field(name: str, shape: Shape) -> pa.Field:
    if shape.kind == "text":
        return pa.field(name, pa.string(), metadata=_TEXT_MARK)
    if shape.kind == "json":
        return pa.field(name, _JSON)
    if shape.kind == "list":
        return pa.field(name, pa.list_(_field("element", shape.item or Shape())))
    if shape.kind == "object":
        return pa.field(name, pa.struct([_field(key, item) for key, item in shape.keys.items()]))
    return pa.field(name, _ARROW[shape.kind])


def _storage(kind: pa.DataType) -> pa.DataType:
    """The type without its JSON extensions, which `pa.array` cannot build inside lists and structs."""
    if isinstance(kind, pa.JsonType):
        return kind.storage_type
    if pat.is_list(kind):
        return pa.list_(kind.value_field.with_type(_storage(kind.value_type)))
    if pat.is_struct(kind):
        return pa.struct([item.with_type(_storage(item.type)) for item in kind])
    return kind


def _is_text(column: pa.Field) -> bool:
    return bool(column.metadata) and column.metadata.get(b"iterselect") == b"json"


def _stored(value: Any, column: pa.Field) -> Any:
    """A value as `pa.array` takes it for the storage type."""
    kind = column.type
    if value is None:
        return None
    if isinstance(kind, pa.JsonType) or _is_text(column):
        return to_json(value)
    if pat.is_list(kind) and isinstance(value, list):
        return [_stored(item, kind.value_field) for item in value]
    if pat.is_struct(kind) and isinstance(value, Mapping) and list(value) == [item.name for item in kind]:
        return {item.name: _stored(value[item.name], item) for item in kind}
    if type(value) is not _PYTHON.get(str(kind)):
        raise StepError(
            f"a row does not fit column {column.name!r} of type {kind}",
            why="the schema was decided over other rows",
            code="E112",
        )
    return value


def _loaded(value: Any, column: pa.Field) -> Any:
    kind = column.type
    if value is None:
        return None
    if isinstance(kind, pa.JsonType) or _is_text(column):
        return json.loads(value)
    if pat.is_list(kind):
        return [_loaded(item, kind.value_field) for item in value]
    if pat.is_struct(kind):
        return {item.name: _loaded(value[item.name], item) for item in kind}
    return value
