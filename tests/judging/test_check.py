"""The report on a judge says what it is: perfect, fair, biased or a coin, and the baselines beside it are right."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import accuracy_score, cohen_kappa_score

from engine.judging.agreement import OTHER
from engine.judging.check import check_report, render
from engine.judging.gold import Pair

USD = {"calls": 0, "tokens_in": 0, "tokens_out": 0, "usd": 0.0}


def gold_pairs(num: int, seed: int = 0) -> list[Pair]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 30, (num, 2)).tolist()
    gold = rng.choice(["A", "B", "tie"], num, p=[0.45, 0.45, 0.1]).tolist()
    return [Pair(str(k), [], "x" * a, "y" * b, gold[k]) for k, (a, b) in enumerate(sizes)]


def report_of(pairs, first, second=None, errors=None, repeats=None, totals=USD):
    num = len(pairs)
    return check_report(pairs, first, second or [None] * num, errors or [None] * num, repeats or [[]] * num, totals)


def test_a_perfect_judge():
    pairs = gold_pairs(400)
    first = [pair.gold for pair in pairs]
    report = report_of(pairs, first, [OTHER[label] for label in first])
    judge = report["judge"]
    assert judge["accuracy"]["share"] == judge["decisive_accuracy"]["share"] == 1
    assert judge["kappa"]["value"] == pytest.approx(1)
    assert judge["flips"]["share"] == judge["inconsistent"]["share"] == 0
    assert judge["shown_first"]["share"] == 0.5
    assert judge["longer"] == report["gold"]["longer"]
    assert report["warnings"] == []
    assert report["gold"]["A"] + report["gold"]["B"] + report["gold"]["tie"] == 400


def test_a_noisy_judge_equals_scikit_learn():
    pairs = gold_pairs(500)
    rng = np.random.default_rng(1)
    first = [pair.gold if rng.random() < 0.7 else str(rng.choice(["A", "B", "tie"])) for pair in pairs]
    second = [OTHER[pair.gold] if rng.random() < 0.7 else str(rng.choice(["A", "B", "tie"])) for pair in pairs]
    judge = report_of(pairs, first, second)["judge"]
    said = []
    for a, b in zip(first, [OTHER[label] for label in second], strict=True):
        said.append("A" if a == b == "A" else "B" if {a, b} in ({"B"}, {"B", "tie"}) else "tie")
    gold = [pair.gold for pair in pairs]
    assert judge["accuracy"]["share"] == accuracy_score(gold, said)
    assert judge["kappa"]["value"] == pytest.approx(cohen_kappa_score(gold, said))
    decisive = [(g, s) for g, s in zip(gold, said, strict=True) if "tie" not in (g, s)]
    assert judge["decisive_accuracy"]["of"] == len(decisive)
    assert judge["decisive_kappa"]["value"] == pytest.approx(cohen_kappa_score(*zip(*decisive, strict=True)))
    assert np.sum(judge["confusion"]) == 500


def test_the_baselines():
    pairs = gold_pairs(300)
    baselines = report_of(pairs, [pair.gold for pair in pairs])["baselines"]
    assert baselines["longest"]["longer"]["share"] == 1
    assert baselines["longest"]["flips"]["share"] == 0
    assert baselines["longest"]["shown_first"]["share"] == 0.5
    said = ["A" if a > b else "B" if b > a else "tie" for a, b in ((len(p.answer_a), len(p.answer_b)) for p in pairs)]
    assert baselines["longest"]["kappa"]["value"] == pytest.approx(cohen_kappa_score([p.gold for p in pairs], said))
    assert baselines["random"]["accuracy"] == sum(p.gold != "tie" for p in pairs) / 600
    assert baselines["random"]["kappa"] == 0


def test_the_longest_judge_is_found_out():
    pairs = gold_pairs(400)
    first = ["A" if len(pair.answer_a) > len(pair.answer_b) else "B" for pair in pairs]
    report = report_of(pairs, first, [OTHER[label] for label in first])
    assert any("better than preferring the longer answer" in sentence for sentence in report["warnings"])
    assert any("100.0% of its decisive verdicts" in sentence for sentence in report["warnings"])


def test_the_first_place_judge_is_found_out():
    pairs = gold_pairs(400)
    report = report_of(pairs, ["A"] * 400, ["A"] * 400)
    assert report["judge"]["flips"]["share"] == report["judge"]["inconsistent"]["share"] == 1
    assert any("shown first: 100.0%" in sentence for sentence in report["warnings"])
    assert any("name the other answer" in sentence for sentence in report["warnings"])
    assert any("Only 0 pairs are decisive" in sentence for sentence in report["warnings"])


def test_failures_one_order_and_few_pairs():
    pairs = gold_pairs(50)
    first: list[str | None] = [pair.gold for pair in pairs]
    first[3] = None
    errors: list[str | None] = [None] * 50
    errors[7] = "timeout: x"
    report = report_of(pairs, first, errors=errors)
    assert (report["pairs"], report["judged"], report["failed"]) == (50, 48, 2)
    assert report["judge"]["flips"]["share"] is report["judge"]["inconsistent"]["share"] is None
    assert any("Only 48 pairs" in sentence for sentence in report["warnings"])
    errors = ["http_500: x"] * 50
    nothing = report_of(pairs, first, errors=errors)
    assert nothing["judged"] == 0
    assert nothing["judge"]["kappa"]["value"] is None
    assert any("50 of 50 pairs got no verdict" in sentence for sentence in nothing["warnings"])
    with pytest.raises(ValueError, match="shorter"):
        check_report(pairs, first, first, errors, [[]], USD)


def test_cost_is_that_of_a_run_without_repeats():
    pairs = gold_pairs(100)
    first = [pair.gold for pair in pairs]
    repeats = [["A", "A", "B"] if k < 50 else [] for k in range(100)]
    totals = {"calls": 300, "tokens_in": 3000, "tokens_out": 300, "usd": 0.6}
    report = report_of(pairs, first, [OTHER[label] for label in first], repeats=repeats, totals=totals)
    assert report["cost"]["usd_per_1000_calls"] == pytest.approx(2.0)
    assert report["cost"]["usd_per_1000_pairs"] == pytest.approx(4.0)
    assert report["judge"]["consistency"] == {
        "pairs": 50,
        "judgments": 150,
        "majority": pytest.approx(2 / 3),
        "pairwise": pytest.approx(1 / 3),
    }
    assert report_of(pairs, first)["cost"]["usd_per_1000_pairs"] is None


def test_json_and_what_a_person_sees():
    pairs = gold_pairs(320)
    rng = np.random.default_rng(4)
    first = [pair.gold if rng.random() < 0.8 else "A" for pair in pairs]
    report = report_of(pairs, first, [OTHER[label] for label in first], totals={**USD, "calls": 640, "usd": 0.64})
    assert json.loads(json.dumps(report)) == report
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render(report))
    text = console.export_text()
    for part in (
        "judge",
        "longest",
        "random",
        "known",
        "320 of 320 pairs judged",
        "$2.0000",
        "0.000",
        "50.0%",
    ):
        assert part in text, part
    assert f"{report['judge']['kappa']['value']:.3f}" in text
    console.print(render(report_of(pairs, [None] * 320)))
