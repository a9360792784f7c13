"""Inner products of float16 unit vectors without any rounding, and as integers.

A float16 is a multiple of 2^-24, so a product of two is a multiple of 2^-48, and no partial sum of an inner product of
unit vectors exceeds 1 by more than their rounding (Cauchy and Schwarz). Both fit the 53 bits of a float64 whatever the
order of the additions: a float64 matrix product is exact, for any tiling, sharding, thread count, processor or GPU.
Greedy selectors add up and compare similarities as integers in units of 2^-32, each rounded from its exact value, so
their results never depend on how the rows are split or ordered.

The file knows nothing of what is selected, of shards, or of files.
"""

# Shape letters: N rows, D dimensions, P vectors to compare with, T rows of one tile, M rows picked.

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from engine.algorithms.similarity import check_vectors, float32_tiles
from engine.errors import DataError

if TYPE_CHECKING:
    import torch

ONE = 1 << 32  # similarity 1.0 as an integer
LARGEST = 1.02  # no similarity of two vectors that pass `check_units` is larger, or smaller than its negative
TILE_ROWS = 256  # in float64 a tile of 1,024 dimensions fits a core's second-level cache
BLOCK_COLUMNS = 512  # vectors multiplied at a time
SCREENED = 32  # vectors from which on a look in float32 pays
SUM_BITS = 42  # bits kept of a sum of vectors, counted from its largest component


def check_units(x_ND: np.ndarray, name: str = "vectors") -> None:
    """Refuse what is not (N, D) float16 of Euclidean norm 1, within what float16 rounding explains.

    Raises:
        DataError: wrong dtype, shape or range (as `similarity.check_vectors`), or a norm that is not 1.
    """
    check_vectors(x_ND, name)
    for start, stop, tile_TD in float64_tiles(x_ND):
        norms_T = (tile_TD * tile_TD).sum(dim=1)
        if bool(((norms_T - 1.0).abs() > LARGEST - 1.0).any()):
            raise DataError(
                f"{name} are not of norm 1",
                where=f"rows {start} to {stop - 1} of the array",
                fix="divide each vector by its Euclidean norm before storing it as float16",
                code="E442",
            )


def float64_tiles(x_ND: np.ndarray, rows_M: np.ndarray | None = None) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield (start, stop, (T, D) float64): all rows, or those at `rows_M`. The buffer is reused."""
    import torch

    total = len(x_ND) if rows_M is None else len(rows_M)
    single_TD = torch.empty((TILE_ROWS, x_ND.shape[1]), dtype=torch.float32)  # half to single to double is the fast way
    double_TD = torch.empty((TILE_ROWS, x_ND.shape[1]), dtype=torch.float64)
    for start in range(0, total, TILE_ROWS):
        stop = min(start + TILE_ROWS, total)
        half = x_ND[start:stop] if rows_M is None else x_ND[rows_M[start:stop]]
        single_TD[: stop - start] = torch.from_numpy(np.require(half, requirements=["C", "W"]))
        double_TD[: stop - start] = single_TD[: stop - start]
        yield start, stop, double_TD[: stop - start]


def similarity_tiles(
    x_ND: np.ndarray, y_PD: np.ndarray, rows_M: np.ndarray | None = None
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield (start, stop, (T, P) float64): similarities in units of 2^-32, whole numbers. The buffer is reused."""
    import torch

    y_DP = torch.from_numpy(y_PD.astype(np.float64) * ONE).T.contiguous()  # a power of two: still exact
    out_TP = torch.empty((TILE_ROWS, len(y_PD)), dtype=torch.float64)
    for start, stop, tile_TD in float64_tiles(x_ND, rows_M):
        yield start, stop, torch.mm(tile_TD, y_DP, out=out_TP[: stop - start]).round_()


@contextmanager
def one_thread() -> Iterator[None]:
    """For products of few rows: more threads would wait longer than they work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def similarities(x_ND: np.ndarray, y_PD: np.ndarray) -> np.ndarray:
    """(N, P) int64 similarities in units of 2^-32; for few rows, in one thread."""
    result_NP = np.empty((len(x_ND), len(y_PD)), dtype=np.int64)
    with one_thread():
        for start, stop, scores_TP in similarity_tiles(x_ND, y_PD):
            result_NP[start:stop] = scores_TP.numpy()
    return result_NP


def similarity_columns(x_ND: np.ndarray, y_PD: np.ndarray, rows_M: np.ndarray) -> torch.Tensor:
    """(M, P) float64, whole numbers in units of 2^-32, of the rows at `rows_M`; a column's numbers lie side by side."""
    import torch

    result_PM = torch.empty((len(y_PD), len(rows_M)), dtype=torch.float64)
    for start, stop, scores_TP in similarity_tiles(x_ND, y_PD, rows_M):
        result_PM[:, start:stop] = scores_TP.T
    return result_PM.T


