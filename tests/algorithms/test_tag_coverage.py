"""Tag coverage is the published loop, for any rows, order and budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.algorithms.tag_coverage import coverage, tag_coverage
from engine.errors import StepError


def plain_coverage(tags: Sequence[set[int]], complexity: Sequence[float], words: Sequence[int], num: int) -> list[int]:
    """The loop as it is described, one row and one set after the other."""
    left = sorted(range(len(tags)), key=lambda row: (-complexity[row], words[row]))
    found: list[int] = []
    while len(found) < num:
        covered: set[int] = set()
        rest = []
        for row in left:
            if len(found) < num and len(covered | tags[row]) > len(covered):
                covered |= tags[row]
                found.append(row)
            else:
                rest.append(row)
        if not covered:
            break
        left = rest
    return found


def ragged(tags: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.cumsum([0, *map(len, tags)])
    return np.array([tag for row in tags for tag in row], dtype=np.int32), starts


def select(tags: Sequence[Sequence[int]], complexity: Sequence[float], words: Sequence[int], num: int) -> list[int]:
    return tag_coverage(*ragged(tags), np.array(complexity, np.float64), np.array(words, np.uint64), num).tolist()


ROWS = st.lists(
    st.tuples(st.lists(st.integers(0, 7), max_size=5), st.integers(0, 2**64 - 1)),
    max_size=40,
    unique_by=lambda row: row[1],
)


@given(ROWS, st.integers(0, 45), st.integers(0, 99))
def test_is_the_published_loop_for_any_order_of_the_rows(
    rows: list[tuple[list[int], int]], num: int, seed: int
) -> None:
    tags, words = [row for row, _ in rows], [word for _, word in rows]
    sizes = [len(set(row)) for row in tags]
    expected = plain_coverage([set(row) for row in tags], sizes, words, num)
    assert select(tags, sizes, words, num) == expected
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    moved = select([tags[k] for k in order], [sizes[k] for k in order], [words[k] for k in order], num)
    assert [order[k] for k in moved] == expected


@given(ROWS, st.integers(0, 45), st.lists(st.sampled_from([0.5, 1.0, 1.5]), min_size=40, max_size=40))
def test_the_walk_may_follow_another_complexity(
    rows: list[tuple[list[int], int]], num: int, complexity: list[float]
) -> None:
    tags, words = [row for row, _ in rows], [word for _, word in rows]
    expected = plain_coverage([set(row) for row in tags], complexity, words, num)
    assert select(tags, complexity[: len(rows)], words, num) == expected


def test_zipf_tags_at_a_size_that_takes_many_walks() -> None:
    rng = np.random.default_rng(0)
    tags = [(rng.zipf(1.3, rng.integers(0, 9)) % 300).tolist() for _ in range(3000)]
    words = rng.permutation(3000).tolist()
    sizes = [len(set(row)) for row in tags]
    for num in (50, 1500, 3000):
        assert select(tags, sizes, words, num) == plain_coverage([set(row) for row in tags], sizes, words, num)


def test_rows_without_tags_are_never_taken_and_a_complexity_must_be_a_number() -> None:
    assert select([[], [1], []], [9, 1, 9], [1, 2, 3], 3) == [1]
    assert select([], [], [], 3) == []
    with pytest.raises(StepError, match="position 1"):
        select([[1], [2]], [1, np.nan], [1, 2], 1)


def test_figures_of_a_selection() -> None:
    tags_T, starts_N1 = ragged([[0, 1], [1], [2, 3, 4], []])
    assert coverage(tags_T, starts_N1, np.array([0, 2])) == (1.0, 2.5)
    assert coverage(tags_T, starts_N1, np.array([1, 3])) == (0.2, 0.5)
    assert coverage(tags_T, starts_N1, np.array([], np.int64)) == (0.0, 0.0)
