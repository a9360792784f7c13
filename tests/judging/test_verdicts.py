"""Replies are read in many forms, and never guessed at."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.judging.verdicts import parse_rating, parse_score_pair, parse_verdict, verdict_probabilities

LABELS = ("A", "B", "tie")

VERDICTS = [
    # JSON, alone, fenced, in prose, broken
    ('{"verdict": "A"}', "A"),
    ('  {"verdict":"tie"}\n', "tie"),
    ('```json\n{"verdict": "B"}\n```', "B"),
    ('```\n{"verdict": "B", "reason": "short"}\n```', "B"),
    ('Here you are: {"verdict": "tie"}. Anything else?', "tie"),
    ('{"result": {"verdict": "A"}}', "A"),
    ('{"reason": "one may say {\\"verdict\\": \\"B\\"}", "verdict": "A"}', "A"),
    ('{"reason": "Verdict: B at first", "verdict": "A"}', "A"),
    ('{"verdict": "A", "reason": "because it is', "A"),  # cut off
    ('{"verdict": "A"', "A"),
    ("{'verdict': 'B'}", "B"),
    ("{verdict: A}", "A"),
    ('{"verdict": "a"}', "A"),
    ('{"verdict": "Tie"}', "tie"),
    ('{"verdict": "Answer B"}', "B"),
    ('{"verdict": "equal"}', "tie"),
    ('{"verdict": "A"} and again {"verdict": "A"}', "A"),
    ('{"verdict": "A"} [[B]]', "A"),  # the most explicit form decides
    ('{"verdict": "A", "verdict": "B"}', None),
    ('{"verdict": "A"}\n{"verdict": "B"}', None),
    ('{"verdict": "A"|"B"|"tie"}', None),  # the form, not a verdict
    ('{"verdict": "A or B"}', None),
    ('{"verdict": null}', None),
    ('{"verdict": 1}', None),
    ('{"verdict": ""}', None),
    ('{"verdict": "', None),
    ('{"verdict": "C"}', None),
    ('{"verdict": ["A"]}', None),
    # brackets
    ("[[A]]", "A"),
    ("Both are fine, but the first is exact. [[ B ]]", "B"),
    ("My final verdict is: [[A>>B]]", "A"),
    ("[[B>A]]", "B"),
    ("[[A<B]]", "B"),
    ("[[A=B]]", "tie"),
    ("[[tie]]", "tie"),
    ("[[C]]", "tie"),
    ("See [[1, 2], [3, 4]]: [[A]]", "A"),
    ("Either [[A]] or [[B]]", None),
    ("[[A>>A]]", None),
    ("[[D]]", None),
    # words
    ("Verdict: A", "A"),
    ("I read both answers with care.\n\nVerdict: B", "B"),
    ("**Final verdict:** **tie**", "tie"),
    ("**Verdict: Answer B.**", "B"),
    ("Verdict = [A]", "A"),
    ("The verdict is A, since it is right.", "A"),
    ("Verdict: A because it is right", "A"),
    ("Winner: Assistant B", "B"),
    ("The better answer is B.", "B"),
    ("The winner is Assistant A (by far)", "A"),
    ("Verdict: A is clearly better", "A"),
    ("Verdict: A tie", "tie"),
    ("Verdict: it's a tie", "tie"),
    ("verdict: both answers are equally good", "tie"),
    ("Verdict: A. ... On reflection, verdict: B.", None),
    ("Verdict: A or B", None),
    ("Verdict: A, B", None),
    ("Verdict: A/B", None),
    ("Verdict: A|B|tie", None),
    ("Verdict: A is worse than B", None),
    ("Verdict: A fails to convince me", None),
    ("The verdict is a close call", None),
    ("Verdict: Apples", None),
    ("Verdict: not A", None),
    ("Verdict:", None),
    # a line of its own
    ("A", "A"),
    ("b", "B"),
    ('"A"', "A"),
    ("(B)", "B"),
    ("**tie**", "tie"),
    ("A.", "A"),
    ("Answer A is better.", "A"),
    ("It's a tie.", "tie"),
    ("Draw", "tie"),
    ("B\n\nIt is shorter and right.", "B"),
    ("A says Paris. B says Rome.\n\nA", "A"),
    ("A\nB", None),
    ("A better answer would say Paris.", None),
    ("A and B", None),
    ("I cannot judge this.", None),
    ("", None),
    # thoughts are no reply
    ('<think>Verdict: A? No.</think>\n{"verdict": "B"}', "B"),
    ("<think>Verdict: A. But wait", None),
    ("A first thought, A</think>B", "B"),
]


@pytest.mark.parametrize(("text", "label"), VERDICTS)
def test_verdict(text, label):
    assert parse_verdict(text, LABELS) == label


def test_the_labels_decide_what_a_tie_is():
    for text in ('{"verdict": "tie"}', "It's a tie.", "[[C]]", "[[A=B]]"):
        assert parse_verdict(text, LABELS) == "tie"
        assert parse_verdict(text, ("A", "B")) is None


RATINGS = [
    ('{"score": 4.5}', 4.5),
    ('```json\n{"score": 0}\n```', 0.0),
    ('{"score": "3"}', 3.0),
    ('{"rating": 4, "why": "good"}', 4.0),
    ("Rating: [[3]]", 3.0),
    ("The answer is fine.\n\nRating: 4/5", 4.0),
    ("I would say a rating of 3.5 out of 5.", 3.5),
    ("**Score:** 4", 4.0),
    ("4\nIt is fine.", 4.0),
    ("**4.5**", 4.5),
    ("4/5", 4.0),
    ("\uff14", 4.0),
    ("Score: 4. I repeat: score: 4", 4.0),
    ('{"score": 6}', None),
    ('{"score": -1}', None),
    ('{"score": true}', None),
    ('{"score": null}', None),
    ('{"score": NaN}', None),
    ('{"score": 4, "score": 5}', None),
    ('{"score": 4} {"score": 5}', None),
    ("Score: 8/10", None),  # another scale
    ("Score: 4-5", None),
    ("Score: 4 or 5", None),
    ("Accuracy score: 4, relevance score: 5", None),
    ("4,5", None),
    ("3 4", None),
    ("-1", None),
    ("80%", None),
    ("1. It names the capital.", None),
    ("5 reasons speak for it", None),
    ("Good.", None),
    ("", None),
    ("<think>Score: 3", None),
]


@pytest.mark.parametrize(("text", "rating"), RATINGS)
def test_rating(text, rating):
    assert parse_rating(text, "rating", (0.0, 5.0)) == rating
    assert parse_rating(text, "number_line", (0.0, 5.0)) == rating


def test_which_form_of_a_rating_comes_first():
    text = "4\nOf the two parts one is missing. Score: 3"
    assert parse_rating(text, "number_line", (0.0, 5.0)) == 4.0
    assert parse_rating(text, "rating", (0.0, 5.0)) == 3.0
    assert parse_rating("87", "rating", None) == 87.0 and parse_rating("87/100", "rating", None) is None


PAIRS = [
    ("8 7", (8, 7)),
    ("\n 8.5  9 \nBoth are good: 1 2", (8.5, 9)),
    ("8, 7", (8, 7)),
    ("8/10 7/10", (8, 7)),
    ("8 out of 10, 7 out of 10", (8, 7)),
    ("8 / 7", (8, 7)),
    ("8 and 7", (8, 7)),
    ("(8, 7)", (8, 7)),
    ("**8 7**", (8, 7)),
    ("Scores: 8 7", (8, 7)),
    ("**Scores:** 8, 7", (8, 7)),
    ("8\n7\nThe first is better.", (8, 7)),
    ("0 10", (0, 10)),
    ("Assistant 1: 8\nAssistant 2: 7", (8, 7)),
    ("Assistant 2: 7, Assistant 1: 8", (8, 7)),
    ("Assistant 1's score: 8/10. Assistant 2's score: 7/10.", (8, 7)),
    ("**Assistant 1:** 8\n\n**Assistant 2:** 9 (clear)", (8, 9)),
    ("Answer A: 8\nAnswer B: 7\nAnswer A: 8, as I said.", (8, 7)),
    ("8", None),
    ("8/10", None),
    ("8-7", None),
    ("8 7 6", None),
    ("8 (good) 7", None),
    ("11 7", None),
    ("-1 8", None),
    ("8/20 7/20", None),
    ("Assistant 1: 8", None),
    ("Assistant 1: 8\nAssistant 1: 9\nAssistant 2: 7", None),
    ("Assistant 1: 7-8, Assistant 2: 6", None),
    ("Assistant 1:\n- Helpful: 8\n\nAssistant 2:\n- Helpful: 9", None),
    ("Assistant 1: 3 good points. Assistant 2: 4 good points.", None),
    ("1. Good\n2. Bad", None),
    ("Both are good.", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "pair"), PAIRS)
def test_score_pair(text, pair):
    assert parse_score_pair(text) == pair


@given(st.text(st.sampled_from("AB tie:{}[]\"'.,0158/\n*_verdictscore>=-"), max_size=60))
def test_no_text_raises(text):
    assert parse_verdict(text, LABELS) in (*LABELS, None)
    rating, pair = parse_rating(text, "rating", (0.0, 5.0)), parse_score_pair(text)
    assert rating is None or 0 <= rating <= 5
    assert pair is None or all(0 <= score <= 10 for score in pair)
    verdict_probabilities([{"token": text, "logprob": -0.1, "top_logprobs": []}], LABELS)


@pytest.mark.parametrize(
    "part", ["*", "{", '{"a":', "[[", "[[A", "verdict: ", "Assistant 1: ", "8 ", "8.", " \n", "A\n"]
)
def test_no_reply_takes_long(part):
    text = part * (20_000 // len(part))
    started = time.process_time()
    parse_verdict(text, LABELS)
    parse_rating(text, "rating", (0.0, 5.0))
    parse_score_pair(text)
    assert time.process_time() - started < 2.0


# ------------------------------------------------------------------------------------------------- probabilities


def tokens(*words: str, **alternatives: float) -> list[dict]:
    """Tokens; the one that starts with `|` gets the alternatives (probabilities)."""
    found = []
    for word in words:
        if word.startswith("|"):
            top = [{"token": name, "logprob": math.log(p)} for name, p in alternatives.items()]
            found.append({"token": word[1:], "logprob": math.log(alternatives[word[1:]]), "top_logprobs": top})
        else:
            found.append({"token": word, "logprob": 0.0, "top_logprobs": [{"token": word, "logprob": 0.0}]})
    return found


def near(**expected: float):
    return pytest.approx(expected, abs=1e-12)


def test_probabilities_at_the_value():
    found = verdict_probabilities(tokens('{"', "verdict", '":', ' "', "|A", '"}', A=0.6, B=0.3, tie=0.1), LABELS)
    assert found == near(A=0.6, B=0.3, tie=0.1)
    found = verdict_probabilities(
        tokens('{"verdict": ', '|"A', '"}', **{'"A': 0.6, '"B': 0.2, '"t': 0.1, "A": 0.1}), LABELS
    )
    assert found == near(A=0.6 / 0.9, B=0.2 / 0.9, tie=0.1 / 0.9)  # without the quote it is another reply
    found = verdict_probabilities(tokens('{"verdict":"', '|B"}', **{'B"}': 0.5, 'A"}': 0.4, "A": 0.1}), LABELS)
    assert found == near(A=0.5, B=0.5, tie=0.0)
    found = verdict_probabilities(tokens("Verdict", ":", "| tie", **{" tie": 0.7, " A": 0.2, "\n": 0.1}), LABELS)
    assert found == near(A=0.2 / 0.9, B=0.0, tie=0.7 / 0.9)
    found = verdict_probabilities(tokens("It follows: [[", "|t", "ie", "]]", t=0.5, ti=0.25, T=0.125, B=0.125), LABELS)
    assert found == near(A=0.0, B=0.125, tie=0.875)
    found = verdict_probabilities(tokens("|A", A=0.75, B=0.25), ("A", "B"))
    assert found == near(A=0.75, B=0.25)
    thought = tokens("<think>", "A", "</think>", '{"verdict": "', "|B", '"}', B=0.75, A=0.25)
    assert verdict_probabilities(thought, LABELS) == near(A=0.25, B=0.75, tie=0.0)


def test_no_probabilities_where_none_can_be_known():
    assert verdict_probabilities([], LABELS) is None
    assert verdict_probabilities(tokens("no ", "verdict"), LABELS) is None
    assert verdict_probabilities(tokens('{"verdict": "', "|A", '"}', A=0.3, B=0.1, x=0.6), LABELS) is None  # too little
    assert (
        verdict_probabilities([{"token": None}, {"token": "A", "logprob": None, "top_logprobs": [{}]}], LABELS) is None
    )
    bare = [{"token": '{"verdict": "', "logprob": 0.0}, {"token": "A", "logprob": 0.0}, {"token": '"}', "logprob": 0.0}]
    assert verdict_probabilities(bare, LABELS) is None  # no alternatives
    assert verdict_probabilities(tokens("[[", "|A", ">>B]]", A=0.6, B=0.4), LABELS) is None  # "A" could become [[A=B]]
    assert verdict_probabilities(tokens("[[", "|C", "]]", C=0.6, A=0.4), LABELS) is None
    assert verdict_probabilities(tokens('{"verdict": "', "|equal", '"}', equal=0.9, A=0.1), LABELS) is None


def test_unlikely_tokens_count_nothing():
    top = [{"token": "A", "logprob": 0.0}, {"token": "B", "logprob": -9999.0}, {"token": "tie", "logprob": -math.inf}]
    found = verdict_probabilities([{"token": "A", "logprob": 0.0, "top_logprobs": top}], LABELS)
    assert found == near(A=1.0, B=0.0, tie=0.0)
