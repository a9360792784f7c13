"""Canaries cannot be told by their length or side, and a row draws the same one wherever it is."""

from __future__ import annotations

import numpy as np
import pytest

from engine.judging.canaries import canaries_for, canary_for, load_canaries
from engine.judging.defence import suspect

WORDS = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)


def test_the_file():
    canaries = load_canaries()
    assert len(canaries) >= 30
    assert len({canary.id for canary in canaries}) == len({canary.prompt for canary in canaries}) == len(canaries)
    for canary in canaries:
        texts = (canary.id, canary.prompt, canary.good, canary.bad)
        assert all(text == text.strip() and text for text in texts), canary.id
        assert canary.good != canary.bad
        assert not any(suspect(text) for text in texts), canary.id  # a canary must not trip the defence
    assert sum(not canary.prompt.isascii() for canary in canaries) >= 10


def test_length_is_no_help():
    canaries = load_canaries()
    assert sum(len(canary.good) > len(canary.bad) for canary in canaries) == len(canaries) / 2
    assert not any(len(canary.good) == len(canary.bad) for canary in canaries)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5])
def test_share_side_and_choice_are_even(share):
    drawn = [canary for canary in canaries_for(WORDS, share, seed=1) if canary]
    expected = share * len(WORDS)
    assert abs(len(drawn) - expected) < 4 * (expected * (1 - share)) ** 0.5
    assert abs(sum(canary.good_first for canary in drawn) - len(drawn) / 2) < 4 * (len(drawn) / 4) ** 0.5
    if share == 0.5:
        counts = np.unique([canary.id for canary in drawn], return_counts=True)[1]
        mean = len(drawn) / len(load_canaries())
        assert len(counts) == len(load_canaries())
        assert ((counts - mean) ** 2 / mean).sum() < 80  # chi square, 35 degrees of freedom: P < 1e-4


def test_depends_on_the_row_and_the_seed_alone():
    words = WORDS[:2000]
    whole = canaries_for(words, 0.1, seed=3)
    assert [canary_for(int(word), 0.1, seed=3) for word in words] == whole
    order = np.random.default_rng(2).permutation(len(words))
    assert canaries_for(words[order], 0.1, seed=3) == [whole[i] for i in order]
    assert canaries_for(words, 0.1, seed=4) != whole


def test_a_larger_share_keeps_what_a_smaller_one_drew():
    few, many = (canaries_for(WORDS, share, seed=0) for share in (0.05, 0.3))
    assert all(one is None or one == other for one, other in zip(few, many, strict=True))


def test_no_rows_and_the_extremes():
    assert canaries_for(WORDS[:0], 0.5, seed=0) == []
    assert canaries_for(WORDS[:50], 0.0, seed=0) == [None] * 50
    assert None not in canaries_for(WORDS[:50], 1.0, seed=0)
