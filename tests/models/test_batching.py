"""Every row once, in a shape that its own length gives, and padding only where the row itself allows it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.models.batching import Batch, bucket_lengths, fixed_batches, pad_batch


def shape_of_rows(lengths_N: np.ndarray, max_tokens: int, batch_tokens: int) -> dict[int, tuple[int, int, bool]]:
    """Row -> everything about its batch that could change the row's result."""
    shapes = {}
    for batch in fixed_batches(lengths_N, max_tokens, batch_tokens):
        tokens = [[7] * n for n in lengths_N.tolist()]
        ids_BL, mask_BL = pad_batch(tokens, batch, pad_id=0)
        assert ids_BL.shape == mask_BL.shape == (batch.num_rows, batch.length)
        for row in batch.rows.tolist():
            assert row not in shapes
            shapes[row] = (batch.num_rows, batch.length, bool(mask_BL.all()))
    return shapes


@given(
    lengths=st.lists(st.integers(0, 40), max_size=60),
    batch_tokens=st.integers(1, 200),
    order=st.randoms(use_true_random=False),
)
def test_a_rows_shape_does_not_depend_on_the_other_rows(lengths, batch_tokens, order):
    lengths_N = np.array(lengths, dtype=np.int64)
    together = shape_of_rows(lengths_N, 40, batch_tokens)
    assert sorted(together) == list(range(len(lengths)))
    permuted = list(range(len(lengths)))
    order.shuffle(permuted)
    shuffled = shape_of_rows(lengths_N[permuted], 40, batch_tokens)
    for row, length in enumerate(lengths):
        alone = shape_of_rows(np.array([length]), 40, batch_tokens)[0]
        assert together[row] == alone
        assert shuffled[permuted.index(row)] == alone


def test_full_batches_keep_a_padded_row_except_at_max_tokens():
    batches = list(fixed_batches(np.full(64, 16), max_tokens=32, batch_tokens=256))
    assert [len(batch.rows) for batch in batches] == [15, 15, 15, 15, 4]
    assert all(batch.padded and (batch.num_rows, batch.length) == (16, 16) for batch in batches)
    cut = list(fixed_batches(np.full(20, 32), max_tokens=32, batch_tokens=256))
    assert [len(batch.rows) for batch in cut] == [8, 8, 4]
    assert not any(batch.padded for batch in cut)


def test_rows_are_sorted_by_length_then_place():
    batches = list(fixed_batches(np.array([9, 3, 9, 3, 30]), max_tokens=64, batch_tokens=1024))
    assert [batch.rows.tolist() for batch in batches] == [[1, 3], [0, 2], [4]]
    assert all(batch.rows.dtype == np.int64 for batch in batches)


@pytest.mark.parametrize("max_tokens", [1, 3, 8, 33, 100, 256, 512, 3000, 8192])
def test_bucket_lengths_end_at_max_tokens_and_stay_tight(max_tokens):
    edges = bucket_lengths(max_tokens)
    assert edges[-1] == max_tokens
    assert (np.diff(edges) > 0).all()
    assert (np.diff(edges) <= np.maximum(4, edges[:-1] / 4 + 1)).all()


def test_pad_batch_fills_dummy_rows_with_one_real_token():
    ids_BL, mask_BL = pad_batch([[5, 6], [], [9]], Batch(np.array([2, 0, 1]), num_rows=4, length=3), pad_id=1)
    assert ids_BL.tolist() == [[9, 1, 1], [5, 6, 1], [1, 1, 1], [1, 1, 1]]
    assert mask_BL.tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]]
    assert ids_BL.dtype == mask_BL.dtype == np.int64


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="more than max_tokens=8"):
        list(fixed_batches(np.array([9]), max_tokens=8))
    with pytest.raises(ValueError, match="batch_tokens"):
        list(fixed_batches(np.array([1]), max_tokens=8, batch_tokens=0))
    with pytest.raises(ValueError, match="max_tokens"):
        bucket_lengths(0)
    assert list(fixed_batches(np.array([], dtype=np.int64), max_tokens=8)) == []
