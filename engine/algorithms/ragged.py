"""Rows of several numbers each, as one array of all numbers and one of where each row's begin."""

# Shape letters: N rows, T numbers of all rows one after another.

from __future__ import annotations

import numpy as np


def sorted_set(values: np.ndarray) -> np.ndarray:
    """The distinct values, ascending; by sorting, which for whole numbers is many times faster than `np.unique`."""
    ordered = np.sort(values)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(ordered) else ordered


def distinct_tags(tags_T: np.ndarray, starts_N1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same rows without repeated or negative tags.

    Args:
        tags_T: (T,) whole numbers below 2^31; those of row n at starts_N1[n] : starts_N1[n + 1].
        starts_N1: (N + 1,) int64, ascending from 0 to T.

    Returns:
        The same two arrays, int32 and int64, the tags of a row ascending.
    """
    keys_T = (np.repeat(np.arange(len(starts_N1) - 1), np.diff(starts_N1)) << 32) | tags_T.astype(np.int64)
    keys_T = sorted_set(keys_T[tags_T >= 0])
    counts_N = np.bincount(keys_T >> 32, minlength=len(starts_N1) - 1)
    return (keys_T & 0xFFFFFFFF).astype(np.int32), np.concatenate([[0], np.cumsum(counts_N)])