def largest_similarity(x_ND: np.ndarray, y_PD: np.ndarray) -> np.ndarray:
    """(N,) int64, the largest similarity of each row to any of the vectors; the smallest int64 when there is none.

    Products in float32 tell which vectors can be the most similar one, and only those are multiplied exactly.
    """
    largest_N = np.full(len(x_ND), np.iinfo(np.int64).min)
    for low in range(0, len(y_PD), BLOCK_COLUMNS):
        block_PD = y_PD[low : low + BLOCK_COLUMNS]
        if len(block_PD) < SCREENED:
            for start, stop, scores_TP in similarity_tiles(x_ND, block_PD):
                found_T = scores_TP.amax(dim=1).numpy().astype(np.int64)
                np.maximum(largest_N[start:stop], found_T, out=largest_N[start:stop])
        else:
            _raise_largest(largest_N, x_ND, block_PD)
    return largest_N


def _raise_largest(largest_N: np.ndarray, x_ND: np.ndarray, y_PD: np.ndarray) -> None:
    """Raises to the largest similarity to these vectors as well, in place."""
    import torch

    rounding = (x_ND.shape[1] + 8) * LARGEST * 2.0**-24  # more than float32 can be wrong in an inner product
    y_DP = torch.from_numpy(y_PD.astype(np.float32)).T.contiguous()
    out_TP = torch.empty((TILE_ROWS, len(y_PD)))
    for start, stop, tile_TD in float32_tiles(x_ND, tile_rows=TILE_ROWS):
        scores_TP = torch.mm(tile_TD, y_DP, out=out_TP)[: stop - start]
        least_T = np.maximum(scores_TP.amax(dim=1).numpy() - 2 * rounding, largest_N[start:stop] / ONE - rounding)
        t_M, p_M = np.nonzero(scores_TP.numpy() >= least_T[:, None].astype(np.float32))
        for at in np.array_split(
            np.arange(len(t_M)), 1 + len(t_M) // (4 * TILE_ROWS)
        ):  # all pairs, where vectors are equal
            exact_M = np.einsum("md,md->m", x_ND[start + t_M[at]].astype(np.float64), y_PD[p_M[at]].astype(np.float64))
            np.maximum.at(largest_N, start + t_M[at], np.rint(exact_M * ONE).astype(np.int64))


def vector_sum(x_ND: np.ndarray) -> np.ndarray:
    """(D,) float64, the exact sum of up to 2^29 rows; sums of shards add up exactly too."""
    total_D = np.zeros(x_ND.shape[1])
    for _, _, tile_TD in float64_tiles(x_ND):
        total_D += tile_TD.sum(dim=0).numpy()
    return total_D


def similarity_to_sum(x_ND: np.ndarray, total_D: np.ndarray, divisor: int = 1) -> np.ndarray:
    """(N,) int64: each row's inner product with a sum of vectors, divided, in units of 2^-32.

    The sum is cut to 42 bits below its largest component and split in two halves of 21 bits; the product with each
    half is exact in float64 up to 65,536 dimensions, so only the last addition and the scaling round.
    """
    import torch

    exponent = int(np.frexp(np.abs(total_D).max(initial=0.0))[1])
    high_D = np.ldexp(np.rint(np.ldexp(total_D, SUM_BITS // 2 - exponent)), exponent - SUM_BITS // 2)
    low_D = np.ldexp(np.rint(np.ldexp(total_D - high_D, SUM_BITS - exponent)), exponent - SUM_BITS)
    halves_D2 = torch.from_numpy(np.stack([high_D, low_D], axis=1))
    result_N = np.empty(len(x_ND), dtype=np.int64)
    for start, stop, tile_TD in float64_tiles(x_ND):
        parts_T2 = torch.mm(tile_TD, halves_D2).numpy()
        result_N[start:stop] = np.rint((parts_T2[:, 0] + parts_T2[:, 1]) * (ONE / divisor))
    return result_N
