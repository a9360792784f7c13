"""The output folder of a run: what trainers load (`data/`), what people read (`scores/`), and the ids.

Every file is rebuilt from committed steps, in the pool's order, one part at a time. `data/` holds nothing but the
training columns, because trainers guess from the columns they find.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.artifacts import Step, parquet_bytes, tables_of_rows
from engine.baselines import SELECTED, SETS
from engine.data.formats import Format, common_format
from engine.data.shapes import encode, merge_shapes, shape_schema
from engine.data.writers import jsonl_bytes, output_format, training_row
from engine.errors import ConfigError, DataError
from engine.recipes.base import Context, Selection
from engine.run_folder import read_manifest, run_steps
from engine.schema import FILE, ID, LINE, PROMPT, RECORD, RESPONSE, ROW, SOURCE, TURNS
from engine.store import Store

NO_SCORE = "no score"  # why a row is out that the method could not score
CONTAINERS = ("parquet", "jsonl", "jsonl.gz")


@dataclass(frozen=True)
class Chosen:
    """Which rows go out, and in which format."""

    pool: Step
    rows: np.ndarray  # (S,) int64, sorted
    formats: Mapping[str, Format]  # per input file
    output: str  # one of engine.data.writers.OUTPUT_FORMATS
    convert: Callable[[dict[str, Any]], dict[str, Any]] | None = None  # of each row that goes out

    @property
    def written(self) -> Format:
        """The format of the rows that go out; `tools` of messages is not named."""
        return output_format(next(iter(self.formats.values())), self.output, with_tools=False)

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        """Training rows in pool order, those of one part at a time."""
        for table in tables_of_rows(self.pool, self.rows, [ID, FILE, RECORD]):
            columns = (table[name].to_pylist() for name in (RECORD, FILE, ID))
            rows = [
                training_row(record, self.formats[file], self.output, key)
                for record, file, key in zip(*columns, strict=True)
            ]
            yield [self.convert(row) for row in rows] if self.convert else rows


def choose(pool: Step, selected: Step, wanted: str) -> Chosen:
    """`source` becomes `messages` when the input's files differ or their columns are not what trainers read."""
    formats = {path: Format(**found) for path, found in pool.require().extra["formats"].items()}
    common = common_format(formats.values())
    output = "messages" if wanted == "source" and (common is None or not common.native) else wanted
    return Chosen(pool, np.sort(selected.read_all([ROW])[ROW].to_numpy()), formats, output)


def write_outputs(context: Context, selection: Selection) -> dict[str, Any]:
    """Writes the selection: its rows, its ids, the scores of the whole pool, and what was rejected.

    Returns:
        `selected` (rows) and `format` (of data/).
    """
    store, config = context.outputs, context.config
    chosen = choose(context.pool, selection.selected, config.output.format)
    write_training_files(store, "data", chosen, "parquet", config.output.shard_rows)
    write_scores(context, selection)
    ranked = selection.selected.read_all([ID])[ID].to_pylist()
    store.write_bytes("ids.txt", "".join(f"{key}\n" for key in ranked).encode())
    store.copy_file(context.store, f"{context.pool.folder}/rejected.jsonl", "rejected.jsonl")
    return {"selected": len(ranked), "format": chosen.written.name}


