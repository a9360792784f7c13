"""Every metric equals scikit-learn's, or is None where it is not defined."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from engine.algorithms.metrics import accuracy, auc, balanced_accuracy, expected_calibration_error, log_loss


def labels_and_probabilities(seed: int, decimals: int = 17) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    hard_N = rng.random(500) < 0.2
    return hard_N, np.round(np.clip(rng.normal(0.3 + 0.3 * hard_N, 0.25), 0, 1), decimals)


@pytest.mark.parametrize("decimals", [17, 1])  # 1: many tied scores
def test_equal_to_scikit_learn(decimals):
    for seed in range(5):
        hard_N, p_N = labels_and_probabilities(seed, decimals)
        assert accuracy(hard_N, p_N) == pytest.approx(reference.accuracy_score(hard_N, p_N >= 0.5), abs=1e-12)
        assert balanced_accuracy(hard_N, p_N) == pytest.approx(reference.balanced_accuracy_score(hard_N, p_N >= 0.5))
        assert auc(hard_N, p_N) == pytest.approx(reference.roc_auc_score(hard_N, p_N), abs=1e-12)
        inside_N = np.clip(p_N, 0.01, 0.99)
        assert log_loss(hard_N, inside_N) == pytest.approx(reference.log_loss(hard_N, inside_N), abs=1e-12)


def test_calibration_error_by_definition():
    hard_N, p_N = labels_and_probabilities(0)
    bin_N = np.minimum((p_N * 15).astype(int), 14)
    expected = sum(
        abs(hard_N[bin_N == b].mean() - p_N[bin_N == b].mean()) * (bin_N == b).mean()
        for b in range(15)
        if (bin_N == b).any()
    )
    assert expected_calibration_error(hard_N, p_N) == pytest.approx(expected, abs=1e-12)
    assert expected_calibration_error(np.array([True, False]), np.array([1.0, 0.0])) == 0.0


def test_auc_ignores_increasing_functions_and_order():
    hard_N, p_N = labels_and_probabilities(1)
    order_N = np.random.default_rng(0).permutation(len(p_N))
    assert auc(hard_N, p_N) == auc(hard_N, np.exp(p_N)) == auc(hard_N[order_N], p_N[order_N])
    assert auc(hard_N, np.zeros(len(p_N))) == 0.5


def test_soft_labels():
    soft_N, p_N = np.array([0.25, 0.75, 1.0]), np.array([0.3, 0.6, 0.4])
    assert accuracy(soft_N, p_N) == pytest.approx(2 / 3)
    assert log_loss(soft_N, soft_N) < log_loss(soft_N, p_N)


def test_undefined_is_none():
    nothing, ones = np.array([]), np.ones(3)
    for metric in (accuracy, balanced_accuracy, auc, expected_calibration_error, log_loss):
        assert metric(nothing, nothing) is None
    for metric in (balanced_accuracy, auc):
        assert metric(ones, ones / 2) is None
        assert metric(0 * ones, ones / 2) is None
    assert log_loss(ones, 0 * ones) < 30  # finite, though certain and wrong
