"""How well a classifier's probabilities fit the labels: numbers for a validation set.

It knows nothing of models or training. A number that is not defined (no rows, or one class only) is None, never a
stand-in value. Labels may be soft (a share of votes in [0, 1]): where a class is needed, 0.5 and above is hard.

Legend: N rows, B bins of equal width on [0, 1].
"""

from __future__ import annotations

import numpy as np

BINS_B = 15  # Guo et al. 2017, arXiv 1706.04599, section 3
SMALLEST_PROBABILITY = 1e-12  # keeps a confident mistake finite in the log loss


def accuracy(hard_N: np.ndarray, probability_N: np.ndarray) -> float | None:
    """Share of rows on the right side of 0.5; None without rows.

    Args:
        hard_N: (N,) bool, or float in [0, 1].
        probability_N: (N,) float, probability of hard.
    """
    if not len(hard_N):
        return None
    return float(np.mean(_classes(hard_N) == (probability_N >= 0.5)))


def balanced_accuracy(hard_N: np.ndarray, probability_N: np.ndarray) -> float | None:
    """Mean of the recalls of both classes; None when one of them has no row. Arguments as in `accuracy`."""
    hard_N = _classes(hard_N)
    if not len(hard_N) or hard_N.all() or not hard_N.any():
        return None
    predicted_N = probability_N >= 0.5
    return float((predicted_N[hard_N].mean() + (~predicted_N[~hard_N]).mean()) / 2)


def auc(hard_N: np.ndarray, score_N: np.ndarray) -> float | None:
    """Area under the ROC curve: the chance that a hard row scores above an easy one, ties counting one half.

    Mann-Whitney U from ranks, tied scores sharing their mean rank (Hanley and McNeil 1982).

    Args:
        hard_N: (N,) bool, or float in [0, 1].
        score_N: (N,) float, any increasing function of the probability.

    Returns:
        in [0, 1], or None when one of the classes has no row.
    """
    hard_N = _classes(hard_N)
    num_hard = int(hard_N.sum())
    num_easy = len(hard_N) - num_hard
    if not num_hard or not num_easy:
        return None
    _, tie_N, count_T = np.unique(score_N, return_inverse=True, return_counts=True)
    rank_T = np.cumsum(count_T) - (count_T - 1) / 2  # mean of the 1-based ranks of each group of ties
    u = rank_T[tie_N][hard_N].sum() - num_hard * (num_hard + 1) / 2
    return float(u / (num_hard * num_easy))


def expected_calibration_error(hard_N: np.ndarray, probability_N: np.ndarray) -> float | None:
    """Mean gap between the probability of hard and the share of hard rows, over 15 bins weighted by their rows.

    Guo et al. 2017, eq. 3, in its form for two classes: the probability of hard takes the place of the confidence.

    Returns:
        in [0, 1], or None without rows.
    """
    if not len(hard_N):
        return None
    bin_N = np.minimum((probability_N * BINS_B).astype(np.int64), BINS_B - 1)
    gap_N = np.asarray(hard_N, np.float64) - probability_N
    return float(np.abs(np.bincount(bin_N, gap_N, BINS_B)).sum() / len(hard_N))


def log_loss(hard_N: np.ndarray, probability_N: np.ndarray) -> float | None:
    """Mean negative log likelihood in nats; None without rows. Arguments as in `accuracy`."""
    if not len(hard_N):
        return None
    hard_N = np.asarray(hard_N, np.float64)
    p_N = np.clip(np.asarray(probability_N, np.float64), SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return float(-np.mean(hard_N * np.log(p_N) + (1 - hard_N) * np.log1p(-p_N)))


def _classes(hard_N: np.ndarray) -> np.ndarray:
    return np.asarray(hard_N, np.float64) >= 0.5
