"""Round robin against whole rankings, for any shards, any order of the rows, and heads of any width."""

from __future__ import annotations

import numpy as np
import pytest

from engine.algorithms import round_robin as module
from engine.algorithms.round_robin import Taken, round_robin
from engine.algorithms.similarity import Nearest, merge_nearest, nearest_rows


def units(draw: np.random.Generator, num: int) -> np.ndarray:
    x = draw.normal(size=(num, 16))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def plain(x: np.ndarray, words: np.ndarray, queries: np.ndarray, num: int) -> list[int]:
    """Every query's whole ranking, in turns."""
    similarity = queries.astype(np.float64) @ x.astype(np.float64).T
    rankings = [list(np.lexsort((words, -row))) for row in similarity]
    taken: list[int] = []
    while len(taken) < min(num, len(x)):
        ranking = rankings[len(taken) % len(queries)]
        taken.append(int(next(row for row in ranking if row not in taken)))
    return taken


def run(x: np.ndarray, words: np.ndarray, queries: np.ndarray, num: int, shards: int = 1) -> tuple[Taken, int]:
    asked = []

    def nearest(taken_M: np.ndarray, k: int) -> Nearest:
        asked.append(k)
        held = np.array_split(np.arange(len(x)), shards)
        none = np.full(len(queries), -1)
        found = [nearest_rows(x[at], at, words[at], queries, none, k, ~np.isin(at, taken_M)) for at in held if len(at)]
        return merge_nearest(found, k)

    return round_robin(nearest, len(queries), num), len(asked)


@pytest.mark.parametrize("num_queries", [1, 3, 40])
@pytest.mark.parametrize("num", [1, 7, 120, 150, 200])
def test_equals_whole_rankings(num_queries: int, num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(num_queries)
    x, queries = units(draw, 150), units(draw, num_queries)
    x[20:40] = x[:20]  # ties, which ids break
    words = draw.permutation(150).astype(np.uint64)
    expected = plain(x, words, queries, num)
    found, _ = run(x, words, queries, num, shards=3)
    assert found.rows_M.tolist() == expected
    assert found.queries_M.tolist() == [k % num_queries for k in range(len(expected))]
    monkeypatch.setattr(module, "LEAST_WIDTH", 1)
    monkeypatch.setattr(module, "MOST_ENTRIES", num_queries * 2)
    again, rounds = run(x, words, queries, num)
    assert again.rows_M.tolist() == expected
    np.testing.assert_array_equal(again.similarity_M, found.similarity_M)
    assert num < 120 or rounds > 3


def test_queries_that_want_the_same_rows_ask_again() -> None:
    draw = np.random.default_rng(5)
    x, words = units(draw, 400), np.arange(400, dtype=np.uint64)
    queries = np.repeat(units(draw, 1), 30, axis=0)
    found, rounds = run(x, words, queries, 100)
    assert found.rows_M.tolist() == plain(x, words, queries, 100) and rounds > 1


def test_the_order_of_the_rows_does_not_matter() -> None:
    draw = np.random.default_rng(6)
    x, queries, words = units(draw, 90), units(draw, 4), draw.permutation(90).astype(np.uint64)
    order = draw.permutation(90)
    one, _ = run(x, words, queries, 50)
    other, _ = run(x[order], words[order], queries, 50, shards=2)
    assert words[one.rows_M].tolist() == words[order][other.rows_M].tolist()