def write_training_files(store: Store, folder: str, chosen: Chosen, container: str, shard_rows: int) -> int:
    """Writes `train-00000-of-0000N` files and nothing else into the folder; returns the number of rows.

    The Arrow types are decided over all rows first, so that every file has the same schema.
    """
    shape = None
    for batch in chosen.batches():
        shape = merge_shapes(batch, shape)
    assert shape is not None
    schema = shape_schema(shape)
    total = len(chosen.rows)
    files = max(1, -(-total // shard_rows))
    names, waiting = [], []
    for batch in with_end(chosen.batches()):
        waiting += batch or []
        while len(waiting) >= shard_rows or (batch is None and waiting):
            rows, waiting = waiting[:shard_rows], waiting[shard_rows:]
            name = f"train-{len(names):05d}-of-{files:05d}.{container}"
            names.append(name)
            store.write_bytes(f"{folder}/{name}", file_bytes(rows, schema, container))
    remove_others(store, folder, names)
    return total


def with_end(batches: Iterator[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]] | None]:
    yield from batches
    yield None


def file_bytes(rows: list[dict[str, Any]], schema: pa.Schema, container: str) -> bytes:
    if container == "parquet":
        return parquet_bytes(encode(rows, schema))
    data = jsonl_bytes(rows)
    return gzip.compress(data, mtime=0) if container == "jsonl.gz" else data


def remove_others(store: Store, folder: str, names: list[str]) -> None:
    """Drops files of an earlier selection: a loader would read them as part of this one."""
    for name in set(store.list(folder)) - set(names):
        store.remove(f"{folder}/{name}")


def write_scores(context: Context, selection: Selection) -> None:
    """`scores/`: every row of the pool with its scores, its rank (from 1) if selected, and why it is in or out."""
    chosen = selection.selected.read_all([ROW, "rank", "reason"])
    order = np.argsort(chosen[ROW].to_numpy(), kind="stable")
    rows_S, rank_S = chosen[ROW].to_numpy()[order], chosen["rank"].to_numpy()[order]
    reasons = [table.sort_by(ROW) for table in (chosen, selection.reasons) if table is not None]
    names = []
    for part in context.pool.require().parts:
        table = context.pool.read(part.index, [ROW, ID, FILE, LINE, SOURCE, TURNS, PROMPT, RESPONSE])
        rows = table[ROW].to_numpy()
        inside = np.isin(rows, rows_S)
        ranks = np.zeros(len(rows), dtype=np.int64)
        ranks[inside] = rank_S[np.searchsorted(rows_S, rows[inside])]
        columns = {name: table[name] for name in (ID, ROW, FILE, LINE, SOURCE, TURNS)}
        columns |= {f"{name}_chars": pc.utf8_length(table[name]) for name in (PROMPT, RESPONSE)}  # pyright: ignore
        if selection.scores is not None:
            scored = selection.scores.read(part.index)
            columns |= {name: scored[name] for name in scored.column_names if name != ROW}
        columns["rank"] = pa.array(ranks + 1, mask=~inside)
        columns["selected"] = pa.array(inside)
        default = pa.array([selection.default_reason] * len(rows), pa.string())
        if selection.score is not None:
            default = pc.if_else(pc.is_valid(columns[selection.score]), default, NO_SCORE)  # pyright: ignore
        columns["reason"] = reasons_of(rows, reasons, default)
        names.append(f"part-{part.index:05d}.parquet")
        context.outputs.write_bytes(f"scores/{names[-1]}", parquet_bytes(pa.table(columns)))
    remove_others(context.outputs, "scores", names)


def reasons_of(rows_M: np.ndarray, tables: Sequence[pa.Table], default_M: pa.Array) -> pa.Array:
    """(M,) text: the reason of each row in the first table that has one.

    Args:
        rows_M: the rows of a part, ascending.
        tables: (row, reason), ascending by row.
        default_M: of the rows that no table has.
    """
    found = pa.nulls(len(rows_M), pa.string())
    for table in tables:
        low, high = np.searchsorted(table[ROW].to_numpy(), [rows_M[0], rows_M[-1] + 1])
        near = table.slice(low, high - low)
        at_M = pc.index_in(pa.array(rows_M), near[ROW])  # pyright: ignore[reportAttributeAccessIssue]
        found = pc.coalesce(found, near["reason"].take(at_M).cast(pa.string()).combine_chunks())  # pyright: ignore
    return pc.coalesce(found, default_M)  # pyright: ignore[reportAttributeAccessIssue]


def export_selection(out: str, to: str, output: str, container: str, rows: str = SELECTED) -> int:
    """Writes the selection of a finished run, or one of its baselines, into a new folder.

    Args:
        out: folder of the run.
        to: the new folder.
        output: one of engine.data.writers.OUTPUT_FORMATS.
        container: one of CONTAINERS.
        rows: SELECTED, or the name of a baseline.

    Returns:
        rows written.

    Raises:
        ConfigError: an unknown container or baseline, or a folder that is not empty.
        DataError: the run is not finished, or was written before there were baselines to export.
    """
    if container not in CONTAINERS:
        raise ConfigError(f"unknown container {container!r}", fix=f"use one of {', '.join(CONTAINERS)}", code="E232")
    if rows not in SETS:
        raise ConfigError(f"unknown baseline {rows!r}", fix=f"use one of {', '.join(SETS[1:])}", code="E235")
    run, target = Store(out), Store(to)
    read_manifest(run)
    if target.list():
        raise ConfigError(f"{to} is not empty", fix="choose a new folder", code="E241")
    steps = run_steps(run, "ingest", rows)
    if rows not in steps:
        raise DataError(f"{out} has no baseline {rows}", fix="run it again: finished steps are reused", code="E445")
    chosen = choose(steps["ingest"], steps[rows], output)
    return write_training_files(target, "", chosen, container, 100_000)
