"""Normalisation of tags: spelling rules, DBSCAN against scikit-learn, association rules against counting."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.algorithms.exact import ONE, similarities
from engine.algorithms.ragged import distinct_tags
from engine.algorithms.tag_rules import implied, named_groups, near_groups, same_by_rules, scaled, spelled
from engine.data.tag_lists import TagLists
from tests.algorithms.test_tag_coverage import ragged


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("Data Analysis", "data analysis"), ("data-analysis", "data analysis"), ("  SQL_query!! ", "sql query"),
        ("C++", "c++"), ("C#", "c#"), ("C", "c"), ("#1 tip + more", "1 tip more"), ("Übersetzung", "übersetzung"),
        ("文本分类", "文本分类"), ("???", ""), ("", ""), ("STRASSE", "strasse"), ("Straße", "strasse"),
    ],
)  # fmt: skip
def test_spelling(tag: str, name: str) -> None:
    assert spelled(tag) == name


def test_rules_name_a_group_by_its_most_frequent_spelling() -> None:
    counts = {"Poems": 2, "poem": 3, "poems": 2, "!": 9, "code": 1, "Codes": 1, "story": 5}
    assert same_by_rules(counts, lambda word: word.rstrip("s")) == {
        "Poems": "poems", "poem": "poems", "poems": "poems", "code": "code", "Codes": "code", "story": "story",
    }  # fmt: skip
    backwards = dict(reversed(counts.items()))
    assert same_by_rules(backwards, lambda word: word.rstrip("s")) == same_by_rules(counts, lambda w: w.rstrip("s"))


def test_thresholds_follow_the_size_of_the_pool() -> None:
    assert [scaled(20, queries, 1) for queries in (100, 30_000, 306_044, 10**7)] == [1, 2, 20, 20]
    assert scaled(40, 100, 10) == 10


def vectors(seed: int, rows: int, spread: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = np.repeat(rng.standard_normal((5, 6)), -(-rows // 5), axis=0)[:rows] + spread * rng.standard_normal((rows, 6))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize("min_samples", [1, 2, 3, 5])
@pytest.mark.parametrize("spread", [0.1, 0.3, 1.0])
def test_groups_are_those_of_dbscan(spread: float, min_samples: int) -> None:
    from sklearn.cluster import DBSCAN

    x = vectors(min_samples, 60, spread)
    group = near_groups(x, 0.95, min_samples)
    apart = np.clip(1 - similarities(x, x) / ONE, 0, None)
    model = DBSCAN(eps=0.05, min_samples=min_samples, metric="precomputed").fit(apart)
    core = np.zeros(len(x), dtype=bool)
    core[model.core_sample_indices_] = True
    assert {g for g in group.tolist() if core[g]} == {int(np.flatnonzero((model.labels_ == k) & core)[0])
                                                      for k in set(model.labels_[core].tolist())}  # fmt: skip
    for a, b in permutations(np.flatnonzero(core).tolist(), 2):
        assert (group[a] == group[b]) == (model.labels_[a] == model.labels_[b])
    for at in np.flatnonzero(~core).tolist():
        reachable = np.flatnonzero(core & (apart[at] <= 0.05))
        if len(reachable):  # a border point: the most similar core's group
            assert group[at] == group[reachable[np.argmin(apart[at][reachable])]]
        else:
            assert group[at] == at and model.labels_[at] == -1


def test_groups_are_named_by_their_most_frequent_tag() -> None:
    found = named_groups(["b", "a", "c"], np.array([2, 2, 5]), np.array([0, 0, 2]))
    assert found == {"b": "a", "a": "a", "c": "c"}


QUERIES = st.lists(st.lists(st.sampled_from("abcdef"), max_size=5), max_size=40)


@given(QUERIES, st.integers(1, 4), st.sampled_from([0.5, 0.75, 1.0]), st.permutations("abcdef"))
def test_association_rules_are_counted(
    queries: list[list[str]], min_support: int, confidence: float, names: list[str]
) -> None:
    support = Counter(tag for query in queries for tag in set(query))
    both = Counter(pair for query in queries for pair in permutations(sorted(set(query)), 2))

    def rank(tag: str) -> tuple[int, str]:
        return -support[tag], tag

    def target(tag: str) -> str:
        able = [
            b for (a, b), count in both.items()
            if a == tag and count >= min_support and count >= confidence * support[a] and rank(b) < rank(a)
        ]  # fmt: skip
        return target(min(able, key=lambda b: (-both[tag, b], rank(b)))) if able else tag

    tags_T, starts_Q1 = ragged([[names.index(tag) for tag in query] for query in queries])
    found = implied(tags_T, starts_Q1, names, min_support, confidence)
    assert found == {tag: target(tag) for tag in support if target(tag) != tag}


def test_lists_become_numbers_and_back() -> None:
    import pyarrow as pa

    lists = TagLists()
    rows = [["b", "a"], [], ["a", "a", "c"], ["b"]]
    lists.add(pa.array(rows[:2], pa.list_(pa.string())))
    lists.add(pa.chunked_array([pa.array(rows[2:], pa.list_(pa.string()))]))
    tags_T, starts_N1 = lists.arrays()
    assert [[lists.names[t] for t in tags_T[a:b]] for a, b in pairwise(starts_N1)] == rows
    tags_T, starts_N1 = distinct_tags(tags_T, starts_N1)
    sets = [{lists.names[t] for t in tags_T[a:b]} for a, b in pairwise(starts_N1)]
    assert sets == [set(row) for row in rows] and len(tags_T) == 5
    assert [part.tolist() for part in TagLists().arrays()] == [[], [0]]
