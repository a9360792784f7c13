"""Similarity to the hard set: R(i) of IterSelectTune, the largest cosine of row i to a row of D^H, itself excluded.

The vectors are unit-norm float16, so cosine is the inner product. FAISS finds the rows that can be the most similar
one, in float32, whose rounding changes with the place of a row on some processors; which of them is, and how similar,
is then computed without rounding (`exact`), so that R does not depend on how rows are ordered or sharded. A maximum is
idempotent, commutative and associative: updating against only the newly added vectors, twice or in any order, gives
the same numbers as one pass over all of them. The file knows nothing of files, models or rounds, and never holds an
N x H matrix.
"""

# Shape letters: N rows of the shard, D dimensions, H hard rows, T rows of one tile, C candidates of a row.

from __future__ import annotations

import numpy as np

from engine.algorithms.exact import LARGEST, ONE, largest_similarity
from engine.algorithms.similarity import check_vectors, float32_tiles
from engine.errors import DataError, StepError

HARD_BLOCK = 4096  # hard vectors held in float32 at a time
CANDIDATES = 4  # of a row: itself, the best, and how near others come to it
NONE = int(np.iinfo(np.int64).min)


def max_similarity(x_ND: np.ndarray, rows_N: np.ndarray, hard_HD: np.ndarray, hard_rows_H: np.ndarray) -> np.ndarray:
    """Largest inner product of each row with the hard vectors, itself excluded by row number.

    An identical vector under another row number does count. FAISS flat inner product, 2*N*H*D operations; memory is
    one tile and one block of hard vectors.

    Args:
        x_ND: (N, D) float16 unit vectors.
        rows_N: (N,) int64 row numbers.
        hard_HD: (H, D) float16 unit vectors.
        hard_rows_H: (H,) int64 row numbers; repeated rows count once.

    Returns:
        (N,) float32 in about [-1, 1], each the rounding of its exact value; -inf where no other hard row exists.

    Raises:
        DataError: vectors are not float16 in [-1, 1], or their dimensions differ.
    """
    check_vectors(x_ND)
    check_vectors(hard_HD, "hard vectors")
    if x_ND.shape[1] != hard_HD.shape[1]:
        raise DataError(f"vectors have {x_ND.shape[1]} dimensions, hard vectors {hard_HD.shape[1]}", code="E443")
    best_N = np.full(len(x_ND), NONE)
    hard_rows, first = np.unique(np.asarray(hard_rows_H, dtype=np.int64), return_index=True)
    for start in range(0, len(hard_rows), HARD_BLOCK):
        block_rows = hard_rows[start : start + HARD_BLOCK]
        _raise_best(best_N, x_ND, rows_N, hard_HD[first[start : start + HARD_BLOCK]], block_rows)
    return np.where(best_N == NONE, -np.inf, best_N / ONE).astype(np.float32)


def _raise_best(
    best_N: np.ndarray, x_ND: np.ndarray, rows_N: np.ndarray, block_HD: np.ndarray, block_rows: np.ndarray
) -> None:
    """Raises to the largest similarity to these vectors as well, in place; units of 2^-32."""
    import faiss

    dim = x_ND.shape[1]
    rounding = (dim + 8) * LARGEST * 2.0**-24  # more than float32 can be wrong in an inner product
    index = faiss.IndexFlatIP(dim)
    index.add(block_HD.astype(np.float32))
    for low, high, tile_TD in float32_tiles(x_ND):
        found_TC, at_TC = index.search(tile_TD.numpy(), CANDIDATES)
        found_TC, at_TC = found_TC[: high - low], at_TC[: high - low]
        other_TC = (at_TC >= 0) & (block_rows[at_TC] != rows_N[low:high, None])
        exact_TD, best_T = x_ND[low:high].astype(np.float64), np.full(high - low, NONE)
        for at_T, other_T in zip(at_TC.T, other_TC.T, strict=True):
            exact_T = np.einsum("td,td->t", exact_TD, block_HD[at_T].astype(np.float64))
            np.maximum(best_T, np.rint(exact_T * ONE).astype(np.int64), out=best_T, where=other_T)
        best_N[low:high] = np.maximum(best_N[low:high], best_T)
        # Where the last candidate comes as near as that, a vector that was not found may be better.
        near_T = (at_TC[:, -1] >= 0) & (found_TC[:, -1] >= best_T / ONE - 2 * rounding)
        near_M = low + np.flatnonzero(near_T)
        own_M = np.isin(rows_N[near_M], block_rows)
        best_N[near_M[~own_M]] = np.maximum(best_N[near_M[~own_M]], largest_similarity(x_ND[near_M[~own_M]], block_HD))
        for n in near_M[own_M]:
            others_HD = block_HD[block_rows != rows_N[n]]
            best_N[n] = max(best_N[n], largest_similarity(x_ND[n : n + 1], others_HD)[0])


def update_best(
    best_N: np.ndarray, x_ND: np.ndarray, rows_N: np.ndarray, new_HD: np.ndarray, new_rows_H: np.ndarray
) -> np.ndarray:
    """`best_N` raised by the newly added hard vectors only; starts from `np.full(N, -inf, float32)`.

    Applying the same vectors again changes nothing, so retries are harmless. Arguments and errors as `max_similarity`.

    Returns:
        (N,) float32, a new array.
    """
    return np.maximum(best_N, max_similarity(x_ND, rows_N, new_HD, new_rows_H))


def clip_similarity(best_N: np.ndarray) -> np.ndarray:
    """R in [0, 1], float32: negative similarity and "no hard row yet" (-inf) both become 0.

    Raises:
        StepError: a value is NaN.
    """
    if np.isnan(best_N).any():
        raise StepError("similarity to the hard set holds NaN", where=f"position {np.isnan(best_N).argmax()}")
    return np.clip(best_N, 0.0, 1.0).astype(np.float32)
