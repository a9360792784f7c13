"""Rows of JSON, JSON Lines, Parquet and Arrow files, streamed, with each bad row named instead of raised.

A row that cannot be used becomes a `Reject` with its place and a reason code; an error is raised only when a file
cannot be opened or the storage fails. It knows nothing of chat formats. Memory is bounded by one row (`max_row_bytes`)
or one Arrow batch, whatever the size of the file, so neither a decompression bomb nor a 5 GB JSON list fills it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import suppress
from io import BufferedReader

from engine.data.arrow_rows import read_arrow_rows
from engine.data.inputs import InputFile, opened, unreadable
from engine.data.json_list import read_json_list
from engine.data.rows import SNIPPET_CHARS, BadRow, Reject, SourceRow, parse_row, snippet

MAX_ROW_BYTES = 10 << 20
_SKIP_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16


def read_rows(file: InputFile, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[SourceRow | Reject]:
    """Streams the rows of one file.

    JSON Lines: a bad line costs that line. A JSON list: a syntax error ends the file, the rows before it are kept. A
    `.json` file that holds JSON Lines, and a `.jsonl` file that holds a list, are read as what they are. Blank lines do
    not count as rows. NaN and Infinity are refused as JSON; in Parquet and Arrow they become null. Dates and decimals
    become text.

    Args:
        file: from `resolve_inputs`.
        max_row_bytes: longer rows are skipped without being kept in memory and rejected as "too_large".

    Yields:
        SourceRow, or Reject with one of bad_json, bad_utf8, too_large, too_deep, lone_surrogate, nul_byte, wrong_type,
        unsupported_type, truncated_file.

    Raises:
        DataError: E402 the file cannot be opened, or the storage failed while reading.
    """
    line = 0
    try:
        for row in _rows_of(file, max_row_bytes):
            line = row.line
            yield row
    except (EOFError, zlib.error) as error:
        yield Reject(file.path, line + 1, "truncated_file", f"{error}; the rest of the file could not be read")
    except OSError as error:
        if error.errno is not None:  # the disk or the network, not the content
            raise unreadable(file.path, error) from error
        yield Reject(file.path, line + 1, "truncated_file", f"{error}; the rest of the file could not be read")


def _rows_of(file: InputFile, max_row_bytes: int) -> Iterator[SourceRow | Reject]:
    if file.kind in ("parquet", "arrow"):
        yield from read_arrow_rows(file, max_row_bytes)
        return
    reader = read_json_list if _is_list(file) else _json_lines
    with opened(file) as stream:
        yield from reader(stream, file.path, max_row_bytes)


def _is_list(file: InputFile) -> bool:
    """Whether the first character that is not white space opens a list, or starts an object laid out over lines."""
    head = b""
    with (
        opened(file, _HEAD_BYTES) as stream,
        suppress(EOFError, OSError),
    ):  # the reading proper reports a broken archive
        while len(head) < _HEAD_BYTES and b"\n" not in head.lstrip() and (chunk := stream.read1(_HEAD_BYTES)):
            head += chunk
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    # `{` or `{"key":` alone on the first line: one object over many lines. A JSON Lines row closes on its own line.
    return head.startswith(b"[") or (file.kind == "json" and b"\n" in head and not _is_row(head.split(b"\n", 1)[0]))


def _is_row(line: bytes) -> bool:
    return line.rstrip().endswith(b"}")


def _json_lines(stream: BufferedReader, path: str, max_row_bytes: int) -> Iterator[SourceRow | Reject]:
    line = 0
    while raw := stream.readline(max_row_bytes + 2):
        line += 1
        if len(raw) > max_row_bytes and not raw.endswith(b"\n"):
            size = len(raw) + _skip_line(stream)
            detail = f"{size:,} bytes; a row may have {max_row_bytes:,}"
            yield Reject(path, line, "too_large", detail, snippet(raw[:SNIPPET_CHARS].decode("utf-8", "replace")))
            continue
        if line == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        raw = raw.strip(b" \t\r\n")
        if not raw:
            continue
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            detail = f"byte {error.start + 1} of the line is not UTF-8"
            yield Reject(path, line, "bad_utf8", detail, snippet(raw[:SNIPPET_CHARS].decode("utf-8", "replace")))
            continue
        try:
            yield SourceRow(path, line, text, parse_row(text))
        except BadRow as bad:
            yield Reject(path, line, bad.reason, bad.detail, snippet(text))


def _skip_line(stream: BufferedReader) -> int:
    """Reads to the end of the current line in pieces; returns the bytes passed over."""
    skipped = 0
    while piece := stream.readline(_SKIP_BYTES):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped
