"""Greedy selectors equal a plain loop over the definition, one pick at a time, for any sharding, order and block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.algorithms import facility, greedy
from engine.algorithms.exact import (
    ONE,
    check_units,
    largest_similarity,
    similarities,
    similarity_to_sum,
    vector_sum,
)
from engine.algorithms.facility import ArrayFacility, MergedFacility, Sampling, check_rows, facility_location
from engine.algorithms.greedy import ArrayGreedy, MergedGreedy, Picks
from engine.algorithms.greedy_rules import GraphCut, Herding, KCenter
from engine.algorithms.near_duplicates import ArrayKept, cosine_filter
from engine.errors import ConfigError, DataError
from tests.greedy_definitions import (
    plain_bins,
    plain_facility,
    plain_filter,
    plain_herding,
    plain_kcenter,
    products,
    random_words,
    unit_f16,
)

# N rows, D dimensions, P picks


def pieces(x_ND: np.ndarray, shards: int, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A new order of the rows, and its cut into shards as positions in the new order."""
    order = np.random.default_rng(seed).permutation(len(x_ND))
    return order, np.array_split(np.arange(len(x_ND)), shards)


def run(walk: Any) -> list[int]:
    return [row for block in walk for row in block.rows.tolist()]


def pick_sharded(x_ND: np.ndarray, words_N: np.ndarray, rule: Any, num: int, shards: int, seed: int, **more: Any):
    order, cut = pieces(x_ND, shards, seed)
    y_ND, w_N = x_ND[order], words_N[order]
    pool = MergedGreedy([ArrayGreedy(y_ND[at], at, w_N[at], rule, **more) for at in cut])
    return order[run(greedy.greedy(pool, rule, num))].tolist()


def facility_sharded(x_ND: np.ndarray, words_N: np.ndarray, num: int, shards: int, seed: int, sampling: Any = None):
    order, cut = pieces(x_ND, shards, seed)
    y_ND, w_N = x_ND[order], words_N[order]
    total_D = vector_sum(x_ND)
    pool = MergedFacility([ArrayFacility(y_ND[at], at, w_N[at], total_D) for at in cut])
    return order[run(facility_location(pool, num, sampling=sampling))].tolist()


SHARDINGS = [(1, 0), (2, 1), (5, 2), (11, 3)]


@pytest.mark.parametrize(("shards", "seed"), SHARDINGS)
def test_kcenter_equals_the_definition(shards: int, seed: int) -> None:
    x_ND, words_N = unit_f16(300, 24, 0), random_words(300, 0)
    seeds_KD = unit_f16(5, 24, 7)
    expected = plain_kcenter(x_ND, words_N, 200, seeds_KD)
    assert pick_sharded(x_ND, words_N, KCenter(), 200, shards, seed, seeds_KD=seeds_KD) == expected
    expected = plain_kcenter(x_ND, words_N, 300, seeds_KD[:0])
    assert pick_sharded(x_ND, words_N, KCenter(), 300, shards, seed) == expected


@pytest.mark.parametrize(("shards", "seed"), SHARDINGS)
def test_herding_equals_the_definition(shards: int, seed: int) -> None:
    x_ND, words_N = unit_f16(300, 24, 1), random_words(300, 1)
    rule = Herding(vector_sum(x_ND), len(x_ND))
    assert pick_sharded(x_ND, words_N, rule, 120, shards, seed) == plain_herding(x_ND, words_N, 120)


@pytest.mark.parametrize(("shards", "seed"), SHARDINGS)
@pytest.mark.parametrize("lean", [0.0, 0.6])
def test_bins_equal_the_definition(shards: int, seed: int, lean: float) -> None:
    x_ND, words_N = unit_f16(307, 24, 2, lean), random_words(307, 2)
    rule = GraphCut(vector_sum(x_ND), 61)
    assert pick_sharded(x_ND, words_N, rule, 244, shards, seed) == plain_bins(x_ND, words_N, 61, 4)


@pytest.mark.parametrize(("shards", "seed"), SHARDINGS)
def test_lazy_facility_location_equals_the_definition(shards: int, seed: int) -> None:
    x_ND, words_N = unit_f16(300, 24, 3), random_words(300, 3)
    assert facility_sharded(x_ND, words_N, 90, shards, seed) == plain_facility(x_ND, words_N, 90)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(2, 12), st.integers(1, 6), st.floats(-1, 1))
