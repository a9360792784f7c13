"""PoolIndex: one array or many shards, in any order, give the same bytes; members rebuild their state from the log."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.algorithms import kmeans_methods
from engine.algorithms.kmeans import kmeans
from engine.algorithms.kmeans_methods import Method, fit
from engine.artifacts import Step, write_table
from engine.data.vectors import vectors_from_arrow, vectors_to_arrow
from engine.local import LocalRuntime
from engine.shards import PoolIndex, PoolShard
from engine.store import Store

ROWS, DIM, PART_ROWS = 700, 24, 64


def make_steps(folder: Path, order: np.ndarray) -> tuple[Step, Step]:
    """A pool of random unit vectors whose ids follow the content, in the given order."""
    x = np.random.default_rng(0).normal(size=(ROWS, DIM))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    x[5] = x[6]  # identical vectors under different ids
    ids = np.array([f"{np.random.default_rng(i).integers(1 << 62):016x}{i:016x}" for i in range(ROWS)])
    store = Store(folder)
    pool, vectors = Step(store, "ingest", {}), Step(store, "embed", {})
    for index, start in enumerate(range(0, ROWS, PART_ROWS)):
        at = order[start : start + PART_ROWS]
        rows = np.arange(start, start + len(at))
        pool.commit(index, pa.table({"row": rows, "id": ids[at].tolist()}))
        vectors.commit(index, pa.table({"row": rows, "vector": vectors_to_arrow(x[at])}))
    pool.finish(started=time.monotonic(), rows=ROWS)
    vectors.finish(started=time.monotonic(), rows=ROWS)
    return pool, vectors


def make_index(folder: Path, recorder: Any, shards: int, order: np.ndarray | None = None) -> PoolIndex:
    pool, vectors = make_steps(folder, np.arange(ROWS) if order is None else order)
    return PoolIndex(LocalRuntime(recorder, shards=shards), pool, vectors)


def log_entry(index: PoolIndex, store: Store, number: int, rows: np.ndarray) -> Step:
    """Commits an entry that makes half of the rows hard."""
    entry = Step(store, f"rounds/{number}/labels", {"rows": rows.tolist()})
    columns = [pa.array(rows), pa.array(np.arange(len(rows)) % 2 == 0), index.vectors_arrow(rows)]
    write_table(entry, pa.table(columns, names=["row", "hard", "vector"]), 1000)
    return entry


def walk(index: PoolIndex, store: Store) -> dict[str, Any]:
    """Everything a recipe asks of an index, as comparable values keyed by id word."""
    result = kmeans(index, 12, seed=3, iterations=8)
    drawn = index.draw(result.centroids_KD, result.counts_K, 200, "equal", 3, "diverse")
    first = drawn.rows[:40]
    index.remember(log_entry(index, store, 0, first))
    again = kmeans(index, 12, seed=3, iterations=8)
    left = index.draw(again.centroids_KD, again.counts_K, 150, "proportional", 3, "later")
    nearest = index.nearest(index.lookup(first)[1], first)
    return {
        "centroids": result.centroids_KD.tobytes(),
        "inertia": result.inertia,
        "drawn": drawn.words.tobytes(),
        "clusters": drawn.cluster.tobytes(),
        "again": again.centroids_KD.tobytes(),
        "left": left.words.tobytes(),
        "similarity": left.similarity.tobytes(),
        "nearest": index.lookup(nearest)[0].words.tobytes(),
        "count": index.count(),
    }


@pytest.mark.parametrize("shards", [2, 3, 7, 11])
def test_any_number_of_shards_gives_the_same_bytes(tmp_path: Path, recorder: Any, shards: int) -> None:
    one = walk(make_index(tmp_path / "a", recorder, 1), Store(tmp_path / "a"))
    many = walk(make_index(tmp_path / "b", recorder, shards), Store(tmp_path / "b"))
    assert one == many
    assert one["count"] == ROWS - 40


def test_permuted_rows_give_the_same_bytes(tmp_path: Path, recorder: Any) -> None:
    order = np.random.default_rng(1).permutation(ROWS)
    one = walk(make_index(tmp_path / "a", recorder, 1), Store(tmp_path / "a"))
    other = walk(make_index(tmp_path / "b", recorder, 3, order), Store(tmp_path / "b"))
    assert one == other


def test_lookup_keeps_the_order_asked_for(tmp_path: Path, recorder: Any) -> None:
    index = make_index(tmp_path, recorder, 3)
    wanted = np.array([650, 3, 64, 63, 0])
    rows, x = index.lookup(wanted)
    assert rows.rows.tolist() == wanted.tolist()
    assert x.tobytes() == vectors_from_arrow(index.vectors_arrow(wanted)).tobytes()


def test_a_member_made_late_replays_the_log(tmp_path: Path, recorder: Any) -> None:
    index = make_index(tmp_path, recorder, 1)
    store = Store(tmp_path)
    log = [log_entry(index, store, number, np.arange(number * 50, number * 50 + 30)) for number in range(3)]
    pool, vectors = make_steps(tmp_path / "again", np.arange(ROWS))
    parts = list(range(len(pool.require().parts)))
    steady, late = PoolShard(pool, vectors, parts, 1), PoolShard(pool, vectors, parts, 1)
    for number in range(1, 4):
        steady.count(log[:number])
    assert late.count(log) == steady.count(log) == ROWS - 90
    assert late.best_N.tobytes() == steady.best_N.tobytes()


def test_similarity_is_brute_force_without_self(tmp_path: Path, recorder: Any) -> None:
    index = make_index(tmp_path, recorder, 3)
    hard = np.array([5, 17, 300])
    entry = Step(Store(tmp_path), "rounds/0/labels", {})
    columns = [pa.array(hard), pa.array([True] * 3), index.vectors_arrow(hard)]
    write_table(entry, pa.table(columns, names=["row", "hard", "vector"]), 10)
    index.remember(entry)
    rows, x = index.lookup(np.arange(ROWS))
    products = x.astype(np.float64) @ x[hard].astype(np.float64).T
    products[hard, np.arange(3)] = -np.inf
    assert np.abs(rows.similarity - np.clip(products.max(axis=1), 0, 1)).max() < 1e-6
    assert rows.similarity[6] > 0.999  # row 6 equals row 5, which is hard
    assert rows.similarity[5] < 0.999  # row 5 must not match itself


@pytest.mark.parametrize("method", ["sample", "two_level"])
def test_other_forms_of_k_means_give_the_same_bytes(tmp_path: Path, recorder: Any, monkeypatch: Any, method: Method):
    monkeypatch.setattr(kmeans_methods, "LEAST_ROWS", 100)
    monkeypatch.setattr(kmeans_methods, "ROWS_PER_CENTROID", 8)
    monkeypatch.setattr(kmeans_methods, "GATHER_ROWS", 150)  # several batches
    found = []
    for shards in (1, 3, 11):
        index = make_index(tmp_path / str(shards), recorder, shards)
        first = fit(index, 30, method, seed=3, iterations=4)
        index.remember(log_entry(index, Store(tmp_path / str(shards)), 0, np.arange(40)))
        later = fit(index, 30, method, seed=3, iterations=4)
        assert first.counts_K.sum() == ROWS and later.counts_K.sum() == ROWS - 40
        found.append([(r.centroids_KD.tobytes(), r.counts_K.tobytes(), r.inertia) for r in (first, later)])
    assert found[0] == found[1] == found[2]
