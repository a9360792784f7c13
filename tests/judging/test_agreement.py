"""Every number equals scikit-learn's, a published one, a naive count, or what many draws give."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from engine.judging.agreement import (
    LABELS,
    Z95,
    accuracy,
    cohen_kappa,
    combined,
    confusion,
    flip_rate,
    length_preference,
    longest,
    position_preference,
    proportion,
    random_judge,
    self_consistency,
)
from engine.judging.pairwise import OrderVerdict
from engine.judging.pairwise import combined as combined_of_a_run


def labels(num: int, seed: int, p: tuple[float, ...] = (0.5, 0.35, 0.15)) -> list[str]:
    return np.random.default_rng(seed).choice(LABELS, num, p=p).tolist()


def noisy(gold: list[str], kept: float, seed: int) -> list[str]:
    """The same labels, some of them replaced."""
    draws = np.random.default_rng(seed).random(len(gold))
    return [
        label if u < kept else other for label, other, u in zip(gold, labels(len(gold), seed + 1), draws, strict=True)
    ]


@pytest.mark.parametrize(("count", "of"), [(0, 7), (7, 7), (3, 10), (151, 430), (1, 100_000)])
def test_wilson_equals_scipy(count, of):
    expected = binomtest(count, of).proportion_ci(0.95, method="wilson")
    found = proportion(count, of)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found["share"] == count / of
    assert proportion(0, 0)["share"] is None


@pytest.mark.parametrize("seed", range(5))
def test_confusion_accuracy_and_kappa_equal_scikit_learn(seed):
    gold = labels(400, seed)
    judged = noisy(gold, 0.2 * seed, seed + 10)
    counts_LL = confusion(gold, judged)
    assert (counts_LL == confusion_matrix(gold, judged, labels=list(LABELS))).all()
    assert accuracy(counts_LL)["share"] == np.mean(np.array(gold) == np.array(judged))
    assert cohen_kappa(counts_LL)["value"] == pytest.approx(cohen_kappa_score(gold, judged), abs=1e-12)
    decisive = [(g, j) for g, j in zip(gold, judged, strict=True) if "tie" not in (g, j)]
    two = cohen_kappa(counts_LL[:2, :2])
    assert two["of"] == len(decisive)
    assert two["value"] == pytest.approx(cohen_kappa_score(*zip(*decisive, strict=True)), abs=1e-12)


def test_interval_equals_a_published_one():
    """R package statpsych, ci.kappa(.05, 31, 12, 4, 58): Cohen kappa 0.6756757, SE 0.07344761."""
    found = cohen_kappa(np.array([[31, 12], [4, 58]]))
    assert found["value"] == pytest.approx(0.6756757, abs=1e-7)
    assert found["low"] == pytest.approx(0.5317210, abs=1e-6)
    assert found["high"] == pytest.approx(0.8196303, abs=1e-6)


def test_interval_equals_the_formula_of_1969():
    """Fleiss, Cohen and Everitt, their equation 10, written out cell by cell."""
    counts = confusion(labels(700, 1), noisy(labels(700, 1), 0.5, 2))
    n = counts.sum()
    p = counts / n
    row, column = p.sum(axis=1), p.sum(axis=0)
    po, pe = np.trace(p), (row * column).sum()
    total = 0.0
    for i, j in product(range(3), repeat=2):
        if i == j:
            total += p[i, i] * ((1 - pe) - (column[i] + row[i]) * (1 - po)) ** 2
        else:
            total += (1 - po) ** 2 * p[i, j] * (column[i] + row[j]) ** 2
    error = np.sqrt((total - (po * pe - 2 * pe + po) ** 2) / (n * (1 - pe) ** 4))
    found = cohen_kappa(counts)
    assert found["high"] - found["low"] == pytest.approx(2 * Z95 * error, abs=1e-12)


@pytest.mark.parametrize("kept", [0.2, 0.6, 0.9])
def test_interval_agrees_with_the_bootstrap(kept):
    gold = labels(300, 5)
    counts = confusion(gold, noisy(gold, kept, 6))
    draws = np.random.default_rng(0).multinomial(300, counts.ravel() / 300, size=4000).reshape(-1, 3, 3)
    low, high = np.quantile([cohen_kappa(draw)["value"] for draw in draws], [0.025, 0.975])
    found = cohen_kappa(counts)
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.015)


def test_kappa_at_the_borders():
    assert cohen_kappa(np.zeros((3, 3), np.int64))["value"] is None
    assert cohen_kappa(confusion(["A"] * 5, ["A"] * 5))["value"] is None
    assert cohen_kappa(confusion(["A"] * 5, ["B"] * 5))["value"] == 0
    perfect = cohen_kappa(confusion(["A", "B", "tie"], ["A", "B", "tie"]))
    assert [perfect["value"], perfect["low"], perfect["high"]] == pytest.approx([1, 1, 1])
    assert perfect["high"] <= 1
    assert cohen_kappa(confusion(["A", "B"], ["B", "A"]))["value"] == pytest.approx(-1)
    with pytest.raises(ValueError, match="2 known"):
        confusion(["A", "B"], ["A"])
    with pytest.raises(ValueError, match="inconsistent"):
        confusion(["A"], ["inconsistent"])


def test_combined_is_the_rule_of_a_run():
    winner = {
        "first": {"A": "reference", "B": "answer", "tie": "tie"},
        "second": {"A": "answer", "B": "reference", "tie": "tie"},
    }
    meaning = {"A": "reference", "B": "answer", "tie": "tie", "inconsistent": "inconsistent"}
    for first, second in product((None, *LABELS), repeat=2):
        if first is None and second is None:
            assert combined(first, second) is None
            continue
        shown = {order: label for order, label in (("first", first), ("second", second)) if label}
        verdicts = {o: OrderVerdict(label, winner[o][label], None, None, []) for o, label in shown.items()}
        assert meaning[combined(first, second)] == combined_of_a_run(verdicts)["verdict"]


def test_flips_and_position_equal_naive_counts():
    first: list[str | None] = [*labels(200, 3), None, "A"]
    second: list[str | None] = [*labels(200, 4), "A", None]
    flips = both = shown = decisive = 0
    for a, b in zip(first, second, strict=True):
        if a and b:
            both += 1
            chosen = ({"A": "x", "B": "y"}.get(a), {"A": "y", "B": "x"}.get(b))
            flips += None not in chosen and chosen[0] != chosen[1]
        for label in (a, b):
            decisive += label in ("A", "B")
            shown += label == "A"
    assert (flip_rate(first, second)["count"], flip_rate(first, second)["of"]) == (flips, both)
    assert both == 200
    found = position_preference(first, second)
    assert (found["count"], found["of"]) == (shown, decisive)


def test_extreme_judges():
    always_first = ["A"] * 50
    assert flip_rate(always_first, always_first)["share"] == 1
    assert position_preference(always_first, always_first)["share"] == 1
    steady, swapped = ["A", "B"] * 25, ["B", "A"] * 25
    assert flip_rate(steady, swapped)["share"] == 0
    assert position_preference(steady, swapped)["share"] == 0.5
    assert flip_rate(["A"], [None])["share"] is None


def test_length_preference_equals_a_naive_count():
    said = labels(300, 7)
    rng = np.random.default_rng(8)
    chars_a, chars_b = rng.integers(1, 20, 300).tolist(), rng.integers(1, 20, 300).tolist()
    won = [
        (a, b) if label == "A" else (b, a)
        for label, a, b in zip(said, chars_a, chars_b, strict=True)
        if label != "tie" and a != b
    ]
    found = length_preference(said, chars_a, chars_b)
    assert (found["count"], found["of"]) == (sum(winner > loser for winner, loser in won), len(won))
    by_length = [longest(a, b) for a, b in zip(chars_a, chars_b, strict=True)]
    assert length_preference(by_length, chars_a, chars_b)["share"] == 1
    assert by_length.count("tie") == sum(a == b for a, b in zip(chars_a, chars_b, strict=True))


def test_self_consistency_equals_naive_counts():
    rng = np.random.default_rng(1)
    repeats = [labels(int(rng.integers(0, 6)), seed) for seed in range(60)]
    counted = [votes for votes in repeats if len(votes) > 1]
    majority = sum(max(votes.count(label) for label in LABELS) for votes in counted)
    pairwise = [np.mean([a == b for a, b in combinations(votes, 2)]) for votes in counted]
    found = self_consistency(repeats)
    assert (found["pairs"], found["judgments"]) == (len(counted), sum(map(len, counted)))
    assert found["majority"] == pytest.approx(majority / sum(map(len, counted)))
    assert found["pairwise"] == pytest.approx(np.mean(pairwise))
    assert self_consistency([["A"], []])["majority"] is None


def test_the_random_judge_is_the_mean_of_many_draws():
    gold = labels(200, 9)
    rng = np.random.default_rng(2)
    seen = []
    for _ in range(3000):
        first, second, again = (rng.choice(LABELS[:2], 200).tolist() for _ in range(3))
        counts = confusion(gold, first)
        seen.append(
            (
                accuracy(counts)["share"],
                cohen_kappa(counts)["value"],
                accuracy(counts[:2, :2])["share"],
                cohen_kappa(counts[:2, :2])["value"],
                flip_rate(first, second)["share"],
                position_preference(first, second)["share"],
                length_preference(first, [2] * 200, [1] * 200)["share"],
                np.mean(np.array(first) == np.array(again)),
            )
        )
    assert np.mean(seen, axis=0) == pytest.approx(list(random_judge(gold).values()), abs=0.004)
    assert random_judge([])["accuracy"] is None
