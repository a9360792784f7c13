"""Inner products in float32 tiles, and the rows nearest to queries.

The float32 rounding of a matrix product can change with its shape, and in narrow ones with the place of a row. Every
product here has a fixed number of pool rows (the last tile is padded with zeros), so the numbers do not depend on how
rows are sharded. The file knows nothing of files, models or rounds.
"""

# Shape letters: N rows of the shard, D dimensions, Q queries, T rows of one tile, B queries of one block,
# M rows picked, k neighbours.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from engine.errors import DataError

if TYPE_CHECKING:
    import torch

TILE_ROWS = 2048  # rows of every product: large enough for full BLAS speed, 8 MB of scores at 1,024 columns
QUERY_BLOCK = 256
ONE_F16 = 0x3C00  # the bits of float16 1.0; NaN, infinities and larger numbers all have larger magnitude bits


class Nearest(NamedTuple):
    """The k most similar rows of each query, best first; a missing neighbour is (-inf, -1, 2^64 - 1)."""

    similarity_Qk: np.ndarray  # float32
    rows_Qk: np.ndarray  # int64
    words_Qk: np.ndarray  # uint64, id words, which break ties


def check_vectors(x_ND: np.ndarray, name: str = "vectors") -> None:
    """Refuse what is not (N, D) float16 with every component finite and in [-1, 1].

    The range is what makes float64 sums exact: every float16 is a multiple of 2^-24, so sums of up to 2^29 of them fit
    the 53 bits of a float64.

    Raises:
        DataError: wrong dtype, shape or range.
    """
    if x_ND.dtype != np.float16 or x_ND.ndim != 2:
        raise DataError(f"{name} must be a 2-d float16 array, not {x_ND.ndim}-d {x_ND.dtype}", code="E443")
    for start in range(0, len(x_ND), TILE_ROWS):
        magnitude = np.ascontiguousarray(x_ND[start : start + TILE_ROWS]).view(np.uint16) & np.uint16(0x7FFF)
        if magnitude.max(initial=0) > ONE_F16:
            raise DataError(
                f"{name} hold a number that is not finite or not in [-1, 1]",
                where=f"rows {start} to {min(start + TILE_ROWS, len(x_ND)) - 1} of the array",
                fix="divide each vector by its Euclidean norm before storing it as float16",
                code="E442",
            )


def float32_tiles(
    x_ND: np.ndarray, rows_M: np.ndarray | None = None, tile_rows: int = TILE_ROWS
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield (start, stop, tile): rows start..stop of the (picked) rows as float32, padded with zeros to `tile_rows`.

    The same buffer is yielded each time; use it before the next step. Works on memory-mapped and read-only arrays.
    """
    import torch

    total = len(x_ND) if rows_M is None else len(rows_M)
    half_TD = torch.zeros((tile_rows, x_ND.shape[1]), dtype=torch.float16)
    tile_TD = torch.empty((tile_rows, x_ND.shape[1]), dtype=torch.float32)
    half_np = half_TD.numpy()
    for start in range(0, total, tile_rows):
        stop = min(start + tile_rows, total)
        half_np[: stop - start] = x_ND[start:stop] if rows_M is None else x_ND[rows_M[start:stop]]
        half_np[stop - start :] = 0
        tile_TD.copy_(half_TD)
        yield start, stop, tile_TD


def nearest_rows(
    x_ND: np.ndarray,
    rows_N: np.ndarray,
    id_words_N: np.ndarray,
    queries_QD: np.ndarray,
    query_rows_Q: np.ndarray,
    k: int,
    free_N: np.ndarray | None = None,
) -> Nearest:
    """The k rows of one shard most similar to each query, the query's own row excluded.

    Exact; ties at any place, the k-th included, go to the smaller id word, so the result does not depend on row order.

    Args:
        x_ND: (N, D) float16 unit vectors of the shard.
        rows_N: (N,) int64 row numbers.
        id_words_N: (N,) uint64.
        queries_QD: (Q, D) float16.
        query_rows_Q: (Q,) int64 row numbers of the queries, -1 for none.
        k: neighbours wanted, at least 1.
        free_N: (N,) bool, rows that may be neighbours; all may when None.

    Returns:
        Nearest of this shard; `merge_nearest` joins shards.

    Raises:
        DataError: vectors are not float16 in [-1, 1].
    """
    check_vectors(x_ND)
    check_vectors(queries_QD, "queries")
    blocks = []
    for start, stop, block_BD in float32_tiles(queries_QD, tile_rows=QUERY_BLOCK):
        blocks.append(_nearest_block(x_ND, rows_N, id_words_N, block_BD, query_rows_Q[start:stop], k, free_N))
    return Nearest(*(np.concatenate(parts) for parts in zip(_missing(0, k), *blocks, strict=True)))


def merge_nearest(shards: Sequence[Nearest], k: int) -> Nearest:
    """The k best of several shards' results for the same queries; equal to one shard holding all rows."""
    similarity, rows, words = (np.concatenate(parts, axis=1) for parts in zip(*shards, strict=True))
    order_Qk = np.lexsort((words, -similarity), axis=1)[:, :k]
    return Nearest(*(np.take_along_axis(array, order_Qk, axis=1) for array in (similarity, rows, words)))


def _missing(num_queries: int, k: int) -> Nearest:
    shape = (num_queries, k)
    return Nearest(
        np.full(shape, -np.inf, np.float32),
        np.full(shape, -1, np.int64),
        np.full(shape, np.iinfo(np.uint64).max, np.uint64),
    )


def _nearest_block(
    x_ND: np.ndarray,
    rows_N: np.ndarray,
    words_N: np.ndarray,
    block_BD: torch.Tensor,
    query_rows_B: np.ndarray,
    k: int,
    free_N: np.ndarray | None,
) -> Nearest:
    """`nearest_rows` for one padded block of queries, of which len(query_rows_B) are real."""
    import torch

    num_queries = len(query_rows_B)
    best = _missing(num_queries, k)
    for start, stop, tile_TD in float32_tiles(x_ND):
        scores_BT = torch.mm(block_BD, tile_TD.T)[:num_queries, : stop - start].contiguous()
        own_B, own_T = np.nonzero(query_rows_B[:, None] == rows_N[None, start:stop])
        scores_BT.numpy()[own_B, own_T] = -np.inf
        if free_N is not None:
            scores_BT.numpy()[:, ~free_N[start:stop]] = -np.inf
        # Everything at least as good as the k-th best of the tile and as the k-th best so far: ties are all kept.
        threshold_B = torch.topk(scores_BT, min(k, stop - start), dim=1).values[:, -1].numpy()
        threshold_B = np.maximum(threshold_B, best.similarity_Qk[:, -1])
        scores = scores_BT.numpy()
        query_M, column_M = np.nonzero((scores >= threshold_B[:, None]) & (scores > -np.inf))
        found_M = start + column_M
        order_M = np.lexsort((words_N[found_M], -scores[query_M, column_M], query_M))
        query_M, column_M, found_M = query_M[order_M], column_M[order_M], found_M[order_M]
        place_M = np.arange(len(query_M)) - np.searchsorted(query_M, query_M)
        kept = place_M < k
        tile_best = _missing(num_queries, k)
        at = (query_M[kept], place_M[kept])
        tile_best.similarity_Qk[at] = scores[query_M[kept], column_M[kept]]
        tile_best.rows_Qk[at] = rows_N[found_M[kept]]
        tile_best.words_Qk[at] = words_N[found_M[kept]]
        best = merge_nearest([best, tile_best], k)
    return best
