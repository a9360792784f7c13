"""F is the paper's formula, ties go to the smaller id, and no score that is not finite gets a rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.algorithms.ranking import combine_scores, top_rows
from engine.errors import ConfigError, StepError


def test_formula():
    m_N, r_N = np.array([0.0, 0.5, 1.0], np.float32), np.array([1.0, 0.25, 0.0], np.float32)
    assert combine_scores(m_N, r_N, 0.75).tolist() == [0.25, 0.4375, 0.75]
    assert combine_scores(m_N, r_N, 1.0).tolist() == m_N.tolist()
    assert combine_scores(m_N, r_N, 0.0).tolist() == r_N.tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_an_error(bad: float):
    broken, fine, words = np.array([0.1, bad]), np.array([0.1, 0.2]), np.arange(2, dtype=np.uint64)
    with pytest.raises(StepError, match="position 1"):
        combine_scores(broken, fine, 0.5)
    with pytest.raises(StepError, match="position 1"):
        combine_scores(fine, broken, 0.5)
    for num in (0, 1, 2):
        with pytest.raises(StepError, match="position 1"):
            top_rows(broken, words, num)


def test_bad_arguments():
    with pytest.raises(ConfigError, match="alpha"):
        combine_scores(np.zeros(2), np.zeros(2), 1.5)
    with pytest.raises(StepError, match="combined"):
        combine_scores(np.zeros(2), np.zeros(3), 0.5)


SCORED = st.tuples(st.sampled_from([-1.0, -0.0, 0.0, 0.25, 0.5, 1.0]), st.integers(0, 2**64 - 1))


@given(
    st.lists(SCORED, max_size=60, unique_by=lambda pair: pair[1]),
    st.integers(0, 70),
    st.integers(1, 6),
    st.integers(0, 99),
)
def test_order_and_merge_equal_a_plain_sort(rows: list[tuple[float, int]], num: int, num_shards: int, seed: int):
    scores_N = np.array([score for score, _ in rows], dtype=np.float64)
    words = np.array([word for _, word in rows], dtype=np.uint64)
    expected = sorted(range(len(rows)), key=lambda row: (-rows[row][0], rows[row][1]))[:num]
    assert top_rows(scores_N, words, num).tolist() == expected

    order = np.random.default_rng(seed).permutation(len(rows))
    best = [piece[top_rows(scores_N[piece], words[piece], num)] for piece in np.array_split(order, num_shards)]
    together = np.concatenate(best)
    assert together[top_rows(scores_N[together], words[together], num)].tolist() == expected
