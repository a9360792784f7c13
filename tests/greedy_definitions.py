"""Greedy selectors as plain loops over their definitions, one pick at a time, and vectors to try them on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engine.algorithms.exact import ONE
from engine.schema import seeded_hash

# N rows, D dimensions, P vectors, K seeds


def unit_f16(num_rows: int, dim: int, seed: int, lean: float = 0.6) -> np.ndarray:
    """Unit vectors that lean to one side, as those of sentences do; some occur twice."""
    rng = np.random.default_rng(seed)
    x_ND = rng.standard_normal((num_rows, dim)) + lean
    x_ND = (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float16)
    x_ND[num_rows // 2 : num_rows // 2 + num_rows // 10] = x_ND[: num_rows // 10]
    return x_ND


def random_words(num_rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed + 99).integers(0, 2**64, num_rows, dtype=np.uint64)


def products(x_ND: np.ndarray, y_PD: np.ndarray) -> np.ndarray:
    """Similarities in units of 2^-32, from exact float64 products."""
    return np.rint((x_ND.astype(np.float64) @ y_PD.astype(np.float64).T) * ONE).astype(np.int64)


def plain(
    words_N: np.ndarray, num: int, score: Callable[[list[int]], np.ndarray], free: np.ndarray | None = None
) -> list[int]:
    """One pick at a time: the row of largest score, of all or of the free ones, ties to the smaller word."""
    picks: list[int] = []
    for _ in range(num):
        scores_N = score(picks)
        left = np.setdiff1d(np.arange(len(words_N)) if free is None else free, picks)
        best = left[scores_N[left] == scores_N[left].max()]
        picks.append(int(best[np.argmin(words_N[best])]))
    return picks


def plain_kcenter(x_ND: np.ndarray, words_N: np.ndarray, num: int, seeds_KD: np.ndarray) -> list[int]:
    similar_NN, seeded_NK = products(x_ND, x_ND), products(x_ND, seeds_KD)
    return plain(
        words_N, num, lambda s: -np.concatenate([seeded_NK, similar_NN[:, s]], axis=1).max(axis=1, initial=-2 * ONE)
    )


def plain_kcenter_by_hash(x: np.ndarray, words: np.ndarray, num: int) -> list[int]:
    """From the row of smallest hash, as a run with seed 0."""
    first = int(np.argmin(seeded_hash(words, 0, "start")))
    return [first, *(row for row in plain_kcenter(x, words, num + 1, x[[first]]) if row != first)][:num]


def plain_herding(x_ND: np.ndarray, words_N: np.ndarray, num: int) -> list[int]:
    exact_ND = x_ND.astype(np.float64)
    mean_D = exact_ND.mean(axis=0)

    def score(s: list[int]) -> np.ndarray:
        means_ND = (exact_ND[s].sum(axis=0) + exact_ND) / (len(s) + 1)
        return -np.linalg.norm(mean_D - means_ND, axis=1).round(12)

    return plain(words_N, num, score)


def plain_bins(x_ND: np.ndarray, words_N: np.ndarray, bin_rows: int, bins: int) -> list[int]:
    similar_NN = products(x_ND, x_ND)

    def score(s: list[int]) -> np.ndarray:
        full = len(s) // bin_rows * bin_rows
        left = np.setdiff1d(np.arange(len(x_ND)), s[:full])
        return similar_NN[:, left].sum(axis=1) - 2 * similar_NN[:, s[full:]].sum(axis=1)

    return plain(words_N, bin_rows * bins, score)


def plain_facility(x_ND: np.ndarray, words_N: np.ndarray, num: int, free: np.ndarray | None = None) -> list[int]:
    similar_NN = products(x_ND, x_ND)

    def score(s: list[int]) -> np.ndarray:
        best_N = similar_NN[:, s].max(axis=1, initial=-2 * ONE)
        return np.maximum(similar_NN, best_N[:, None]).sum(axis=0) - best_N.sum()

    return plain(words_N, num, score, free)


def plain_filter(x_ND: np.ndarray, order: np.ndarray, threshold: float, num: int) -> list[int]:
    kept: list[int] = []
    for row in order.tolist():
        if len(kept) < num and (products(x_ND[[row]], x_ND[kept]) < round(threshold * ONE)).all():
            kept.append(row)
    return kept
