"""What one row of input is, what a refused row is, and the checks on a row's JSON that every reader shares.

It opens no file and knows no chat format.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

MAX_DEPTH = 100  # nested objects and lists in one row
SNIPPET_CHARS = 200


class SourceRow(NamedTuple):
    """One readable row. `line`: 1-based line (JSON) or row number (Parquet, Arrow). `text`: the row as JSON."""

    file: str
    line: int
    text: str
    value: dict[str, Any]


@dataclass(frozen=True)
class Reject:
    """One row that was read and cannot be used: where, a stable reason code, the detail, the start of its text."""

    file: str
    line: int
    reason: str
    detail: str
    snippet: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form, for `rejected.jsonl`."""
        return asdict(self)


class BadRow(Exception):
    """Carries a reason code and a detail from a helper to the place that knows file and line."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise BadRow("bad_json", f"the number {text[:40]} is out of range")
    return value


def _no_constant(text: str) -> float:
    raise BadRow("bad_json", f"{text} is not JSON")


encode = json.JSONEncoder(ensure_ascii=False).encode
DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_no_constant)


def parse_row(text: str) -> dict[str, Any]:
    """Parses one object strictly and checks its strings; raises BadRow."""
    try:
        value = DECODER.decode(text)
    except json.JSONDecodeError as error:
        if "\x00" in text:
            raise BadRow("nul_byte", f"NUL character at column {text.index(chr(0)) + 1}") from error
        raise BadRow("bad_json", f"column {error.colno}: {error.msg}") from error
    except (BadRow, ValueError, RecursionError) as error:
        raise bad_row(error) from error
    return check_row(value, text)


def bad_row(error: Exception) -> BadRow:
    """What a failure of DECODER other than a syntax error says about the row."""
    if isinstance(error, BadRow):
        return error
    if isinstance(error, RecursionError):
        return BadRow("too_deep", f"more than {MAX_DEPTH} levels of nesting")
    return BadRow("bad_json", str(error))  # an integer of more digits than Python converts


def check_row(value: Any, text: str) -> dict[str, Any]:
    """The value if it is an object of sane depth without NUL or lone surrogates; raises BadRow."""
    if not isinstance(value, dict):
        raise BadRow("wrong_type", f"the row is {kind_of(value)}, not an object")
    if text.count("{") + text.count("[") > MAX_DEPTH:
        check_depth(value)
    if "\\u" in text:
        check_text(value)
    return value


def check_text(value: Any) -> None:
    """Raises BadRow for a NUL character or a lone surrogate in any string or key of a JSON value."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, str):
            if "\x00" in item:
                raise BadRow("nul_byte", "a text holds a NUL character")
            if not item.isascii() and _LONE_SURROGATE.search(item):
                raise BadRow("lone_surrogate", "a text holds half of a surrogate pair, which UTF-8 cannot write")


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def check_depth(value: Any) -> None:
    """Raises BadRow when a JSON value nests deeper than MAX_DEPTH."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise BadRow("too_deep", f"more than {MAX_DEPTH} levels of nesting")


def kind_of(value: Any) -> str:
    """The JSON name of a value's type, with its article, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def snippet(text: str) -> str:
    """The first 200 characters, always encodable as UTF-8."""
    return text[:SNIPPET_CHARS].encode("utf-8", "backslashreplace").decode("utf-8")
