"""Similarity to the hard set and nearest rows: equal to brute force, the row itself excluded, increments harmless."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.algorithms.hard_similarity import HARD_BLOCK, clip_similarity, max_similarity, update_best
from engine.algorithms.similarity import merge_nearest, nearest_rows
from engine.errors import DataError, StepError

# N rows, D dimensions, H hard rows, Q queries


def unit_f16(num_rows: int, dim: int, seed: int) -> np.ndarray:
    x_ND = np.random.default_rng(seed).standard_normal((num_rows, dim))
    return (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float16)


def brute(x_ND: np.ndarray, rows_N: np.ndarray, hard_HD: np.ndarray, hard_rows_H: np.ndarray) -> np.ndarray:
    scores_NH = x_ND.astype(np.float64) @ hard_HD.astype(np.float64).T
    scores_NH[rows_N[:, None] == hard_rows_H[None, :]] = -np.inf
    return scores_NH.max(axis=1, initial=-np.inf)


@pytest.fixture(scope="module")
def pool() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors, row numbers and the positions of hard rows; some vectors occur twice."""
    x_ND = unit_f16(3000, 48, seed=0)
    x_ND[100:110] = x_ND[0:10]
    rows_N = np.random.default_rng(1).permutation(10_000)[:3000]
    hard = np.concatenate([np.arange(0, 20), np.random.default_rng(2).permutation(np.arange(200, 3000))[:400]])
    return x_ND, rows_N, hard


def test_equals_brute_force_without_self(pool):
    x_ND, rows_N, hard = pool
    best_N = max_similarity(x_ND, rows_N, x_ND[hard], rows_N[hard])
    assert best_N.dtype == np.float32
    assert np.abs(best_N - brute(x_ND, rows_N, x_ND[hard], rows_N[hard])).max() < 1e-6
    assert best_N[15] < 0.99  # hard itself, and no copy of it is hard
    assert best_N[105] > 0.99  # a copy of hard row 5
    twins = np.array([5, 105])
    assert max_similarity(x_ND[twins], rows_N[twins], x_ND[twins], rows_N[twins]).min() > 0.99


def test_no_hard_row_or_only_itself_gives_zero_after_clipping(pool):
    x_ND, rows_N, _ = pool
    assert (max_similarity(x_ND, rows_N, x_ND[:0], rows_N[:0]) == -np.inf).all()
    alone = max_similarity(x_ND[:5], rows_N[:5], x_ND[:1], rows_N[:1])
    assert alone[0] == -np.inf
    assert np.isfinite(alone[1:]).all()
    assert clip_similarity(alone)[0] == 0.0
    assert clip_similarity(np.array([-0.5, 0.5, 1.0005], np.float32)).tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(StepError, match="NaN"):
        clip_similarity(np.array([0.1, np.nan], np.float32))


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 5))
def test_any_increments_and_any_sharding_give_the_same_bits(pool, seed: int, num_steps: int, num_shards: int):
    x_ND, rows_N, hard = pool
    expected_N = max_similarity(x_ND, rows_N, x_ND[hard], rows_N[hard])
    rng = np.random.default_rng(seed)
    for piece in np.array_split(rng.permutation(len(x_ND)), num_shards):
        best = np.full(len(piece), -np.inf, np.float32)
        for step in np.split(rng.permutation(hard), np.sort(rng.choice(len(hard), num_steps - 1))):
            best = update_best(best, x_ND[piece], rows_N[piece], x_ND[step], rows_N[step])
            again = update_best(best, x_ND[piece], rows_N[piece], x_ND[step], rows_N[step])
            assert again.tobytes() == best.tobytes()
        assert best.tobytes() == expected_N[piece].tobytes()


@pytest.mark.parametrize("num_hard", [1, 27, 300])
def test_the_order_and_the_sharding_of_wide_vectors_leave_no_trace(num_hard: int) -> None:
    """384 columns, as of real encoders: products of few columns round by the place of a row on some processors."""
    x_ND, rows_N = unit_f16(1500, 384, 3), np.arange(1500)
    hard = np.random.default_rng(0).permutation(1500)[:num_hard]
    whole_N = max_similarity(x_ND, rows_N, x_ND[hard], hard)
    turned = np.random.default_rng(1).permutation(1500)
    assert np.array_equal(max_similarity(x_ND[turned], rows_N[turned], x_ND[hard], hard), whole_N[turned])
    pieces = np.array_split(rows_N, 4)
    parts = [max_similarity(x_ND[piece], piece, x_ND[hard], hard) for piece in pieces]
    assert np.array_equal(np.concatenate(parts), whole_N)


def test_near_twins_are_told_apart_without_rounding() -> None:
    """Ten vectors so near to a row that float32 cannot order them, some of them the row itself."""
    base = unit_f16(40, 384, 5)
    x_ND = np.repeat(base, 10, axis=0)
    x_ND[np.arange(400), np.arange(400) % 384] += np.float16(2**-14) * (np.arange(400) % 7).astype(np.float16)
    rows_N = np.arange(400)
    exact_NN = np.rint(x_ND.astype(np.float64) @ x_ND.astype(np.float64).T * 2.0**32)
    np.fill_diagonal(exact_NN, -np.inf)
    expected_N = (exact_NN.max(axis=1) / 2.0**32).astype(np.float32)
    assert np.array_equal(max_similarity(x_ND, rows_N, x_ND, rows_N), expected_N)
    halves = max_similarity(x_ND[::2], rows_N[::2], x_ND[1::2], rows_N[1::2])  # rows that are not in the hard set
    assert np.array_equal(halves, (exact_NN[::2, 1::2].max(axis=1) / 2.0**32).astype(np.float32))