def test_small_pools_equal_the_definitions(seed: int, rows: int, dim: int, shards: int, lean: float) -> None:
    x_ND, words_N = unit_f16(rows, dim, seed, lean), random_words(rows, seed)
    shards, num = min(shards, rows), max(1, rows // 2)
    total_D = vector_sum(x_ND)
    few = KCenter(width=1 + seed % 7)  # so that rows are left out of the frontier
    assert pick_sharded(x_ND, words_N, few, num, shards, seed) == plain_kcenter(x_ND, words_N, num, x_ND[:0])
    bins = plain_bins(x_ND, words_N, max(1, rows // 3), min(2, rows))
    rule = GraphCut(total_D, max(1, rows // 3), width=1 + seed % 7)
    assert pick_sharded(x_ND, words_N, rule, len(bins), shards, seed) == bins
    assert facility_sharded(x_ND, words_N, num, shards, seed) == plain_facility(x_ND, words_N, num)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.floats(0.3, 0.999), st.integers(1, 400))
def test_filter_equals_one_row_at_a_time(seed: int, shards: int, threshold: float, num: int) -> None:
    x_ND, words_N = unit_f16(400, 8, seed % 7), random_words(400, 0)
    order_N = np.random.default_rng(seed).permutation(400)
    pool = MergedKept([ArrayKept(x_ND[at], at, words_N[at]) for at in np.array_split(np.arange(400), shards)])
    blocks = list(cosine_filter(pool, order_N, threshold, num))
    kept = [row for block in blocks for row in block.rows.tolist()]
    assert kept == plain_filter(x_ND, order_N, threshold, num)
    for row, largest in zip(kept[1:], np.concatenate([block.scores for block in blocks])[1:], strict=True):
        earlier = kept[: kept.index(row)]
        assert largest == products(x_ND[[row]], x_ND[earlier]).max() < threshold * ONE


class MergedKept:
    """Several shards in one process, seen as one."""

    def __init__(self, shards: list[ArrayKept]) -> None:
        self.shards = shards

    def vectors(self, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = {}
        for shard in self.shards:
            mine = rows_B[np.isin(rows_B, shard.rows_N)]
            found |= dict(zip(mine.tolist(), zip(*shard.vectors(mine), strict=True), strict=True))
        words, x = zip(*(found[row] for row in rows_B.tolist()), strict=True)
        return np.array(words, dtype=np.uint64), np.array(x)

    def largest_kept(self, x_BD: np.ndarray) -> np.ndarray:
        return np.max([shard.largest_kept(x_BD) for shard in self.shards], axis=0)

    def add(self, picks: Picks) -> None:
        for shard in self.shards:
            shard.add(picks)


def test_a_full_walk_filters_every_row() -> None:
    x_ND = np.repeat(unit_f16(1, 16, 0), 50, axis=0)
    pool = ArrayKept(x_ND, np.arange(50), random_words(50, 0))
    assert run(cosine_filter(pool, np.arange(50)[::-1], 0.9, 10)) == [49]


def value(x_ND: np.ndarray, picks: list[int]) -> float:
    """f(S) / N."""
    return float(largest_similarity(x_ND, x_ND[picks]).mean() / ONE)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 300), st.integers(0, 700), st.integers(2, 40), st.floats(-2, 2))
def test_largest_similarity_is_exact_though_float32_screens(
    seed: int, rows: int, others: int, dim: int, lean: float
) -> None:
    x_ND, y_PD = unit_f16(rows, dim, seed, lean), unit_f16(others, dim, seed + 1, lean)
    y_PD[: others // 3] = x_ND[0]
    expected = products(x_ND, y_PD).max(axis=1, initial=np.iinfo(np.int64).min)
    assert largest_similarity(x_ND, y_PD).tolist() == expected.tolist()


@pytest.mark.parametrize("epsilon", [0.5, 0.1, 0.01])
def test_stochastic_facility_location_is_close_and_the_same_for_any_sharding(epsilon: float) -> None:
    x_ND, words_N = unit_f16(1200, 24, 4, 0.3), random_words(1200, 4)
    exact = value(x_ND, facility_sharded(x_ND, words_N, 60, 1, 0))
    values = []
    for seed in range(4):
        sampling = Sampling.of(epsilon, 60, seed)
        picks = facility_sharded(x_ND, words_N, 60, 1, 0, sampling)
        assert len(set(picks)) == 60
        assert picks == facility_sharded(x_ND, words_N, 60, 5, seed, sampling)
        values.append(value(x_ND, picks))
    # Guaranteed on average: 1 - 1/e - epsilon of the optimum, so at least of what exact greedy reaches.
    assert np.mean(values) >= max(0.0, 1 - 1 / np.e - epsilon) * exact
    assert np.mean(values) >= exact * {0.5: 0.955, 0.1: 0.985, 0.01: 0.995}[epsilon]


def test_an_empty_sample_tries_every_row() -> None:
    x_ND, words_N = unit_f16(80, 8, 5), random_words(80, 5)
    never = Sampling(chance=0.0, seed=0)
    assert facility_sharded(x_ND, words_N, 20, 3, 1, never) == plain_facility(x_ND, words_N, 20)


@pytest.mark.parametrize("shards", [1, 4])
def test_guessed_picks_count_as_right_up_to_the_first_that_one_at_a_time_would_not_make(shards: int) -> None:
    x_ND, words_N, rows_N = unit_f16(400, 24, 5), random_words(400, 5), np.arange(400)
    rule = GraphCut(vector_sum(x_ND), 100)

    def pool() -> MergedGreedy:
        cut = np.array_split(rows_N, shards)
        return MergedGreedy([ArrayGreedy(x_ND[at], at, words_N[at], rule) for at in cut])

    right = Picks.join(greedy.greedy(pool(), rule, 40))
    assert pool().count_right(right) == 40
    block, certain = greedy.pick_block(pool().frontier(12), rule, 0, 40, 20)
    wrong = int(np.argmax(block.rows != right.rows[: len(block.rows)]))
    assert certain < wrong < len(block.rows)  # among so few rows it soon guesses wrong
    assert pool().count_right(block) == wrong


@pytest.mark.parametrize("width", [1, 3, 500])
def test_frontiers_of_any_width_give_the_same_picks(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    x_ND, words_N = unit_f16(200, 12, 6), random_words(200, 6)
    total_D = vector_sum(x_ND)
    for rule, num in ((KCenter(), 60), (GraphCut(total_D, 30), 90), (Herding(total_D, 200), 40)):
        narrow = replace(rule, width=width)
        assert pick_sharded(x_ND, words_N, narrow, num, 2, 0) == pick_sharded(x_ND, words_N, rule, num, 2, 0)
    lazy = facility_sharded(x_ND, words_N, 40, 2, 0)
    for name in ("FIRST_WIDTH", "MAX_WIDTH"):
        monkeypatch.setattr(facility, name, width)
    assert facility_sharded(x_ND, words_N, 40, 2, 0) == lazy


def test_going_on_from_earlier_picks_gives_the_same() -> None:
    x_ND, words_N = unit_f16(200, 12, 8), random_words(200, 8)
    rows_N, total_D = np.arange(200), vector_sum(x_ND)
    for rule in (KCenter(), Herding(total_D, 200), GraphCut(total_D, 30)):
        whole = pick_sharded(x_ND, words_N, rule, 100, 1, 0)
        pool = ArrayGreedy(x_ND, rows_N, words_N, rule)
        pool.add_rows(np.array(whole[:70]), x_ND[whole[:70]])
        assert whole[:70] + run(greedy.greedy(pool, rule, 100, picked=70)) == whole
    whole = facility_sharded(x_ND, words_N, 60, 1, 0)
    pool = ArrayFacility(x_ND, rows_N, words_N, total_D)
    pool.add_rows(np.array(whole[:25]), x_ND[whole[:25]])
    assert whole[:25] + run(facility_location(pool, 60, picked=25)) == whole


def test_similarities_are_exact_in_any_order_of_the_dimensions() -> None:
    x_ND, y_PD = unit_f16(500, 384, 9), unit_f16(40, 384, 10)
    order = np.random.default_rng(0).permutation(384)
    assert similarities(x_ND, y_PD).tobytes() == similarities(x_ND[:, order], y_PD[:, order]).tobytes()
    as_integers = x_ND.astype(np.float64) * 2**24  # whole numbers: Python's integers do not round
    other = y_PD.astype(np.float64) * 2**24
    for n, p in ((0, 0), (123, 7), (499, 39)):
        total = sum(int(a) * int(b) for a, b in zip(as_integers[n], other[p], strict=True))
        assert abs(int(similarities(x_ND, y_PD)[n, p]) * 2**16 - total) <= 2**15


def test_similarity_to_a_sum_is_that_of_all_rows() -> None:
    x_ND = unit_f16(900, 64, 11)
    expected = products(x_ND, x_ND).sum(axis=1)
    assert np.abs(similarity_to_sum(x_ND, vector_sum(x_ND)) - expected).max() <= len(x_ND)
    mean = similarity_to_sum(x_ND, vector_sum(x_ND), len(x_ND))
    assert np.abs(mean - expected / len(x_ND)).max() <= 2


def test_bounds_are_never_below_the_gains() -> None:
    x_ND, words_N = unit_f16(700, 48, 12), random_words(700, 12)
    pool = ArrayFacility(x_ND, np.arange(700), words_N, vector_sum(x_ND))
    for picks in ([3], [50, 60, 70]):
        pool.add_rows(np.array(picks), x_ND[picks])
        gains = np.array([pool.gain(row, x_ND[row]) for row in range(300)])
        bounds = pool.bounds(np.arange(300), x_ND[:300])
        assert (bounds >= gains).all()
        assert (bounds - gains).max() < 0.005 * ONE


def test_foreign_vectors_and_too_many_rows_are_refused() -> None:
    check_units(unit_f16(10, 8, 0))
    with pytest.raises(DataError, match="norm 1"):
        check_units(unit_f16(10, 8, 0) / np.float16(2))
    with pytest.raises(DataError, match="float16"):
        check_units(unit_f16(10, 8, 0).astype(np.float32))
    with pytest.raises(ConfigError, match="max_rows is 100") as caught:
        check_rows(1000, 100, "the pool", "set scope=cluster")
    assert "scope=cluster" in str(caught.value)
