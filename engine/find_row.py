"""A row of a finished run, found by what a person knows of it: its id, the start of one, or a line of the input.

Only ids and places are read, part by part. It knows nothing of scores.
"""

# Shape letters: N rows of a part, L letters of an id, I rows found.

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.errors import ConfigError
from engine.schema import FILE, ID, LINE, ROW
from engine.store import Store, absolute_root

SHOWN = 3  # ids or places that an error names


def find_row(run: Store, wanted: str) -> dict[str, Any]:
    """Where a row is: {part, at, id, row, file, line}, or for a rejected row its entry in `rejected.jsonl`.

    Raises:
        ConfigError: E223, there is none; E224, several.
    """
    file, colon, line = wanted.rpartition(":")
    if colon and line.isdigit():
        return find_line(run, file, int(line))
    prefix = wanted.lower()
    if not re.fullmatch(r"[0-9a-f]{1,32}", prefix):
        fix = "give an id (32 hex digits) or the start of one, or file:line of the input"
        raise ConfigError(f"{wanted!r} is neither an id nor file:line", fix=fix, code="E223")
    found: list[dict[str, Any]] = []
    for part, table in id_parts(run):
        inside = np.flatnonzero(pc.starts_with(table[ID], prefix).to_numpy(zero_copy_only=False))  # pyright: ignore
        found += places(part, table, inside[: SHOWN + 1])
    if not found:
        near = nearest_ids(run, prefix)
        raise ConfigError(f"no row of the run has the id {wanted}", fix=f"did you mean {near}?", code="E223")
    return only_one(found, wanted)


def find_line(run: Store, file: str, line: int) -> dict[str, Any]:
    """The row that came from a line of the input; of the file's path the end is enough."""
    full, found, files = absolute_root(file), list[dict[str, Any]](), set[str]()
    for part, table in id_parts(run):
        names = pc.unique(table[FILE]).to_pylist()  # pyright: ignore[reportAttributeAccessIssue]
        files |= set(names)
        same = [name for name in names if name in (file, full) or name.endswith(f"/{file}")]
        inside = pc.and_(pc.is_in(table[FILE], pa.array(same, pa.large_string())), pc.equal(table[LINE], line))  # pyright: ignore
        found += places(part, table, np.flatnonzero(inside.to_numpy(zero_copy_only=False)))
    for text in run.read_bytes("rejected.jsonl").splitlines():
        entry = json.loads(text)
        files.add(entry["file"])
        if entry["line"] == line and (entry["file"] in (file, full) or entry["file"].endswith(f"/{file}")):
            found.append(entry)
    if found:
        return only_one(found, f"{file}:{line}")
    known = any(name in (file, full) or name.endswith(f"/{file}") for name in files)
    raise ConfigError(
        f"no row of the run comes from {file}:{line}",
        why="the line is empty, an exact duplicate of an earlier row, past the end, or was not in the sample"
        if known
        else "the run read no file of this name",
        fix="" if known else f"it read {', '.join(sorted(files)[:SHOWN])}",
        code="E223",
    )


def id_parts(run: Store) -> Iterator[tuple[str, pa.Table]]:
    """Every part of `scores/` with what a row is known by."""
    for part in run.list("scores"):
        yield part, pq.read_table(run.open_read(f"scores/{part}"), columns=[ID, ROW, FILE, LINE])


def places(part: str, table: pa.Table, at_I: np.ndarray) -> list[dict[str, Any]]:
    rows = table.take(pa.array(at_I)).to_pylist()
    return [{"part": part, "at": int(at), **row} for at, row in zip(at_I, rows, strict=True)]


def only_one(found: Sequence[dict[str, Any]], wanted: str) -> dict[str, Any]:
    if len(found) == 1:
        return found[0]
    names = [f"{one.get('id', 'rejected')} ({one['file']}:{one['line']})" for one in found[:SHOWN]]
    more = " and more" if len(found) > SHOWN else ""
    raise ConfigError(f"{wanted} names several rows: {', '.join(names)}{more}", fix="give more of it", code="E224")


def nearest_ids(run: Store, wanted: str) -> str:
    """The ids that share the longest beginning and end with what was typed: one wrong, missing or extra digit."""
    best: list[tuple[int, str]] = []
    for _, table in id_parts(run):
        ids = table[ID].to_pylist()
        letters_NL = np.frombuffer("".join(ids).encode(), np.uint8).reshape(len(ids), -1)
        typed = np.frombuffer(wanted.encode(), np.uint8)
        num = min(len(typed), letters_NL.shape[1])
        front_N = np.cumprod(letters_NL[:, :num] == typed[:num], axis=1).sum(axis=1)
        back_N = np.cumprod((letters_NL[:, -num:] == typed[-num:])[:, ::-1], axis=1).sum(axis=1)
        alike_N = front_N + back_N
        best += [(-int(alike_N[at]), ids[at]) for at in np.argsort(-alike_N, kind="stable")[:SHOWN]]
        best = sorted(best)[:SHOWN]
    return ", ".join(key for _, key in best)
