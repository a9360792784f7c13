"""Turns a classifier's logits into probabilities that can be read as frequencies, and measures them honestly.

Platt scaling: p = sigmoid(z / temperature + bias), two numbers fitted on held-out rows (Platt 1999; the Newton method
of Lin, Lin and Weng 2007). Temperature scaling alone (Guo et al. 2017) would not do: class-weighted training shifts
the logits to a prior of one half, and only the bias brings the true share of hard rows back.

Differs from Platt in: a Gaussian prior around the identity in place of smoothed targets.
With no rows, one class or perfectly separable rows it stays finite and near the identity; with many it has no weight.

Legend: N rows, V validation rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.algorithms.metrics import accuracy, auc, balanced_accuracy, expected_calibration_error, log_loss
from engine.schema import seeded_hash

SMALLEST_SLOPE = 0.01  # a slope of zero or less would throw the ranking away or turn it round
MAX_NEWTON_STEPS = 100
# Precision of the prior on slope and bias, ours: the smallest loss over planted scales with 8 to 300 rows.
SLOPE_PRIOR, BIAS_PRIOR = 0.3, 1.0


@dataclass(frozen=True)
class Calibration:
    """p = sigmoid(z / temperature + bias). The default changes nothing."""

    temperature: float = 1.0
    bias: float = 0.0


def calibrated_probability(logit_N: np.ndarray, temperature: float, bias: float) -> np.ndarray:
    """Probability of hard. Non-decreasing in the logit, and each row's result is independent of the others.

    Args:
        logit_N: (N,) float, log odds of hard; any shape will do.
        temperature: divides the logit, above 0.
        bias: added after the division.

    Returns:
        float64 in [0, 1], of the shape of `logit_N`.
    """
    return _sigmoid(np.asarray(logit_N, np.float64) / temperature + bias)


def fit_calibration(logit_V: np.ndarray, hard_V: np.ndarray) -> Calibration:
    """Fits slope and bias by Newton's method in float64; convex, from the identity, no randomness.

    Args:
        logit_V: (V,) float, finite, of rows that were not trained on.
        hard_V: (V,) bool, or float in [0, 1].

    Returns:
        finite numbers with 0 < temperature <= 100; the identity for V = 0.
    """
    z_V, hard_V = np.asarray(logit_V, np.float64), np.asarray(hard_V, np.float64)
    slope, bias = _newton(z_V, hard_V, slope=1.0, fit_slope=True)
    if slope < SMALLEST_SLOPE:  # the loss is convex, so the constrained optimum lies on the border
        slope, bias = _newton(z_V, hard_V, slope=SMALLEST_SLOPE, fit_slope=False)
    return Calibration(temperature=1 / slope, bias=bias)


def validation_report(
    logit_V: np.ndarray, hard_V: np.ndarray, words_V: np.ndarray, seed: int
) -> tuple[Calibration, dict[str, Any]]:
    """The calibration to use, and metrics that it did not see.

    The metrics come from two halves (by id), each calibrated on the other, so that they are not flattered by the fit;
    the returned calibration uses all rows. AUC needs no calibration and comes from the logits.

    Args:
        logit_V: (V,) float of held-out rows, sorted by id for bit-stable sums.
        hard_V: (V,) bool, or float in [0, 1].
        words_V: (V,) uint64 from `engine.schema.id_words`.
        seed: of the split.

    Returns:
        the calibration, and `num_val`, `val_accuracy`, `val_balanced_accuracy`, `val_auc`, `val_ece`, `val_log_loss`,
        None where undefined.
    """
    first_V = (seeded_hash(words_V, seed, "calibration") >> np.uint64(63)).astype(bool)
    probability_V = np.zeros(len(logit_V))
    for half_V in (first_V, ~first_V):
        fitted = fit_calibration(logit_V[~half_V], hard_V[~half_V])
        probability_V[half_V] = calibrated_probability(logit_V[half_V], fitted.temperature, fitted.bias)
    metrics = {
        "num_val": len(logit_V),
        "val_accuracy": accuracy(hard_V, probability_V),
        "val_balanced_accuracy": balanced_accuracy(hard_V, probability_V),
        "val_auc": auc(hard_V, logit_V),
        "val_ece": expected_calibration_error(hard_V, probability_V),
        "val_log_loss": log_loss(hard_V, probability_V),
    }
    return fit_calibration(logit_V, hard_V), metrics


def _sigmoid(u_N: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-u) in the form that overflows on neither side."""
    small_N = np.exp(-np.abs(u_N))
    return np.where(u_N >= 0, 1 / (1 + small_N), small_N / (1 + small_N))


def _loss(z_V: np.ndarray, hard_V: np.ndarray, slope: float, bias: float) -> float:
    """Negative log posterior in nats, up to a constant."""
    u_V = slope * z_V + bias
    return float(
        (np.logaddexp(0, u_V) - hard_V * u_V).sum() + (SLOPE_PRIOR * (slope - 1) ** 2 + BIAS_PRIOR * bias**2) / 2
    )


def _newton(z_V: np.ndarray, hard_V: np.ndarray, slope: float, fit_slope: bool) -> tuple[float, float]:
    """Newton with step halving on (slope, bias), or on the bias alone. Sums, not BLAS: the same for any threads."""
    bias, loss = 0.0, _loss(z_V, hard_V, slope, 0.0)
    for _ in range(MAX_NEWTON_STEPS):
        p_V = _sigmoid(slope * z_V + bias)
        error_V, spread_V = p_V - hard_V, p_V * (1 - p_V)
        d_slope = float((error_V * z_V).sum()) + SLOPE_PRIOR * (slope - 1)
        d_bias = float(error_V.sum()) + BIAS_PRIOR * bias
        ss, bb = float((spread_V * z_V * z_V).sum()) + SLOPE_PRIOR, float(spread_V.sum()) + BIAS_PRIOR
        sb = float((spread_V * z_V).sum())
        if not fit_slope:
            d_slope, ss, sb = 0.0, 1.0, 0.0
        determinant = ss * bb - sb * sb  # positive: the prior is on the diagonal
        step_slope = (bb * d_slope - sb * d_bias) / determinant
        step_bias = (ss * d_bias - sb * d_slope) / determinant
        scale = 1.0
        while (tried := _loss(z_V, hard_V, slope - scale * step_slope, bias - scale * step_bias)) > loss:
            scale /= 2
            if scale < 1e-6:
                return slope, bias
        slope, bias = slope - scale * step_slope, bias - scale * step_bias
        if loss - tried <= 1e-12 * (1 + loss):
            return slope, bias
        loss = tried
    return slope, bias
