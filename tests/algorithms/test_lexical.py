"""MTLD against the authors' worked example and a plain reading of the definition."""

from __future__ import annotations

import random

import pytest

from engine.algorithms.lexical import mtld, words_of


def plain(words: list[str], threshold: float) -> float:
    """The definition, word by word, the ratio recomputed from scratch."""
    both = []
    for text in (words, words[::-1]):
        factors, start = 0.0, 0
        for end in range(1, len(text) + 1):
            since = text[start:end]
            if len(set(since)) / len(since) < threshold:
                factors, start = factors + 1, end
        rest = text[start:]
        if rest:
            factors += (1 - len(set(rest)) / len(rest)) / (1 - threshold)
        both.append(len(text) / factors if factors else len(text))
    return sum(both) / 2


def test_the_authors_example_has_one_factor_forwards() -> None:
    """McCarthy and Jarvis 2010: "of the people by the people" ends a factor, "for the people" leaves a TTR of 1."""
    words = words_of("of the people by the people for the people")
    assert mtld(words) == (9 / 1 + 9 / 1) / 2
    assert mtld([*words, "of"]) == pytest.approx(plain([*words, "of"], 0.72))


@pytest.mark.parametrize("threshold", [0.72, 0.5])
def test_equals_the_definition(threshold: float) -> None:
    draw = random.Random(0)
    for size in range(1, 80):
        words = draw.choices("abcdefghijklmnop", k=size)
        assert mtld(words, threshold) == pytest.approx(plain(words, threshold))


def test_words_and_what_has_none() -> None:
    words = ["don\u2019t", "stop", "\u6d77\u6c34", "x_1", "\u00e9t\u00e9"]
    assert words_of("Don\u2019t STOP, \u6d77\u6c34 x_1 (\u00c9t\u00e9)!") == words
    assert mtld(["a", "b", "c"]) == 3 and mtld(["a"] * 10) == 2
    assert words_of("... ?") == []
    with pytest.raises(ValueError, match="without words"):
        mtld([])
    with pytest.raises(ValueError, match="between 0 and 1"):
        mtld(["a"], 1.0)
