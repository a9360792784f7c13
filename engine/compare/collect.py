"""Finished runs side by side: which rows each one chose of the same pool, and what the run cost.

All it reads of a run is `run.json` and the columns of `scores/`; rows are joined by id, so the runs may have read the
pool in any order, and their pools may differ. It draws nothing (engine/compare/view.py and page.py do).
"""

# Shape letters: N rows of all pools together, M methods.

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.algorithms.baselines import balanced_draw, random_draw
from engine.algorithms.ranking import top_rows
from engine.errors import ConfigError
from engine.lineage import steps_of
from engine.run_folder import METHODS, finished_runs
from engine.schema import ID, SOURCE, TURNS, id_words
from engine.store import Store

BASELINES = ("random", "balanced_random", "longest")
LENGTHS = ("prompt_chars", "response_chars", TURNS)


@dataclass(frozen=True)
class Pool:
    """The rows of all runs, by ascending id word."""

    words_N: np.ndarray  # uint64
    source_N: np.ndarray  # int64, place in `sources`
    sources: list[str]  # ascending
    lengths: dict[str, np.ndarray]  # LENGTHS -> (N,) int64


@dataclass(frozen=True)
class Choice:
    """What one method chose.

    Attributes:
        name: as shown; unique.
        rank_N: (N,) int64, the place of each row it selected, from 0; -1 for the others.
        score_N: (N,) float64, what it ranked by; nan where there is none; None for methods without a score.
        facts: out, method, seconds, calls, usd; empty for a baseline.
    """

    name: str
    rank_N: np.ndarray
    score_N: np.ndarray | None
    facts: dict[str, Any]

    @property
    def chosen_N(self) -> np.ndarray:
        return self.rank_N >= 0

    @property
    def rows(self) -> int:
        return int(np.count_nonzero(self.chosen_N))


def find_runs(outs: Sequence[str]) -> list[Store]:
    """The finished runs that folders stand for; a run of several methods stands for all of them.

    Raises:
        DataError: E441, there is no finished run in a folder.
        ConfigError: E225, fewer than one run, or the same one twice.
    """
    found = [store for out in outs for store in finished_runs(out)]
    roots = [store.root for store in found]
    if not roots or len(set(roots)) < len(roots):
        raise ConfigError("give at least one run, and each run once", fix="iterselect compare OUT1 OUT2", code="E225")
    return found


def collect(stores: Sequence[Store]) -> tuple[Pool, list[Choice], list[str]]:
    """Reads the runs.

    Returns:
        The pool, a choice per run and per baseline, and what the reader should know about the pools.
    """
    records = [json.loads(store.read_bytes("run.json")) for store in stores]
    tables = [read_scores(store, record["summary"].get("score")) for store, record in zip(stores, records, strict=True)]
    pool = union_of(tables)
    names = unique_names(stores, records)
    choices, notes = [], []
    for store, record, table, name in zip(stores, records, tables, names, strict=True):
        at_R = np.searchsorted(pool.words_N, table.words_R)
        rank_N = np.full(len(pool.words_N), -1, dtype=np.int64)
        rank_N[at_R] = table.rank_R
        score_N = None
        if table.score_R is not None:
            score_N = np.full(len(pool.words_N), np.nan)
            score_N[at_R] = table.score_R
        if len(at_R) < len(pool.words_N):
            notes.append(f"{name} saw {len(at_R):,} of the {len(pool.words_N):,} rows of all pools")
        choices.append(Choice(name, rank_N, score_N, run_facts(store, record)))
    seed = int(records[0]["config"]["seed"])
    return pool, [*choices, *baselines(pool, choices, seed)], notes


def run_facts(store: Store, record: dict[str, Any]) -> dict[str, Any]:
    """What a run was, and what it cost: seconds of all steps it stands on, whoever made them, paid calls, USD."""
    summary = record["summary"]
    calls = summary.get("calls") or {}
    return {
        "out": store.root,
        "method": summary["recipe"],
        "seconds": round(sum(step.require().seconds for step in steps_of(store)), 2),
        "calls": calls.get("calls", 0),
        "usd": calls.get("usd", 0.0),
    }


def baselines(pool: Pool, choices: Sequence[Choice], seed: int) -> list[Choice]:
    """Random, balanced random and longest, as many rows as the first run, unless a run is one of them."""
    num, taken = choices[0].rows, {choice.facts["method"] for choice in choices}
    drawn = {
        "random": random_draw(pool.words_N, seed, num),
        "balanced_random": balanced_draw(pool.words_N, pool.source_N, seed, num),
        "longest": top_rows(pool.lengths["response_chars"].astype(np.float64), pool.words_N, num),
    }
    found = []
    for name in BASELINES:
        if name not in taken:
            rank_N = np.full(len(pool.words_N), -1, dtype=np.int64)
            rank_N[drawn[name]] = np.arange(len(drawn[name]))
            found.append(Choice(name, rank_N, None, {}))
    return found


@dataclass(frozen=True)
class Scores:
    """What `scores/` of one run says of its R rows."""

    words_R: np.ndarray
    rank_R: np.ndarray
    score_R: np.ndarray | None
    source_R: pa.Array
    lengths: dict[str, np.ndarray]


def read_scores(store: Store, score: str | None) -> Scores:
    """The columns that a comparison needs, of all parts; no texts."""
    columns = [ID, SOURCE, *LENGTHS, "rank", *([score] if score else [])]
    words, pieces = [], []
    for name in store.list("scores"):
        table = pq.read_table(store.open_read(f"scores/{name}"), columns=columns)
        words.append(id_words(table[ID]))
        pieces.append(table.drop_columns([ID]))
    table = pa.concat_tables(pieces).combine_chunks()
    return Scores(
        np.concatenate(words),
        table["rank"].fill_null(0).to_numpy() - 1,
        table[score].to_numpy(zero_copy_only=False).astype(np.float64) if score else None,
        table[SOURCE].combine_chunks(),
        {name: table[name].to_numpy().astype(np.int64) for name in LENGTHS},
    )


def union_of(tables: Sequence[Scores]) -> Pool:
    """All rows once, in the order of their ids."""
    words, first = np.unique(np.concatenate([table.words_R for table in tables]), return_index=True)
    sources = pa.concat_arrays([table.source_R for table in tables]).take(pa.array(first)).to_pylist()
    names = sorted(set(sources))
    place = {name: k for k, name in enumerate(names)}
    lengths = {name: np.concatenate([table.lengths[name] for table in tables])[first] for name in LENGTHS}
    return Pool(words, np.array([place[name] for name in sources], dtype=np.int64), names, lengths)


def unique_names(stores: Sequence[Store], records: Sequence[dict[str, Any]]) -> list[str]:
    """The folder's name where a run of several methods gave it, else the method; numbered where that is not enough."""
    names = []
    for store, record in zip(stores, records, strict=True):
        parts = store.root.rstrip("/").split("/")
        names.append(parts[-1] if len(parts) > 1 and parts[-2] == METHODS else record["summary"]["recipe"])
    if len(set(names)) < len(names):
        names = [f"{name} ({store.root.rstrip('/').split('/')[-1]})" for name, store in zip(names, stores, strict=True)]
    return [name if names.count(name) == 1 else f"{name} {k + 1}" for k, name in enumerate(names)]
