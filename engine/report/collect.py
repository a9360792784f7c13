"""What a report needs of a finished run, read part by part: exact totals, and samples of bounded size.

Samples are drawn by the hash of a row's id, so the same run gives the same report, and a pool that is no larger than
the sample is in it whole. It reads `run.json` and `scores/`; texts and vectors are read elsewhere, for few rows.
"""

# Shape letters: M rows of a part, K clusters.

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.artifacts import Step
from engine.run_folder import run_steps
from engine.schema import FILE, HARD, ID, LINE, ROW, SOURCE, TURNS, id_words, seeded_hash
from engine.store import Store

SAMPLE_ROWS = 100_000  # of the pool, and again of the selection, for the charts
LISTED_ROWS = 150  # candidates for the table of examples, of each kind
MOST_REASONS = 1_000  # different reasons counted; rarer ones become "other reasons"
CHARS = ("prompt_chars", "response_chars")
_CORE = (ID, ROW, FILE, LINE, SOURCE, TURNS, *CHARS, "rank", "selected", "reason")


class Smallest:
    """The rows with the smallest keys among all that were added, in bounded memory.

    Args:
        num: rows kept.
    """

    def __init__(self, num: int) -> None:
        self.num = num
        self._tables: list[pa.Table] = []
        self._keys: list[np.ndarray] = []
        self._held = 0
        self._largest: Any = None  # key that a row must be below to be kept; None while there is room

    def add(self, table: pa.Table, keys_M: np.ndarray) -> None:
        """Offers rows. Equal keys: those added first."""
        if self._largest is not None:
            near = np.flatnonzero(keys_M < self._largest)
            table, keys_M = table.take(pa.array(near)), keys_M[near]
        self._tables.append(table)
        self._keys.append(keys_M)
        self._held += len(keys_M)
        if self._held > 2 * self.num:
            self._shrink()

    def rows(self) -> pa.Table:
        """The rows kept, smallest key first."""
        self._shrink()
        return self._tables[0]

    def _shrink(self) -> None:
        keys = np.concatenate(self._keys)
        order = np.argsort(keys, kind="stable")[: self.num]
        self._tables = [pa.concat_tables(self._tables).take(pa.array(order)).combine_chunks()]
        self._keys, self._held = [keys[order]], len(order)
        self._largest = keys[order[-1]] if len(order) == self.num else None


@dataclass
class Totals:
    """Exact figures of the whole pool, and of the selection."""

    rows: int = 0
    selected: int = 0
    chars: int = 0  # of prompts and responses
    selected_chars: int = 0

    def add(self, table: pa.Table, inside_M: np.ndarray) -> None:
        chars_M = sum(table[name].to_numpy().astype(np.int64) for name in CHARS)
        assert isinstance(chars_M, np.ndarray)
        self.rows += table.num_rows
        self.selected += int(np.count_nonzero(inside_M))
        self.chars += int(chars_M.sum())
        self.selected_chars += int(chars_M[inside_M].sum())


@dataclass(frozen=True)
class Collected:
    """A finished run, as far as it is read once.

    Attributes:
        pool, selected: samples of at most SAMPLE_ROWS rows, by hash, with the columns of `scores/`.
        listed: kind -> rows that the table of examples may show, the most telling first.
        clusters: (2, K) rows of each cluster in the pool and in the selection, exact; None without clusters.
        judged: rows with a label, their columns of `scores/` and `hard`; None for methods that label none.
        left_out: reason -> rows of the pool that were not selected, exact; numbers in a reason are written as n.
    """

    record: dict[str, Any]
    steps: dict[str, Step]
    totals: Totals
    pool: pa.Table
    selected: pa.Table
    listed: dict[str, pa.Table]
    clusters: np.ndarray | None
    judged: pa.Table | None
    left_out: Counter[str]
    score: str | None  # column the selection ranks by
    cluster: str | None  # column of cluster numbers

    @property
    def sampled(self) -> bool:
        return self.pool.num_rows < self.totals.rows or self.selected.num_rows < self.totals.selected

    @property
    def config(self) -> dict[str, Any]:
        return self.record["config"]

    @property
    def summary(self) -> dict[str, Any]:
        return self.record["summary"]


