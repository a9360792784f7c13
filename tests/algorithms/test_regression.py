"""Least squares against numpy's own and against the formula for one column."""

from __future__ import annotations

import numpy as np
import pytest

from engine.algorithms.regression import least_squares


def test_equals_numpy_lstsq_with_a_column_of_ones() -> None:
    draw = np.random.default_rng(0)
    x_SK = draw.normal(size=(40, 3)) * [1.0, 1e4, 1e-3] + [5.0, 1e6, 0.0]
    y_S = 1.0694 + x_SK @ [-0.15, 8e-5, -93.0] + draw.normal(size=40)
    fit = least_squares(x_SK, y_S)
    expected = np.linalg.lstsq(np.column_stack([x_SK, np.ones(40)]), y_S, rcond=None)[0]
    np.testing.assert_allclose(fit.weights_K, expected[:3], rtol=1e-6)
    left = y_S - x_SK @ fit.weights_K - fit.intercept
    assert fit.r_squared == pytest.approx(1 - (left**2).sum() / ((y_S - y_S.mean()) ** 2).sum())


def test_equals_the_formula_for_one_column() -> None:
    x, y = np.array([1.0, 2.0, 4.0, 7.0]), np.array([2.0, 1.0, 5.0, 4.0])
    fit = least_squares(x[:, None], y)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    assert fit.weights_K == pytest.approx([slope])
    assert fit.intercept == pytest.approx(y.mean() - slope * x.mean())
    assert fit.r_squared == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


def test_what_does_not_determine_the_weights_is_refused() -> None:
    draw = np.random.default_rng(1)
    with pytest.raises(ValueError, match="more than 3 subsets"):
        least_squares(draw.normal(size=(3, 2)), np.ones(3))
    for x_SK in (np.column_stack([np.arange(9.0), np.ones(9)]), np.column_stack([np.arange(9.0), np.arange(9) * 2.0])):
        with pytest.raises(ValueError, match="same in all subsets"):
            least_squares(x_SK, np.arange(9.0))
