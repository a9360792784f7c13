"""Overlap, correlation and shift against their definitions, and against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import spearmanr

from engine.compare.measures import chance_jaccard, divergence, jaccard, neighbours_first, spearman, tenths


def test_jaccard_is_shared_rows_of_either() -> None:
    draw = np.random.default_rng(0)
    chosen = draw.random((4, 50)) < [[0.1], [0.5], [0.9], [0.0]]
    found = jaccard(chosen)
    for a in range(4):
        for b in range(4):
            one, two = set(np.flatnonzero(chosen[a])), set(np.flatnonzero(chosen[b]))
            assert found[a, b] == (len(one & two) / len(one | two) if one | two else 1.0)


def test_chance_is_what_random_selections_share() -> None:
    draw, sizes = np.random.default_rng(1), (30, 60)
    shared = []
    for _ in range(3000):
        one, two = (set(draw.choice(200, size, replace=False)) for size in sizes)
        shared.append(len(one & two))
    expected = np.mean(shared) / (sum(sizes) - np.mean(shared))
    assert chance_jaccard(np.array(sizes), 200)[0, 1] == pytest.approx(expected, rel=0.03)


def test_spearman_is_scipys() -> None:
    draw = np.random.default_rng(2)
    for _ in range(20):
        a, b = draw.integers(0, 6, 30).astype(float), draw.random(30)
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman(np.ones(9), draw.random(9)) is None
    assert spearman(np.ones(2), np.ones(2)) is None


def test_divergence_is_scipys_distance_squared() -> None:
    draw = np.random.default_rng(3)
    for _ in range(20):
        p, q = draw.integers(0, 9, 7), draw.integers(0, 9, 7)
        p[0], q[1] = p[0] + 1, q[1] + 1
        assert divergence(p, q) == pytest.approx(jensenshannon(p, q, base=2) ** 2)
    assert divergence(np.array([3, 0]), np.array([0, 5])) == 1.0
    assert divergence(np.array([3, 6]), np.array([1, 2])) == 0.0


def test_tenths_are_about_equal_and_keep_equal_values_together() -> None:
    values = np.random.default_rng(4).integers(0, 1000, 5000)
    counts = np.bincount(tenths(values))
    assert len(counts) == 10 and counts.min() > 450
    assert len(set(tenths(np.full(20, 7)).tolist())) == 1


def test_similar_methods_stand_together() -> None:
    similar = np.array([[1, 0.1, 0.8, 0.1], [0.1, 1, 0.1, 0.7], [0.8, 0.1, 1, 0.2], [0.1, 0.7, 0.2, 1]])
    order = neighbours_first(similar)
    assert abs(order.index(0) - order.index(2)) == 1 and abs(order.index(1) - order.index(3)) == 1
    assert neighbours_first(np.zeros((0, 0))) == []
