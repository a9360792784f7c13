"""A JSON list of objects, or objects one after another, read element by element through a sliding window of text.

Only the element at hand is in memory. A syntax error cannot be mended here, since what follows it has no sure
beginning: it is reported with line and column and ends the file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from io import BufferedReader

from engine.data.rows import DECODER, SNIPPET_CHARS, BadRow, Reject, SourceRow, bad_row, check_row, encode, snippet

_CHUNK_BYTES = 1 << 16
_SKIP_BYTES = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_TOKEN_CHARS = 16  # a literal, an escape or the start of a number that the window may have cut
_REST = "the rest of the file could not be read"


class _Window:
    """Decoded text from `at` on, with the place of every character in the file."""

    def __init__(self, stream: BufferedReader) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.ended = "", 0, False
        self._line, self._column, self._seen = 1, 1, 0  # the place of text[_seen]

    def more(self, wanted: int = _CHUNK_BYTES) -> bool:
        """Drops what lies behind `at` and appends about `wanted` bytes; False at the end of the file."""
        if self.ended:
            return False
        self.place()
        data = self._stream.read1(wanted)  # what was read before a broken archive raises is not lost
        self.ended = not data
        self.text = self.text[self.at :] + self._decoder.decode(data, final=self.ended)
        self.at = self._seen = 0
        return True

    def place(self) -> tuple[int, int]:
        """1-based line and column of `at`."""
        breaks = self.text.count("\n", self._seen, self.at)
        if breaks:
            self._line += breaks
            self._column = self.at - self.text.rfind("\n", self._seen, self.at)
        else:
            self._column += self.at - self._seen
        self._seen = self.at
        return self._line, self._column

    def peek(self) -> str:
        """The next character that is not white space, "" at the end; `at` moves to it."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""


class _Broken(Exception):
    """The text is no longer a list of objects; carries the reason code and the detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def read_json_list(stream: BufferedReader, path: str, max_row_bytes: int) -> Iterator[SourceRow | Reject]:
    """Yields the elements in order, then one Reject if the file breaks off or breaks the syntax.

    Args:
        stream: decompressed bytes.
        path: named in the rows.
        max_row_bytes: a longer element is passed over and rejected as "too_large".
    """
    window = _Window(stream)
    try:
        bracket = window.peek() == "["
        window.at += bracket
        first = True
        while _next_element(window, bracket, first):
            first = False
            yield _element(window, path, max_row_bytes)
    except _Broken as broken:
        line, column = window.place()
        detail = f"column {column}: {broken.detail}; {_REST}"
        yield Reject(path, line, broken.reason, detail, snippet(window.text[window.at :]))
    except UnicodeDecodeError as error:
        line, _ = window.place()
        detail = f"after this line: {error.reason} (byte {error.object[error.start]:#04x}); {_REST}"
        yield Reject(path, line, "bad_utf8", detail)


def _next_element(window: _Window, bracket: bool, first: bool) -> bool:
    """Moves to the next element; False when the list is over."""
    mark = window.peek()
    if not bracket:
        return mark != ""
    if mark == "]":
        window.at += 1
        if window.peek():
            raise _Broken("bad_json", "text after the end of the list")
        return False
    if not first:
        if mark == "":
            raise _Broken("truncated_file", "the list is not closed")
        if mark != ",":
            raise _Broken("bad_json", "expected ',' or ']'")
        window.at += 1
        mark = window.peek()
    if mark == "":
        raise _Broken("truncated_file", "the list is not closed")
    return True


def _element(window: _Window, path: str, max_row_bytes: int) -> SourceRow | Reject:
    line, _ = window.place()
    wanted = _CHUNK_BYTES
    while True:
        try:
            value, end = DECODER.raw_decode(window.text, window.at)
            if end < len(window.text) or window.ended:
                break
        except json.JSONDecodeError as error:
            cut = error.msg.startswith("Unterminated string") or error.pos >= len(window.text) - _TOKEN_CHARS
            if window.ended or not cut:
                cut = error.pos >= len(window.text.rstrip()) or error.msg.startswith("Unterminated string")
                window.at = error.pos
                raise _Broken("truncated_file" if cut else "bad_json", error.msg) from error
        except (BadRow, ValueError, RecursionError) as error:
            head, bad = snippet(window.text[window.at : window.at + SNIPPET_CHARS]), bad_row(error)
            _skip(window)
            return Reject(path, line, bad.reason, bad.detail, head)
        if len(window.text) - window.at > max_row_bytes:
            head = snippet(window.text[window.at : window.at + SNIPPET_CHARS])
            size = _skip(window)
            return Reject(path, line, "too_large", f"{size:,} characters; a row may have {max_row_bytes:,} bytes", head)
        window.more(wanted)
        wanted *= 2  # the element is parsed again from its start: doubling keeps that linear
    raw = window.text[window.at : end]
    window.at = end
    return _row(path, line, raw, value, max_row_bytes)


def _row(path: str, line: int, raw: str, value: object, max_row_bytes: int) -> SourceRow | Reject:
    if len(raw) * 4 > max_row_bytes and len(raw.encode("utf-8", "replace")) > max_row_bytes:
        return Reject(
            path, line, "too_large", f"{len(raw):,} characters; a row may have {max_row_bytes:,} bytes", snippet(raw)
        )
    try:
        row = check_row(value, raw)
    except BadRow as bad:
        return Reject(path, line, bad.reason, bad.detail, snippet(raw))
    return SourceRow(path, line, encode(row), row)


_BARE = re.compile(r'["{}\[\]]')
_QUOTED = re.compile(r'"|\\[\s\S]')


def _skip(window: _Window) -> int:
    """Passes over the object or list at `at` without parsing or keeping it; returns its length in characters."""
    if window.text[window.at] not in "{[":
        raise _Broken("bad_json", "expected an object")
    depth, quoted, size, begin = 0, False, 0, window.at
    at = begin
    while True:
        mark = (_QUOTED if quoted else _BARE).search(window.text, at)
        if mark is None:
            cut = quoted and at < len(window.text) and window.text[-1] == "\\"  # half an escape stays in the window
            window.at = len(window.text) - cut
            size += window.at - begin
            if not window.more(_SKIP_BYTES):
                raise _Broken("truncated_file", "the last element is not closed")
            at = begin = 0
            continue
        at = mark.end()
        sign = mark.group()
        if sign == '"':
            quoted = not quoted
        elif not quoted:
            depth += 1 if sign in "{[" else -1
            if depth == 0:
                window.at = at
                return size + at - begin
