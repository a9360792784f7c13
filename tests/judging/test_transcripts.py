"""The parsers on real judge transcripts: every reply is read, and as its publishers read it.

Two properties are checked. As published: each score equals the recorded one. Damaged, with what carries the verdict
cut away: what can still be read agrees with the record, and nothing is invented.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from engine.judging.verdicts import parse_rating, parse_score_pair, parse_verdict

Pair = tuple[float, float]


def rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def gpt4(real_data) -> list[tuple[str, Pair]]:
    """Both orders; the second is recorded in the order of the first, its text is in the order shown."""
    pairs = []
    for row in rows(real_data / "judge_raw_gpt4_reviews_1434.jsonl.gz"):
        pairs.append((row["response_QUERY0"], tuple(row["eval_QUERY0"])))
        pairs.append((row["response_QUERY1"], tuple(reversed(row["eval_QUERY1"]))))
    return pairs


@pytest.fixture(scope="module")
def gpt35(real_data) -> list[tuple[str, Pair]]:
    pairs = []
    for row in rows(real_data / "judge_raw_gpt35_cherry_vs_alpaca.jsonl.gz"):
        pairs.append((row["review"], tuple(json.loads(row["scores"]))))
        pairs.append((row["review_reverse"], tuple(json.loads(row["scores_reverse"]))))
    return pairs


@pytest.fixture(scope="module")
def autoj(real_data) -> list[tuple[str, float]]:
    return [
        (row["target_output"], row["pred_score"])
        for row in rows(real_data / "judge_raw_gpt4_autoj_single_960.jsonl.gz")
    ]


@pytest.mark.parametrize(("name", "count"), [("gpt4", 2868), ("gpt35", 2060)])
def test_score_pairs_are_those_on_record(request, name, count):
    transcripts = request.getfixturevalue(name)
    assert len(transcripts) == count
    assert [text for text, recorded in transcripts if parse_score_pair(text) != recorded] == []


def test_scores_below_the_asked_scale_are_kept(gpt4):
    assert sum(0 in recorded for _, recorded in gpt4) == 5  # asked for 1 to 10, answered 0


def test_ratings_are_those_on_record(autoj):
    assert len(autoj) == 960
    assert [text for text, recorded in autoj if parse_rating(text, "rating", (1.0, 10.0)) != recorded] == []


@pytest.mark.parametrize(("name", "readable"), [("gpt4", 0), ("gpt35", 804)])
def test_without_the_first_line_only_labelled_scores_are_read(request, name, readable):
    """GPT-3.5 often repeats "Assistant 1: 8"; scores per criterion, counts and years must not pass for scores."""
    cut = [(parse_score_pair(text.partition("\n")[2]), recorded) for text, recorded in request.getfixturevalue(name)]
    read = [(pair, recorded) for pair, recorded in cut if pair is not None]
    assert len(read) == readable
    assert all(pair == recorded for pair, recorded in read)


def test_ratings_without_brackets_and_without_the_rating(autoj):
    scale = (1.0, 10.0)
    bare = [(parse_rating(text.replace("[[", "").replace("]]", ""), "rating", scale), score) for text, score in autoj]
    # one critique quotes "a score of 10.1" before its "Rating: 5": two statements, so none
    assert [(rating, score) for rating, score in bare if rating != score] == [(None, 5.0)]
    cut = [parse_rating(text.rpartition("Rating:")[0], "rating", scale) for text, _ in autoj]
    assert cut == [None] * 960


def test_reviews_with_scores_hold_no_verdict(gpt4, gpt35, autoj):
    for text, _ in [*gpt4, *gpt35, *autoj]:
        assert parse_verdict(text, ("A", "B", "tie")) is None