def test_one_hard_row_at_a_time(pool):
    x_ND, rows_N, hard = pool
    best = np.full(len(x_ND), -np.inf, np.float32)
    for position in hard[:12]:
        best = update_best(best, x_ND, rows_N, x_ND[position : position + 1], rows_N[position : position + 1])
    expected = max_similarity(x_ND, rows_N, x_ND[hard[:12]], rows_N[hard[:12]])
    assert best.tobytes() == expected.tobytes()


def test_repeated_hard_rows_count_once(pool):
    x_ND, rows_N, hard = pool
    doubled = np.concatenate([hard, hard, hard])
    left = max_similarity(x_ND, rows_N, x_ND[doubled], rows_N[doubled])
    assert left.tobytes() == max_similarity(x_ND, rows_N, x_ND[hard], rows_N[hard]).tobytes()


def test_more_hard_rows_than_one_block():
    hard_HD, x_ND = unit_f16(HARD_BLOCK + 100, 8, seed=3), unit_f16(50, 8, seed=4)
    rows_N, hard_rows_H = np.arange(50) + HARD_BLOCK + 50, np.arange(HARD_BLOCK + 100)
    x_ND[:] = hard_HD[rows_N]
    best_N = max_similarity(x_ND, rows_N, hard_HD, hard_rows_H)
    assert np.abs(best_N - brute(x_ND, rows_N, hard_HD, hard_rows_H)).max() < 1e-6


def test_refuses_foreign_vectors(pool):
    x_ND, rows_N, _ = pool
    with pytest.raises(DataError, match="48 dimensions, hard vectors 8"):
        max_similarity(x_ND, rows_N, unit_f16(2, 8, 0), np.arange(2))
    with pytest.raises(DataError, match="hard vectors must be"):
        max_similarity(x_ND, rows_N, x_ND[:2].astype(np.float32), rows_N[:2])


def brute_nearest(x_ND, rows_N, words_N, queries_QD, query_rows_Q, k):
    scores_QN = queries_QD.astype(np.float64) @ x_ND.astype(np.float64).T
    scores_QN[query_rows_Q[:, None] == rows_N[None, :]] = -np.inf
    order_QN = np.lexsort((np.broadcast_to(words_N, scores_QN.shape), -scores_QN.round(6)), axis=1)[:, :k]
    return np.take_along_axis(scores_QN, order_QN, axis=1), rows_N[order_QN]


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("num_shards", [1, 2, 7])
def test_nearest_rows_equal_brute_force_for_any_sharding(pool, k: int, num_shards: int):
    x_ND, rows_N, _ = pool
    words_N = np.random.default_rng(5).integers(0, 2**64, len(x_ND), dtype=np.uint64)
    queries = np.random.default_rng(6).permutation(len(x_ND))[:300]
    queries[:3] = [0, 5, 105]
    order = np.random.default_rng(k).permutation(len(x_ND))
    shards = [
        nearest_rows(x_ND[piece], rows_N[piece], words_N[piece], x_ND[queries], rows_N[queries], k)
        for piece in np.array_split(order, num_shards)
    ]
    merged = merge_nearest(shards, k)
    whole = nearest_rows(x_ND, rows_N, words_N, x_ND[queries], rows_N[queries], k)
    for left, right in zip(merged, whole, strict=True):
        assert left.tobytes() == right.tobytes()
    similarity_Qk, rows_Qk = brute_nearest(x_ND, rows_N, words_N, x_ND[queries], rows_N[queries], k)
    assert np.array_equal(merged.rows_Qk, rows_Qk)
    assert np.abs(merged.similarity_Qk - similarity_Qk).max() < 1e-6
    assert merged.rows_Qk[1, 0] == rows_N[105]
    assert merged.rows_Qk[2, 0] == rows_N[5]


def test_ties_at_the_last_place_go_to_the_smaller_id():
    x_ND = np.repeat(unit_f16(1, 16, 0), 5000, axis=0)
    rows_N = np.arange(5000)
    words_N = np.random.default_rng(0).permutation(5000).astype(np.uint64)
    found = nearest_rows(x_ND, rows_N, words_N, x_ND[:2], rows_N[:2], 4)
    for query in range(2):
        others = words_N[rows_N != query]
        assert found.words_Qk[query].tolist() == sorted(others.tolist())[:4]
        assert (words_N[found.rows_Qk[query]] == found.words_Qk[query]).all()


def test_fewer_rows_than_neighbours():
    x_ND, rows_N, words_N = unit_f16(3, 16, 0), np.arange(3), np.arange(3, dtype=np.uint64)
    found = nearest_rows(x_ND, rows_N, words_N, x_ND[:1], rows_N[:1], 5)
    assert sorted(found.rows_Qk[0].tolist()) == [-1, -1, -1, 1, 2]
    assert (found.similarity_Qk[0, 2:] == -np.inf).all()
    nothing = nearest_rows(x_ND[:0], rows_N[:0], words_N[:0], x_ND, np.full(3, -1), 5)
    assert merge_nearest([found, first_query(nothing)], 5).rows_Qk.tobytes() == found.rows_Qk.tobytes()
    assert nearest_rows(x_ND, rows_N, words_N, x_ND[:0], rows_N[:0], 2).rows_Qk.shape == (0, 2)


def first_query(found):
    return type(found)(*(array[:1] for array in found))