def collect(run: Store, sample_rows: int = SAMPLE_ROWS) -> Collected:
    """Reads a finished run in one pass over `scores/`.

    Args:
        sample_rows: most rows of each of the two samples.
    """
    record = json.loads(run.read_bytes("run.json"))
    score, seed = record["summary"].get("score"), int(record["config"]["seed"])
    cluster = cluster_column(record["config"]["recipe"])
    totals, reasons = Totals(), Counter[str]()
    samples = {name: Smallest(sample_rows) for name in ("pool", "selected")}
    kinds = ("top", "cut", "rejected", *(["below"] if score is not None else []))
    listed = {name: Smallest(LISTED_ROWS) for name in kinds}
    counts_2K = np.zeros((2, 0), dtype=np.int64)
    steps = run_steps(run)
    labels, judged = labels_of(steps), []
    for name in run.list("scores"):
        table = plain_columns(pq.read_table(run.open_read(f"scores/{name}")))
        inside_M = table["selected"].to_numpy()
        totals.add(table, inside_M)
        count_reasons(reasons, table.filter(pa.array(~inside_M)))
        if cluster is not None and cluster in table.column_names:
            counts_2K = add_clusters(counts_2K, table[cluster], inside_M)
        if labels is not None:
            judged.append(table.filter(pc.is_in(table[ROW], labels[ROW].combine_chunks())))  # pyright: ignore
        offer(samples, listed, table, inside_M, score, seed)
    has_clusters = bool(counts_2K.size)
    return Collected(
        record=record,
        steps=steps,
        totals=totals,
        pool=samples["pool"].rows(),
        selected=samples["selected"].rows(),
        listed={name: kept.rows() for name, kept in listed.items()},
        clusters=counts_2K if has_clusters else None,
        judged=with_labels(judged, labels) if labels is not None else None,
        left_out=reasons,
        score=score,
        cluster=cluster if has_clusters else None,
    )


def labels_of(steps: Mapping[str, Step]) -> pa.Table | None:
    """Row and `hard` of every row that a round labelled; None without rounds."""
    found = [step for name, step in steps.items() if name.startswith("rounds/") and name.endswith("/labels")]
    tables = [step.read_all([ROW, HARD]) for step in found if step.require().rows]
    return pa.concat_tables(tables) if tables else None


def with_labels(pieces: list[pa.Table], labels: pa.Table) -> pa.Table:
    table = pa.concat_tables(pieces)
    at = pc.index_in(table[ROW], labels[ROW].combine_chunks())  # pyright: ignore[reportAttributeAccessIssue]
    return table.append_column(HARD, labels[HARD].take(at))


def cluster_column(recipe: dict[str, Any]) -> str:
    """The column of cluster numbers: a composition may have given it a name of its own."""
    scores = recipe.get("scores") or {}
    return next((name for name, score in scores.items() if score.get("kind") == "cluster"), "cluster")


def plain_columns(table: pa.Table) -> pa.Table:
    """The columns every row has, and the method's that are numbers."""
    numbers = [field.name for field in table.schema if is_number(field.type) and field.name not in _CORE]
    return table.select([*_CORE, *numbers])


def is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def offer(
    samples: dict[str, Smallest],
    listed: dict[str, Smallest],
    table: pa.Table,
    inside_M: np.ndarray,
    score: str | None,
    seed: int,
) -> None:
    """Offers the rows of a part to the samples and to the candidates of each kind."""
    hash_M = seeded_hash(id_words(table[ID]), seed, "report")
    selected, rest = table.filter(pa.array(inside_M)), table.filter(pa.array(~inside_M))
    samples["pool"].add(table, hash_M)
    samples["selected"].add(selected, hash_M[inside_M])
    rank = selected["rank"].to_numpy()
    listed["top"].add(selected, rank)
    listed["cut"].add(selected, -rank)
    if score is None:
        listed["rejected"].add(rest, hash_M[~inside_M])
        return
    value = numbers_of(rest, score)
    scored = np.isfinite(value)
    rest, value = rest.filter(pa.array(scored)), value[scored]
    listed["below"].add(rest, -value)
    listed["rejected"].add(rest, value)


def numbers_of(table: pa.Table, column: str) -> np.ndarray:
    """(M,) float64, nan where there is no value."""
    return table[column].cast(pa.float64()).fill_null(float("nan")).to_numpy()


def count_reasons(counts: Counter[str], left_out: pa.Table) -> None:
    """Adds the reasons of rows that were not selected; what differs only in numbers is one reason."""
    texts = pc.utf8_slice_codeunits(left_out["reason"], 0, 200)  # pyright: ignore[reportAttributeAccessIssue]
    plain = pc.replace_substring_regex(texts, r"\d+(\.\d+)?", "n")  # pyright: ignore[reportAttributeAccessIssue]
    for entry in plain.value_counts().to_pylist():
        counts[entry["values"]] += entry["counts"]
    rare = counts.most_common()[MOST_REASONS:]
    for reason, count in rare:
        del counts[reason]
        counts["other reasons"] += count


def add_clusters(counts_2K: np.ndarray, column: pa.ChunkedArray, inside_M: np.ndarray) -> np.ndarray:
    """Rows per cluster so far, in the pool and in the selection; rows without a cluster are left out."""
    labels_M = column.fill_null(-1).to_numpy().astype(np.int64)
    size = max(counts_2K.shape[1], int(labels_M.max(initial=-1)) + 1)
    found_2K = np.zeros((2, size), dtype=np.int64)
    found_2K[:, : counts_2K.shape[1]] = counts_2K
    for line, labels in enumerate((labels_M, labels_M[inside_M])):
        found_2K[line] += np.bincount(labels[labels >= 0], minlength=size)
    return found_2K
