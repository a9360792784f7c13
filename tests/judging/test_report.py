"""The facts of a verdict table equal naive counts, do not depend on the order or the split of its rows, and warn."""

from __future__ import annotations

import io
import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from engine.judging.agreement import combined, proportion
from engine.judging.report import judge_facts, merge_facts, reason, render

SCHEMA = pa.schema(
    {
        "verdict": pa.string(),
        "first": pa.string(),
        "second": pa.string(),
        "error": pa.large_string(),
        "canary": pa.bool_(),
        "suspect": pa.string(),
        "tokens_in": pa.int64(),
        "tokens_out": pa.int64(),
        "usd": pa.float64(),
        "reference_chars": pa.int32(),
        "answer_chars": pa.int32(),
    }
)
WON = {"A": "reference", "B": "answer", "tie": "tie", "inconsistent": "inconsistent"}


def judged(first: str | None, second: str | None, **more: Any) -> dict[str, Any]:
    """A row as a judge leaves it."""
    row = dict.fromkeys(SCHEMA.names) | {"first": first, "second": second, "reference_chars": 10, "answer_chars": 20}
    row |= {"verdict": WON[combined(first, second) or ""], "tokens_in": 100, "tokens_out": 5, "usd": 2.0**-10}
    return row | more


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def many(num: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num):
        first, second = rng.choice(["A", "B", "tie"], 2, p=[0.5, 0.4, 0.1]).tolist()
        chars = {"reference_chars": int(rng.integers(1, 6)), "answer_chars": int(rng.integers(1, 6))}
        kind = rng.random()
        if kind < 0.1:
            nothing = dict.fromkeys(("verdict", "first", "second"))
            why = ["timeout: too slow (5 attempts)", "http_500: oops", "no answer to judge"][int(rng.integers(3))]
            rows.append(judged("A", "B") | nothing | chars | {"error": why, "tokens_in": None, "usd": None})
        elif kind < 0.15:
            nothing = dict.fromkeys(("verdict", "first", "second"))
            rows.append(judged("A", "B") | nothing | chars | {"suspect": "injection phrase", "usd": 0.0})
        else:
            canary = {"canary": bool(rng.random() < 0.9)} if rng.random() < 0.2 else {}
            rows.append(judged(first, second if rng.random() < 0.8 else None, **chars, **canary))
    return rows


def test_facts_equal_naive_counts():
    rows = many(600, 0)
    facts = judge_facts(table(*rows))
    assert facts["rows"] == 600
    assert facts["verdicts"] == {name: sum(row["verdict"] == name for row in rows) for name in WON.values()}
    assert facts["judged"] == sum(row["verdict"] is not None for row in rows)
    assert facts["failed"] == sum(row["error"] is not None for row in rows)
    assert facts["not_asked"] == sum(row["suspect"] is not None for row in rows)
    assert facts["rows"] == facts["judged"] + facts["failed"] + facts["not_asked"]
    both = [row for row in rows if row["first"] and row["second"]]
    assert facts["inconsistent"] == proportion(facts["verdicts"]["inconsistent"], len(both))
    assert facts["flips"] == proportion(sum(row["first"] == row["second"] != "tie" for row in both), len(both))
    shown = [row[order] for row in rows for order in ("first", "second") if row[order] in ("A", "B")]
    assert facts["shown_first"] == proportion(shown.count("A"), len(shown))
    decisive = [row for row in rows if row["verdict"] in ("reference", "answer")]
    assert facts["decisive"] == len(decisive)
    unequal = [row for row in decisive if row["reference_chars"] != row["answer_chars"]]
    longer = sum((row["reference_chars"] > row["answer_chars"]) == (row["verdict"] == "reference") for row in unequal)
    assert facts["longer"] == proportion(longer, len(unequal))
    canaries = [row["canary"] for row in rows if row["canary"] is not None]
    assert facts["canary_errors"] == proportion(canaries.count(False), len(canaries))
    assert facts["suspects"] == {"injection phrase": facts["not_asked"]}
    names = {"timeout": "timeout", "http_500": "http_500", "no": "no answer to judge"}
    failures = Counter(names[row["error"].replace(":", " ").split()[0]] for row in rows if row["error"])
    assert facts["failures"] == failures
    assert list(facts["failures"].values()) == sorted(failures.values(), reverse=True)
    assert facts["tokens_in"] == sum(row["tokens_in"] or 0 for row in rows)
    assert facts["tokens_out"] == 5 * 600
    assert facts["usd"] == sum(row["usd"] or 0 for row in rows)
    assert facts["usd_per_1000"] == 1000 * facts["usd"] / facts["judged"]
    assert json.loads(json.dumps(facts)) == facts


