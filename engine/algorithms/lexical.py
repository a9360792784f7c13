"""Lexical diversity of a text: MTLD, the mean length of word strings that keep a given type-token ratio.

McCarthy and Jarvis, "MTLD, vocd-D, and HD-D: A validation study of sophisticated approaches to lexical diversity
assessment", Behavior Research Methods 42 (2010). It knows nothing of files or rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

THRESHOLD = 0.72  # the authors' factor size
WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


def words_of(text: str) -> list[str]:
    """The words of a text without regard to case: runs of letters, digits and inner apostrophes.

    A script that is written without spaces, such as Chinese, gives one word per run of letters.
    """
    return WORD.findall(text.casefold())


def mtld(words: Sequence[str], threshold: float = THRESHOLD) -> float:
    """MTLD: words divided by factors, the mean of reading forwards and backwards.

    A factor ends at the word with which the type-token ratio (TTR) of the words since the last factor falls below the
    threshold. What is left at the end counts as the part (1 - TTR) / (1 - threshold) of a factor. A text in which no
    word comes twice has no factor at all; it counts as one (as in the package lexicalrichness), so its MTLD is its
    length.

    Args:
        words: at least one.
        threshold: factor size, above 0 and below 1.

    Raises:
        ValueError: no words, or a threshold without meaning.
    """
    if not words:
        raise ValueError("a text without words has no lexical diversity")
    if not 0.0 < threshold < 1.0:
        raise ValueError(f"the threshold is between 0 and 1, not {threshold}")
    return (_one_way(words, len(words), threshold) + _one_way(reversed(words), len(words), threshold)) / 2


def _one_way(words: Iterable[str], count: int, threshold: float) -> float:
    factors, types, tokens = 0.0, set[str](), 0
    for word in words:
        types.add(word)
        tokens += 1
        if len(types) < threshold * tokens:
            factors, types, tokens = factors + 1.0, set(), 0
    if tokens:
        factors += (1.0 - len(types) / tokens) / (1.0 - threshold)
    return count / (factors or 1.0)
