"""Quotas fill what they should, and a draw by hash does not know the shards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.algorithms.sampling import cluster_quotas, smallest_per_group
from engine.errors import ConfigError

COUNTS = st.lists(st.one_of(st.integers(0, 30), st.integers(0, 10**6)), min_size=1, max_size=40)


@given(COUNTS, st.integers(0, 10**6), st.sampled_from(["equal", "proportional"]))
def test_quotas_sum_exactly_and_fit(counts: list[int], total: int, rule):
    quotas_K = cluster_quotas(np.array(counts), total, rule)
    assert quotas_K.dtype == np.int64
    assert quotas_K.sum() == min(total, sum(counts))
    assert (quotas_K >= 0).all()
    assert (quotas_K <= counts).all()


@given(COUNTS, st.integers(0, 10**6))
def test_equal_fills_to_one_level(counts: list[int], total: int):
    quotas_K = cluster_quotas(np.array(counts), total, "equal")
    unfilled = quotas_K[quotas_K < counts]
    if len(unfilled):
        assert unfilled.max() - unfilled.min() <= 1
        assert quotas_K.max() <= unfilled.min() + 1
        assert (np.diff(unfilled) <= 0).all()  # leftovers go to the lowest clusters


@given(COUNTS, st.integers(1, 10**6))
def test_proportional_is_within_one_of_the_exact_share(counts: list[int], total: int):
    available = sum(counts)
    if total < available:
        exact = np.array(counts) * (total / available)
        assert (np.abs(cluster_quotas(np.array(counts), total, "proportional") - exact) < 1 + 1e-6).all()


def test_known_quotas():
    counts_K = np.array([100, 3, 0, 10, 100])
    assert cluster_quotas(counts_K, 50, "equal").tolist() == [19, 3, 0, 10, 18]
    assert cluster_quotas(np.array([1, 1, 1]), 2, "equal").tolist() == [1, 1, 0]
    assert cluster_quotas(np.array([1, 1, 2]), 2, "proportional").tolist() == [1, 0, 1]
    assert cluster_quotas(np.array([10**10, 3 * 10**10]), 10**10, "proportional").tolist() == [2500000000, 7500000000]


def test_bad_quotas_are_refused():
    with pytest.raises(ConfigError, match="-1 rows"):
        cluster_quotas(np.array([3]), -1, "equal")
    with pytest.raises(ConfigError, match="unknown rule"):
        cluster_quotas(np.array([3]), 1, "fair")  # type: ignore[arg-type]


def plain_choice(groups: np.ndarray, keys: np.ndarray, quotas_K: np.ndarray) -> list[int]:
    chosen: list[int] = []
    for group, quota in enumerate(quotas_K.tolist()):
        members = [position for position in range(len(groups)) if groups[position] == group]
        chosen += sorted(members, key=lambda position: int(keys[position]))[:quota]
    return chosen


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(0, 80), st.integers(1, 9), st.integers(1, 6))
def test_draw_is_the_same_for_any_shards(seed: int, num_rows: int, num_groups: int, num_shards: int):
    rng = np.random.default_rng(seed)
    groups = rng.integers(-1, num_groups, num_rows).astype(np.int32)
    keys = rng.permutation(num_rows).astype(np.uint64) << np.uint64(57)
    quotas_K = rng.integers(0, 8, num_groups)
    expected = plain_choice(groups, keys, quotas_K)
    assert smallest_per_group(groups, keys, quotas_K).tolist() == expected

    pieces = np.array_split(rng.permutation(num_rows), num_shards)
    picked = [piece[smallest_per_group(groups[piece], keys[piece], quotas_K)] for piece in pieces]
    together = np.concatenate(picked)
    assert together[smallest_per_group(groups[together], keys[together], quotas_K)].tolist() == expected


def test_every_cluster_gives_at_least_so_many() -> None:
    counts = np.array([1, 900, 2, 97, 0, 40])
    assert cluster_quotas(counts, 20, "proportional").tolist() == [0, 17, 0, 2, 0, 1]
    assert cluster_quotas(counts, 20, "proportional", least=1).tolist() == [1, 15, 1, 2, 0, 1]
    assert cluster_quotas(counts, 20, "proportional", least=3).tolist() == [1, 11, 2, 3, 0, 3]
    assert (
        cluster_quotas(counts, 4, "proportional", least=1).tolist()
        == cluster_quotas(counts, 4, "proportional").tolist()
    )
    draw = np.random.default_rng(0)
    for _ in range(200):
        counts = draw.integers(0, 60, draw.integers(1, 12))
        total, least = int(draw.integers(0, counts.sum() + 5)), int(draw.integers(0, 5))
        quotas = cluster_quotas(counts, total, "proportional", least)
        assert quotas.sum() == min(total, counts.sum()) and (quotas <= counts).all()
        if np.minimum(counts, least).sum() <= total:
            assert (quotas >= np.minimum(counts, least)).all()
