"""Vectors keep their bits through Arrow, sliced and chunked, and anything else is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from engine.data.vectors import vectors_from_arrow, vectors_to_arrow
from engine.errors import DataError


def test_bits_survive_slices_and_chunks():
    x_ND = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float16)
    column = vectors_to_arrow(x_ND)
    assert column.type == pa.list_(pa.float16(), 3)
    assert np.shares_memory(vectors_from_arrow(column), x_ND)
    np.testing.assert_array_equal(vectors_from_arrow(column.slice(2, 5)), x_ND[2:7])
    chunked = pa.chunked_array([column.slice(0, 4), column.slice(4)])
    np.testing.assert_array_equal(vectors_from_arrow(chunked), x_ND)
    assert vectors_from_arrow(pa.chunked_array([], column.type)).shape == (0, 3)
    assert vectors_from_arrow(column.slice(0, 0)).shape == (0, 3)


def test_other_columns_are_refused():
    with pytest.raises(DataError, match="FixedSizeList<float16>"):
        vectors_from_arrow(pa.array([[1.0, 2.0]]))
    with pytest.raises(DataError, match="1 of 2 vectors are missing"):
        vectors_from_arrow(pa.array([[1.0], None], pa.list_(pa.float16(), 1)))
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        vectors_to_arrow(np.zeros(3))
