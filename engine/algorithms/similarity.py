"""Inner products with a growing set of vectors: similarity to the hard set, and nearest rows.

R(i) of IterSelectTune (arXiv 2410.13464) is the largest cosine similarity of row i to the hard set D^H, row i itself
excluded. The vectors are unit-norm float16, so cosine is the inner product, taken in float32. A maximum is idempotent,
commutative and associative: updating against only the newly added vectors, twice or in any order, gives the same
numbers as one pass over all of them.

The float32 rounding of a matrix product can change with its shape, and in narrow ones with the place of a row. Every
product here has a fixed number of pool rows (the last tile is padded with zeros) and a multiple of 16 columns, so the
numbers do not depend on how rows are ordered or sharded; those of FAISS's flat index do, on processors on which its
BLAS rounds the last rows of a block otherwise. The file knows nothing of files, models or rounds, and never holds an
N x H matrix.
"""

# Shape letters: N rows of the shard, D dimensions, H hard rows, Q queries, T rows of one tile, B queries of one block,
# M rows picked, k neighbours.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from engine.errors import DataError, StepError

if TYPE_CHECKING:
    import torch

TILE_ROWS = 2048  # rows of every product: large enough for full BLAS speed, 8 MB of scores at 1,024 columns
HARD_BLOCK = 4096  # hard vectors held in float32 at a time; 34 MB of scores
WIDTH_STEP = 16  # in products of other widths the rounding depends on the place of a row on some processors
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


def max_similarity(x_ND: np.ndarray, rows_N: np.ndarray, hard_HD: np.ndarray, hard_rows_H: np.ndarray) -> np.ndarray:
    """Largest inner product of each row with the hard vectors, itself excluded by row number.

    An identical vector under another row number does count. 2*N*H*D operations; memory is one tile, one block of hard
    vectors and their scores.

    Args:
        x_ND: (N, D) float16 unit vectors.
        rows_N: (N,) int64 row numbers.
        hard_HD: (H, D) float16 unit vectors.
        hard_rows_H: (H,) int64 row numbers; repeated rows count once.

    Returns:
        (N,) float32 in about [-1, 1]; -inf where no other hard row exists.

    Raises:
        DataError: vectors are not float16 in [-1, 1], or their dimensions differ.
    """
    check_vectors(x_ND)
    check_vectors(hard_HD, "hard vectors")
    if x_ND.shape[1] != hard_HD.shape[1]:
        raise DataError(f"vectors have {x_ND.shape[1]} dimensions, hard vectors {hard_HD.shape[1]}", code="E443")
    import torch

    best_N = np.full(len(x_ND), -np.inf, dtype=np.float32)
    hard_rows, first = np.unique(np.asarray(hard_rows_H, dtype=np.int64), return_index=True)
    for start in range(0, len(hard_rows), HARD_BLOCK):
        block_rows = hard_rows[start : start + HARD_BLOCK]
        width = len(block_rows)
        block_WD = np.zeros((width + -width % WIDTH_STEP, x_ND.shape[1]), np.float32)
        block_WD[:width] = hard_HD[first[start : start + HARD_BLOCK]]
        block = torch.from_numpy(block_WD)
        for low, high, tile_TD in float32_tiles(x_ND):
            scores_TW = torch.mm(tile_TD, block.T)[: high - low, :width]
            at_T = np.minimum(np.searchsorted(block_rows, rows_N[low:high]), width - 1)
            own_M = np.flatnonzero(block_rows[at_T] == rows_N[low:high])
            scores_TW[own_M, at_T[own_M]] = -torch.inf
            best_N[low:high] = np.maximum(best_N[low:high], scores_TW.max(dim=1).values.numpy())
    return best_N


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
