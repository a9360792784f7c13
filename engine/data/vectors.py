"""Vectors in Arrow: an (N, D) float16 array as a FixedSizeList column, and back.

It knows nothing of models or files. Parquet keeps halffloat lists as they are.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from engine.errors import DataError


def vectors_to_arrow(x_ND: np.ndarray) -> pa.FixedSizeListArray:
    """A column of vectors; shares memory with a contiguous float16 array.

    Args:
        x_ND: (N, D) floating, D >= 1; cast to float16.

    Returns:
        N values of type FixedSizeList<float16>[D].

    Raises:
        ValueError: `x_ND` has not two dimensions.
    """
    if x_ND.ndim != 2:
        raise ValueError(f"expected an (N, D) array, not shape {x_ND.shape}")
    flat = pa.array(np.ascontiguousarray(x_ND, dtype=np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, x_ND.shape[1])


def vectors_from_arrow(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The array behind a column of vectors.

    Args:
        column: N values of type FixedSizeList<float16>[D], without nulls.

    Returns:
        (N, D) float16; a read-only view when the column has one chunk, else a copy.

    Raises:
        DataError: E450, another type or a null.
    """
    kind = column.type
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_float16(kind.value_type):
        raise DataError(f"a column of vectors must be FixedSizeList<float16>, not {kind}", code="E450")
    if column.null_count:
        raise DataError(f"{column.null_count} of {len(column)} vectors are missing", code="E450")
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    arrays = [chunk.flatten().to_numpy().reshape(-1, kind.list_size) for chunk in chunks]
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate([np.empty((0, kind.list_size), dtype=np.float16), *arrays])
