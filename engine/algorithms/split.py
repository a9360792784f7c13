"""Which labelled rows are held out, how much each class weighs, and what to say when there is nothing to learn.

The split is decided by a row's id alone, so a row is on the same side in every round, for any order of the rows and
any number of labels. It knows nothing of models.

Legend: N rows.
"""

from __future__ import annotations

import numpy as np

from engine.schema import seeded_hash


def validation_mask(words_N: np.ndarray, seed: int, fraction: float) -> np.ndarray:
    """True for rows that are held out for validation.

    Args:
        words_N: (N,) uint64 from `engine.schema.id_words`.
        seed: the run's seed, the same in every round.
        fraction: share held out, in [0, 1); the number of rows is binomial, not exact, and may be 0 for small N.

    Returns:
        (N,) bool.

    Raises:
        ValueError: `fraction` is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the validation fraction must be at least 0 and below 1, got {fraction}")
    return seeded_hash(words_N, seed, "validation") < np.uint64(int(fraction * 2.0**64))


def class_weights(hard_N: np.ndarray) -> tuple[float, float]:
    """Weights that give both classes the same total: n / (2 n_class), as scikit-learn's "balanced".

    Args:
        hard_N: (N,) bool, or float in [0, 1], where a row counts for both classes by its share.

    Returns:
        (weight of easy, weight of hard), both 1.0 when a class is missing.
    """
    num_hard = float(np.sum(hard_N, dtype=np.float64))
    num_easy = len(hard_N) - num_hard
    if not num_hard or not num_easy:
        return 1.0, 1.0
    return len(hard_N) / (2 * num_easy), len(hard_N) / (2 * num_hard)


def one_class(hard_T: np.ndarray) -> bool:
    """True when there is nothing to tell apart: no rows, or all on one side."""
    return not len(hard_T) or bool((hard_T == hard_T[0]).all() and hard_T[0] in (0.0, 1.0))


def smoothed_prior_logit(hard_T: np.ndarray) -> float:
    """Log odds of (hard + 1) / (rows + 2), Laplace's rule of succession."""
    num_hard = float(np.sum(hard_T, dtype=np.float64))
    return float(np.log((num_hard + 1) / (len(hard_T) - num_hard + 1)))
