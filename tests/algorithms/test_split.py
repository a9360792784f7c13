"""The split follows the id, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from engine.algorithms.split import class_weights, validation_mask

WORDS_N = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)


def test_share_and_edges():
    assert validation_mask(WORDS_N, 0, 0.2).mean() == pytest.approx(0.2, abs=0.01)
    assert not validation_mask(WORDS_N, 0, 0.0).any()
    assert validation_mask(WORDS_N, 0, np.nextafter(1, 0)).all()
    assert validation_mask(WORDS_N[:0], 0, 0.2).shape == (0,)
    with pytest.raises(ValueError, match="below 1"):
        validation_mask(WORDS_N, 0, 1.0)


def test_fixed_by_id_over_order_and_rounds():
    mask_N = validation_mask(WORDS_N, 7, 0.2)
    order_N = np.random.default_rng(1).permutation(len(WORDS_N))
    assert np.array_equal(validation_mask(WORDS_N[order_N], 7, 0.2), mask_N[order_N])
    assert np.array_equal(validation_mask(WORDS_N[:100], 7, 0.2), mask_N[:100])  # an earlier round has fewer rows
    assert (mask_N <= validation_mask(WORDS_N, 7, 0.3)).all()  # a larger share keeps the rows it had
    assert not np.array_equal(validation_mask(WORDS_N, 8, 0.2), mask_N)


def test_class_weights_equal_scikit_learn():
    hard_N = np.random.default_rng(0).random(1000) < 0.1
    assert class_weights(hard_N) == pytest.approx(
        compute_class_weight("balanced", classes=np.array([False, True]), y=hard_N)
    )
    assert class_weights(np.ones(5)) == class_weights(np.zeros(5)) == class_weights(np.zeros(0)) == (1.0, 1.0)
    assert class_weights(np.array([0.5, 0.5])) == (1.0, 1.0)
