"""Row variance: a plain SVD of the whole array, and the same bits however the rows are ordered and shared out."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest

from engine.algorithms.row_variance import components, moments, row_variance
from engine.errors import DataError


def units(rows: int, dims: int, seed: int = 0) -> np.ndarray:
    x_ND = np.random.default_rng(seed).normal(size=(rows, dims)) * np.linspace(3.0, 0.3, dims) + 0.5
    return (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float16)


def test_moments_are_exact_sums() -> None:
    x_ND = units(700, 24)
    found = moments(x_ND)
    whole_ND = [[int(value * 2**24) for value in row] for row in x_ND.astype(np.float64).tolist()]
    exact = [[sum(row[i] * row[j] for row in whole_ND) for j in range(24)] for i in range(24)]
    scale = 2**48
    parts = [found.high_DD, found.mixed_DD, found.mixed_DD.T, found.low_DD]
    for i in range(24):
        for j in range(24):
            assert sum(int(part[i, j] * scale) for part in parts) == exact[i][j]


@pytest.mark.parametrize("num", [2, 5, 24, 40])
def test_variance_is_that_of_the_published_form(num: int) -> None:
    x_ND = units(500, 24)
    centred_ND = x_ND.astype(np.float64) - x_ND.astype(np.float64).mean(axis=0)
    _, _, axes_PD = np.linalg.svd(centred_ND, full_matrices=False)
    axes_PD = axes_PD[:num]
    axes_PD *= np.sign(axes_PD[np.arange(len(axes_PD)), np.abs(axes_PD).argmax(axis=1)])[:, None]
    expected_N = (centred_ND @ axes_PD.T).var(axis=1)
    np.testing.assert_allclose(row_variance(x_ND, components(moments(x_ND), num)), expected_N, rtol=1e-7, atol=1e-12)


def test_order_and_shards_change_no_bit() -> None:
    x_ND = units(900, 48, 3)
    expected_N = row_variance(x_ND, components(moments(x_ND), 8))
    order_N = np.random.default_rng(1).permutation(len(x_ND))
    pieces = np.split(x_ND[order_N], [1, 130, 640])
    axes = components(reduce(add, [moments(piece) for piece in pieces]), 8)
    found_N = np.concatenate([row_variance(piece, axes) for piece in pieces])
    np.testing.assert_array_equal(found_N, expected_N[order_N])


def test_vectors_that_are_not_units_are_refused() -> None:
    with pytest.raises(DataError):
        moments(np.full((3, 4), 2.0, dtype=np.float16))
