"""The score F of IterSelectTune and the best rows by any score, with ties broken by id.

F = alpha * M + (1 - alpha) * R (arXiv 2410.13464): M is the classifier's probability that a row is hard, R its
similarity to the hard set. The file does not know where scores come from. A score that is not finite is an error, never
a low rank.
"""

# Shape letters: N rows of a shard, M rows chosen.

from __future__ import annotations

import numpy as np

from engine.errors import ConfigError, StepError


def nth_best(scores_N: np.ndarray, num: int) -> float | None:
    """The score that `num` rows reach, of those that have one (finite); the lowest when fewer have, None when none."""
    known_M = scores_N[np.isfinite(scores_N)]
    num = min(num, len(known_M))
    return float(np.partition(known_M, len(known_M) - num)[len(known_M) - num]) if num else None


def combine_scores(m_N: np.ndarray, r_N: np.ndarray, alpha: float) -> np.ndarray:
    """F = alpha * M + (1 - alpha) * R.

    Args:
        m_N: (N,) probability of hard, in [0, 1].
        r_N: (N,) similarity to the hard set, clipped to [0, 1].
        alpha: weight of M, in [0, 1].

    Returns:
        (N,) float64.

    Raises:
        ConfigError: alpha outside [0, 1].
        StepError: lengths differ, or a score is not finite.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"alpha must be between 0 and 1, not {alpha}")
    if m_N.shape != r_N.shape:
        raise StepError(f"{m_N.shape} classifier scores cannot be combined with {r_N.shape} similarities")
    _check_finite(m_N, "classifier scores")
    _check_finite(r_N, "similarities")
    return alpha * m_N.astype(np.float64) + (1.0 - alpha) * r_N.astype(np.float64)


def top_rows(scores_N: np.ndarray, tie_words_N: np.ndarray, num: int) -> np.ndarray:
    """Positions of the `num` largest scores, best first; equal scores by ascending id word.

    Args:
        scores_N: (N,) float.
        tie_words_N: (N,) uint64 from `schema.id_words`.
        num: rows wanted; all when there are fewer.

    Returns:
        (min(num, N),) int64. Choosing again among the choices of several shards gives the choice over all rows.

    Raises:
        StepError: a score is not finite.
    """
    _check_finite(scores_N, "scores")
    positions_M = np.arange(len(scores_N))
    if 0 < num < len(scores_N):  # sort only what can be among the best, ties with the last one included
        positions_M = np.flatnonzero(scores_N >= np.partition(scores_N, -num)[-num])
    order_M = np.lexsort((tie_words_N[positions_M], -scores_N[positions_M]))
    return positions_M[order_M[: max(num, 0)]]


def _check_finite(scores_N: np.ndarray, name: str) -> None:
    if not np.isfinite(scores_N).all():
        position = int(np.isfinite(scores_N).argmin())
        raise StepError(f"{name} hold {scores_N[position]}", where=f"position {position}", why="scores must be finite")
