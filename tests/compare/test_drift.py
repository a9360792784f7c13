"""Drift: by hand and on samples with and without a shift."""

from __future__ import annotations

import numpy as np
import pytest

from engine.compare.drift import decile_counts, drift, group_counts


def test_against_the_definitions() -> None:
    old_K, new_K = np.array([50, 30, 20]), np.array([20, 30, 50])
    found = drift(old_K, new_K)
    p, q = (old_K + 0.5) / 101.5, (new_K + 0.5) / 101.5
    assert found.psi == pytest.approx(np.sum((q - p) * np.log(q / p)))
    from scipy.spatial.distance import jensenshannon

    assert found.js == pytest.approx(jensenshannon(old_K, new_K, base=2))
    assert found.level == "large"
    same = drift(old_K, 7 * old_K)
    assert same.js == 0.0 and same.psi < 0.001 and same.level == "none"


def test_chance_is_no_drift_and_a_shift_is() -> None:
    """Without drift 95 of 100 samples stay within chance, few rows in many groups among them; with one none does."""
    rng = np.random.default_rng(1)
    within = {"psi": 0, "js": 0, "sparse psi": 0, "sparse js": 0}
    for _ in range(12):
        old_N, new_N = rng.normal(size=2000), rng.normal(size=300)
        found = drift(*decile_counts(old_N, new_N))
        within["psi"] += found.psi <= found.chance_psi
        within["js"] += found.js <= found.chance_js
        assert drift(*decile_counts(old_N, new_N + 1)).level == "large"
        sparse = drift(*group_counts(rng.integers(0, 100, 5000), rng.integers(0, 100, 60)))
        assert sparse.js > 0.1  # far above the usual limit
        within["sparse psi"] += sparse.psi <= sparse.chance_psi
        within["sparse js"] += sparse.js <= sparse.chance_js
    assert all(count >= 9 for count in within.values()), within


def test_repeated_values_and_new_groups() -> None:
    old_K, new_K = decile_counts(np.zeros(50), np.array([0.0, 1.0]))
    assert (old_K.tolist(), new_K.tolist()) == ([50, 0], [1, 1])
    assert [counts.tolist() for counts in group_counts(np.array([0, 2]), np.array([3]))] == [[1, 0, 1, 0], [0, 0, 0, 1]]
    assert drift(np.array([50]), np.array([2])).level == "none"
