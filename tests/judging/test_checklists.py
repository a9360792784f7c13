"""Replies to forms: every key answered in the form that was asked for, or nothing is read."""

from __future__ import annotations

import json

import pytest

from engine.judging.checklists import Checked, parse_checklist, parse_criteria
from engine.judging.verdicts import expected_rating, parse_rating

RULES = ["imports", "notes"]


def form(**values: object) -> str:
    return json.dumps({"imports": "yes", "notes": "no", "overall": "yes", **values})


@pytest.mark.parametrize(
    "text",
    [
        form(),
        f"```json\n{form()}\n```",
        f"I went through the rules; no doubt about it.\n{form()}\nThere is no more to say.",
        f"<think>{form(overall='no')}</think>{form()}",
        form(imports=True, notes=False, overall="YES."),
        f"{form()} and again {form(imports='Yes')}",
        form(note="no rule of mine"),
    ],
)
def test_a_form_that_can_be_read(text: str) -> None:
    assert parse_checklist(text, RULES, "overall") == Checked(True, ("notes",))


@pytest.mark.parametrize(
    "text",
    [
        "", "no", "yes", "overall: yes", "Nothing is wrong with it.", "{}", "[]", "null",
        '{"imports": "yes", "overall": "yes"}',
        form(imports="perhaps"), form(imports=None), form(imports="yes and no"), form(overall=""), form(notes=1),
        form()[:-1],
        form() + form(overall="no"),
        form() + '{"overall": "yes"}',
        '{"imports": "yes", "imports": "no", "notes": "no", "overall": "yes"}',
        json.dumps({"answer": json.loads(form())}),
        f"<think>{form()}",
        "[" * 5000,
    ],
)  # fmt: skip
def test_a_form_that_says_nothing_or_two_things(text: str) -> None:
    assert parse_checklist(text, RULES, "overall") is None


def test_criteria_are_numbers_on_the_scale() -> None:
    def read(text: str) -> dict[str, float] | None:
        return parse_criteria(text, ["a", "b"], (0.0, 5.0))

    assert read('Well: {"a": 0, "b": 4.5}') == {"a": 0.0, "b": 4.5}
    wrong = [
        "3 and 4",
        '{"a": 1}',
        '{"a": 1, "b": 5.5}',
        '{"a": 1, "b": -1}',
        '{"a": true, "b": 1}',
        '{"a": "1", "b": 1}',
    ]
    wrong += ['{"a": NaN, "b": 1}', '{"a": 1, "b": Infinity}', '{"a": 1, "b": 2} or {"a": 2, "b": 2}']
    assert [read(text) for text in wrong] == [None] * len(wrong)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("It is complete, a score of 4 would be unfair.\n\nScore: 5", 5.0),
        ("Reasons.\n**Final score: 3/5**", 3.0),
        ("Reasons.\nScore: 7", None),
        ("Reasons.\nScore: 4 or 5", None),
        ("A score of 4 or a score of 5?", None),
        ("Score: 2\nbecause it is vague", 2.0),
        ('{"score": 4}', 4.0),
        ("Scores of no kind", None),
    ],
)
def test_a_score_in_the_last_line(text: str, score: float | None) -> None:
    assert parse_rating(text, "score_line", (1.0, 5.0)) == score


def said(*words: str, **chances: float) -> list[dict]:
    """Tokens of a reply; the one that begins with a digit has these alternatives (log-probabilities)."""
    top = [{"token": word.replace("d", ""), "logprob": value} for word, value in chances.items()]
    return [
        {"token": word, "logprob": -0.5, "top_logprobs": top if word.strip()[:1].isdigit() else []} for word in words
    ]


def test_the_expectation_over_digits() -> None:
    import math

    half = math.log(0.5)
    scale = (0.0, 5.0)
    tokens = said('{"', "score", '":', " 4", "}", **{" 4": half, " 2": math.log(0.25), " 9": math.log(0.2), " x": -9.0})
    assert expected_rating(tokens, "rating", scale) == pytest.approx((4 * 0.5 + 2 * 0.25) / 0.75)
    assert expected_rating(said("Score", ":", " ", "3", d3=half, d5=half), "score_line", scale) == pytest.approx(4.0)
    assert expected_rating(said("4", "\nbecause", d4=0.0), "number_line", scale) == 4.0
    few = said("4", d4=math.log(0.4), Four=math.log(0.6))
    nothing = [few, said("4", ".5", d4=0.0), said("4"), said("10", d10=0.0), said("good"), [{"token": "4"}], []]
    assert [expected_rating(tokens, "rating", scale) for tokens in nothing] == [None] * len(nothing)