def test_order_and_split_of_the_rows_do_not_matter():
    rows = many(300, 1)
    whole = judge_facts(table(*rows))
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(300)]
    assert json.dumps(judge_facts(table(*shuffled))) == json.dumps(whole)
    rounds = [table(*rows[:70]), table(), table(*rows[70:71]), table(*rows[71:])]
    assert merge_facts(rounds) == whole
    assert merge_facts([table(*rows)]) == whole


def test_an_empty_table():
    facts = judge_facts(table())
    assert facts["usd_per_1000"] is None
    assert facts["flips"]["share"] is facts["longer"]["share"] is facts["canary_errors"]["share"] is None
    assert facts["usd"] == facts["tokens_in"] == 0
    assert len(facts["warnings"]) == 1


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([judged("A", "B")] * 30 + [judged("B", "A")] * 30, []),
        ([judged("A", "B")] * 60 + [judged("A", "A"), judged("B", "B")] * 10, []),  # exactly a quarter
        ([judged("A", "B")] * 59 + [judged("A", "A"), judged("B", "B")] * 10, ["name the other answer"]),
        ([judged("A", "A")] * 200 + [judged("A", "B")] * 800, ["prefers the answer shown first: 60.0%"]),
        ([judged("B", "B")] * 200 + [judged("A", "B")] * 800, ["prefers the answer shown second: 60.0%"]),
        ([judged("A", "B")] * 29, ["Only 29 decisive"]),
        ([judged("A", "B", canary=True)] * 95 + [judged("A", "B", canary=False)] * 5, []),
        ([judged("A", "B", canary=True)] * 94 + [judged("A", "B", canary=False)] * 6, ["got 6 of 100 canaries wrong"]),
        (
            [judged("A", "B")] * 90 + [judged("A", "B", verdict=None, error="timeout: x")] * 10,
            ["10 of 100 rows got no"],
        ),
    ],
)
def test_warnings(rows, said):
    found = judge_facts(table(*rows))["warnings"]
    watched = any(row["canary"] is not None for row in rows)
    assert any(sentence.startswith("No canary came along") for sentence in found) != watched
    found = [sentence for sentence in found if not sentence.startswith("No canary")]
    assert len(found) == len(said), found
    assert all(part in sentence for part, sentence in zip(said, found, strict=True))


@pytest.mark.parametrize(
    ("error", "group"),
    [
        ("http_500: internal: error (3 attempts)", "http_500"),
        ("E512: no quota", "E512"),
        ("no answer to judge", "no answer to judge"),
        ("the server said: no", "the server said: no"),
        ("x " * 100, ("x " * 30)),
    ],
)
def test_reasons(error, group):
    assert reason(error) == group


def test_what_a_person_sees():
    rows = [*many(200, 3), judged("A", "B", suspect="hidden \x1b[31m text\u202e")]
    console = Console(width=160, record=True, file=io.StringIO())
    facts = judge_facts(table(*rows))
    console.print(render(facts))
    text = console.export_text()
    assert "\x1b" not in text and "\u202e" not in text
    assert f"{facts['flips']['share']:.1%}" in text
    assert f"${facts['usd_per_1000']:,.4f}" in text
    assert "timeout" in text and "! " in text
    console.print(render(judge_facts(table())))
