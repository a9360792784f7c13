"""Ordinary least squares with an intercept and its R^2, for rules that are learned from a few subsets.

InstructMining (arXiv 2307.06290) regresses the logarithm of the loss that a tuned model reaches on the mean indicators
of the subset it was tuned on. The file knows nothing of indicators or rows.
"""

# Shape letters: S subsets, K indicators.

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class LinearFit(NamedTuple):
    """y ~ intercept + x . weights_K; `r_squared`: share of the variance of y that it explains, at most 1."""

    weights_K: np.ndarray  # float64
    intercept: float
    r_squared: float


def least_squares(x_SK: np.ndarray, y_S: np.ndarray) -> LinearFit:
    """The coefficients of smallest squared error.

    Columns are centred and scaled for the computation, so that indicators of different units do not hide one another.

    Args:
        x_SK: (S, K) finite float64.
        y_S: (S,) finite float64.

    Raises:
        ValueError: there are not more subsets than coefficients, or the columns do not determine them.
    """
    num_subsets, num_columns = x_SK.shape
    if num_subsets <= num_columns + 1:
        raise ValueError(f"{num_columns} indicators and an intercept need more than {num_columns + 1} subsets, not "
                         f"{num_subsets}")  # fmt: skip
    mean_K, spread_K = x_SK.mean(axis=0), x_SK.std(axis=0)
    scaled_SK = (x_SK - mean_K) / np.where(spread_K > 0, spread_K, 1.0)
    centred_S = y_S - y_S.mean()
    scaled_K, _, rank, _ = np.linalg.lstsq(scaled_SK, centred_S, rcond=1e-9)
    if rank < num_columns:
        raise ValueError("an indicator is the same in all subsets, or follows from the others")
    weights_K = scaled_K / spread_K
    left_S = centred_S - scaled_SK @ scaled_K
    total = float(centred_S @ centred_S)
    r_squared = 1.0 - float(left_S @ left_S) / total if total > 0 else 0.0
    return LinearFit(weights_K, float(y_S.mean() - mean_K @ weights_K), r_squared)
