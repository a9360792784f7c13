"""Calibration finds the planted scale and shift, stays finite where maximum likelihood does not, and is monotone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from engine.algorithms.calibration import (
    BIAS_PRIOR,
    SLOPE_PRIOR,
    calibrated_probability,
    fit_calibration,
    validation_report,
)


def planted(num_rows: int, slope: float, bias: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logit_N = rng.normal(0, 3, num_rows)
    return logit_N, rng.random(num_rows) < 1 / (1 + np.exp(-(slope * logit_N + bias)))


def test_recovers_planted_scale_and_shift():
    fitted = fit_calibration(*planted(50_000, slope=0.4, bias=-1.5))
    assert 1 / fitted.temperature == pytest.approx(0.4, rel=0.03)
    assert fitted.bias == pytest.approx(-1.5, rel=0.03)


@pytest.mark.parametrize(
    ("slope", "bias", "rows"), [(0.4, -1.5, 30), (3.0, 2.0, 300), (0.05, 0.0, 200), (1.0, -4.0, 80)]
)
def test_equal_to_a_general_optimiser(slope, bias, rows):
    logit_N, hard_N = planted(rows, slope, bias)

    def loss(parameters):
        u_N = parameters[0] * logit_N + parameters[1]
        return (np.logaddexp(0, u_N) - hard_N * u_N).sum() + (
            (parameters - [1, 0]) ** 2 @ [SLOPE_PRIOR, BIAS_PRIOR]
        ) / 2

    best = minimize(loss, [1.0, 0.0], bounds=[(0.01, None), (None, None)], options={"ftol": 1e-15, "gtol": 1e-10})
    fitted = fit_calibration(logit_N, hard_N)
    assert [1 / fitted.temperature, fitted.bias] == pytest.approx(best.x, abs=1e-4)


def test_finite_for_few_one_sided_separable_or_reversed_rows():
    logit_N = np.array([-900.0, -2.0, 1.0, 800.0])
    cases = [(logit_N, logit_N > 0), (logit_N, logit_N < 0), (logit_N, logit_N > -1e9), (logit_N, logit_N > 1e9)]
    cases += [(logit_N[:1], np.array([True])), (np.zeros(4), logit_N > 0)]
    for z_V, hard_V in cases:
        fitted = fit_calibration(z_V, hard_V)
        assert 0 < fitted.temperature <= 100.000001
        assert np.isfinite(fitted.bias)
    identity = fit_calibration(logit_N[:0], np.zeros(0, bool))
    assert (identity.temperature, identity.bias) == (1.0, 0.0)


def test_reversed_logits_keep_their_order():
    logit_N, hard_N = planted(2000, slope=-1.0, bias=0.3)
    fitted = fit_calibration(logit_N, hard_N)
    assert fitted.temperature == pytest.approx(100)
    p_N = calibrated_probability(np.sort(logit_N), fitted.temperature, fitted.bias)
    assert (np.diff(p_N) >= 0).all()


def test_probability_is_monotone_and_bounded():
    z_N = np.sort(np.concatenate([np.linspace(-800, 800, 10_001), np.random.default_rng(0).normal(0, 1e-9, 1000)]))
    for temperature, bias in [(1.0, 0.0), (0.3, -2.0), (7.0, 1.5)]:
        p_N = calibrated_probability(z_N, temperature, bias)
        assert (np.diff(p_N) >= 0).all()
        assert 0 <= p_N.min() <= p_N.max() <= 1
    assert calibrated_probability(np.array([0.0]), 2.0, 0.0) == 0.5


def test_probability_of_a_row_ignores_its_neighbours():
    z_N = np.random.default_rng(0).normal(0, 4, 1003).astype(np.float32)
    whole = calibrated_probability(z_N, 1.7, -0.2)
    pieces = [calibrated_probability(piece, 1.7, -0.2) for piece in np.split(z_N, [1, 8, 9, 500])]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


def test_report_is_calibrated_and_not_flattered():
    logit_V, hard_V = planted(4000, slope=0.3, bias=-1.0)
    words_V = np.random.default_rng(3).integers(0, 2**64, 4000, dtype=np.uint64)
    calibration, metrics = validation_report(logit_V, hard_V, words_V, seed=0)
    assert metrics["val_ece"] < 0.05
    assert metrics["num_val"] == 4000
    flattered = calibrated_probability(logit_V, calibration.temperature, calibration.bias)
    assert metrics["val_log_loss"] > -np.mean(np.log(np.where(hard_V, flattered, 1 - flattered)))


def test_report_without_rows_or_with_one_class():
    nothing = np.zeros(0)
    calibration, metrics = validation_report(nothing, nothing, nothing.astype(np.uint64), seed=0)
    assert calibration.temperature == 1.0
    assert metrics.pop("num_val") == 0
    assert set(metrics.values()) == {None}
    _, metrics = validation_report(np.ones(3), np.ones(3), np.arange(3, dtype=np.uint64), seed=0)
    assert metrics["val_auc"] is None
    assert metrics["val_balanced_accuracy"] is None
    assert metrics["val_accuracy"] == 1.0
