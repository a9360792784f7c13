"""Batches whose shape depends only on the length of the rows in them.

On a CPU a row's result does not depend on its place in a batch nor on the number of threads, but it does depend on
the batch's shape (rows x padded length), because the matrix kernels choose their blocking by shape. So every row is
computed in one fixed shape that follows from its own token count: lengths are rounded up to a few buckets, each
bucket has a fixed number of rows, and an incomplete batch is filled with dummy rows. Any order of the rows, any split
into parts and any number of workers then give the same bits.

Attention has a second path for batches without any padding, so that must follow from the row too: rows of exactly
`max_tokens` (cut texts, often many) form batches without padding, and every other batch has padding somewhere.

It refuses to know what a model does with a batch. The bucket edges are ours, chosen by measured padding waste.

Shape letters: N rows, B rows of a batch, L padded length, K buckets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# (up to this length, in steps of): short prompts get narrow buckets, since a few tokens are a large share of them.
_STEPS = ((32, 4), (64, 8), (128, 16), (512, 32), (2048, 128))
_LAST_STEP = 512


@dataclass(frozen=True)
class Batch:
    """Rows that are computed together.

    Attributes:
        rows: (n,) int64 indices into the input, n <= `num_rows`, in order of length, then of index.
        num_rows: rows of the array that is computed; a function of `length` alone.
        length: tokens per row after padding.
        padded: False when every row fills the whole length; its dummy rows then do too.
    """

    rows: np.ndarray
    num_rows: int
    length: int
    padded: bool = True


def bucket_lengths(max_tokens: int) -> np.ndarray:
    """The padded lengths that occur.

    Args:
        max_tokens: longest row, >= 1.

    Returns:
        (K,) int64, increasing, the last one equal to `max_tokens`.

    Raises:
        ValueError: `max_tokens` is below 1.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    edges_K: list[int] = []
    low = 0
    for high, step in (*_STEPS, (max_tokens, _LAST_STEP)):
        edges_K.extend(range(low + step, high + 1, step))
        low = max(low, high)
    return np.array([edge for edge in edges_K if edge < max_tokens] + [max_tokens], dtype=np.int64)


def fixed_batches(lengths_N: np.ndarray, max_tokens: int, batch_tokens: int = 1024) -> Iterator[Batch]:
    """Split rows into batches of fixed shapes, shortest rows first.

    The shape of a row's batch depends on its length, `max_tokens` and `batch_tokens` only, never on the other rows.

    Args:
        lengths_N: (N,) token counts, 0 <= length <= max_tokens.
        max_tokens: longest row that may occur.
        batch_tokens: padded tokens a batch may hold; a longer row still gets a batch of its own.

    Yields:
        Batches that hold every row exactly once.

    Raises:
        ValueError: a row is longer than `max_tokens`, or an argument is below 1.
    """
    lengths_N = np.asarray(lengths_N, dtype=np.int64)
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, not {batch_tokens}")
    edges_K = bucket_lengths(max_tokens)
    if lengths_N.size and int(lengths_N.max()) > max_tokens:
        raise ValueError(f"a row has {int(lengths_N.max())} tokens, more than max_tokens={max_tokens}")
    order_N = np.argsort(lengths_N, kind="stable")
    sorted_N = lengths_N[order_N]
    ends_K = np.searchsorted(sorted_N, edges_K, side="right")
    ends_K[-1] = np.searchsorted(sorted_N, max_tokens, side="left")
    start = 0
    for length, end in zip(edges_K.tolist(), ends_K.tolist(), strict=True):
        num_rows = max(1, batch_tokens // length)
        while start < end:
            stop = min(start + num_rows, end)
            if stop - start == num_rows > 1 and sorted_N[start] == length:
                stop -= 1  # all rows are full: leave a dummy row, for its padding
            yield Batch(order_N[start:stop], num_rows, length)
            start = stop
    num_rows = max(1, batch_tokens // max_tokens)
    for first in range(start, len(order_N), num_rows):
        yield Batch(order_N[first : first + num_rows], num_rows, max_tokens, padded=False)


def pad_batch(token_ids: Sequence[Sequence[int]], batch: Batch, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """The model's input for one batch, padded on the right.

    Args:
        token_ids: token ids of all N rows; only those of `batch.rows` are read.
        batch: which rows, and the shape.
        pad_id: token id to fill with.

    Returns:
        `input_ids` and `attention_mask`, both (num_rows, length) int64. Row i is `batch.rows[i]`, the rest is dummy.
        A row without tokens, dummy or not, has mask 1 at position 0, so that attention is never masked everywhere.
    """
    input_ids_BL = np.full((batch.num_rows, batch.length), pad_id, dtype=np.int64)
    mask_BL = np.zeros((batch.num_rows, batch.length), dtype=np.int64)
    mask_BL[:, 0] = 1
    for place, row in enumerate(batch.rows.tolist()):
        ids = token_ids[row]
        input_ids_BL[place, : len(ids)] = ids
        mask_BL[place, : len(ids)] = 1
    if not batch.padded:
        mask_BL[:] = 1
    return input_ids_BL, mask_BL
