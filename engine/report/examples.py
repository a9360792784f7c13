"""The rows that the page shows with their texts: the best, those at the cut, the worst, those judged, and a sample.

Texts are cut, and rows are added in this order until their texts reach a limit, so that the page stays small whatever
the pool holds. It draws nothing; text leaves here without control characters, and the page shows it as text only.
"""

# Shape letters: I rows.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from engine.report.collect import CHARS, Collected
from engine.report.judged import verdicts_of
from engine.report.page import json_text
from engine.report.rows import texts_of
from engine.schema import ANSWER, FILE, HARD, ID, LINE, PROMPT, RESPONSE, ROW, SOURCE, TURNS
from engine.web_page import shown

MOST_ROWS = 2_000
MOST_BYTES = 3_500_000  # of all rows, as they stand in the page
SHOWN_CHARS = 1_200  # of a prompt, a response or an answer
NAME_CHARS = 120  # of a source, a file or a reason
KINDS = {"top": 100, "cut": 75, "below": 75, "rejected": 100, "judged": 150}
LABELS = {
    "top": "top", "cut": "last selected", "below": "best left out", "rejected": "lowest", "judged": "judged",
    "sample": "sample",
}  # fmt: skip


def picked_rows(found: Collected, judged: Sequence[int]) -> dict[int, str]:
    """Row -> kind, at most MOST_ROWS, the kinds in the order of KINDS and then a sample of the pool.

    Args:
        judged: rows that the judge saw.
    """
    picked: dict[int, str] = {}
    columns = {name: found.listed[name][ROW].to_pylist() for name in KINDS if name in found.listed}
    columns["judged"] = sorted(judged)
    columns["sample"] = found.pool[ROW].slice(0, MOST_ROWS).to_pylist()
    for kind, rows in columns.items():
        room = min(KINDS.get(kind, MOST_ROWS), MOST_ROWS - len(picked))
        new = [row for row in rows if row not in picked][:room]
        picked |= dict.fromkeys(new, kind)
    return picked


def example_rows(
    found: Collected, picked: Mapping[int, str], facts: Mapping[int, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of the table, as many as fit into MOST_BYTES.

    Args:
        picked: row -> kind, the most telling first.
        facts: row -> its columns of `scores/`.
    """
    rows = [row for row in picked if row in facts]
    texts = texts_of(found.steps["ingest"], np.array(rows, dtype=np.int64)) if rows else {}
    said = verdicts_of(found, set(rows))
    shown_rows, size = [], 0
    for row in rows:
        entry = example(found, picked[row], facts[row], texts[row], said.get(row))
        size += len(json_text(entry).encode())
        if size > MOST_BYTES:
            break
        shown_rows.append(entry)
    return shown_rows


def example(
    found: Collected,
    kind: str,
    facts: Mapping[str, Any],
    texts: Mapping[str, str],
    said: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """One row as the table shows it."""
    core = {ID, ROW, FILE, LINE, SOURCE, TURNS, *CHARS, "rank", "selected", "reason", HARD, found.score, found.cluster}
    scores = {name: rounded(value) for name, value in facts.items() if name not in core}
    return {
        "id": facts[ID],
        "kind": LABELS[kind],
        "selected": facts["selected"],
        "rank": facts["rank"],
        "score": rounded(facts.get(found.score)) if found.score else None,
        "source": shown(facts[SOURCE], NAME_CHARS),
        "cluster": facts.get(found.cluster) if found.cluster else None,
        "where": f"{shown(facts[FILE].rsplit('/', 1)[-1], NAME_CHARS)}:{facts[LINE]}",
        "turns": facts[TURNS],
        "prompt": shown(texts[PROMPT], SHOWN_CHARS),
        "response": shown(texts[RESPONSE], SHOWN_CHARS),
        "chars": [facts[name] for name in CHARS],
        "reason": shown(facts["reason"], NAME_CHARS),
        "scores": {name: value for name, value in scores.items() if value is not None},
        "judge": judge_entry(said) if said else None,
    }


def judge_entry(said: Mapping[str, Any]) -> dict[str, Any]:
    """What the judge said, its answer cut and cleaned."""
    entry = {name: rounded(value) for name, value in said.items() if name != ANSWER}
    return {name: shown(value, SHOWN_CHARS) if isinstance(value, str) else value for name, value in entry.items()} | (
        {ANSWER: shown(said[ANSWER], SHOWN_CHARS)} if ANSWER in said else {}
    )


def rounded(value: Any) -> Any:
    """Four significant digits; None for what is not finite, which JSON does not know."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None


def facts_of(tables: Sequence[pa.Table], rows: set[int]) -> dict[int, dict[str, Any]]:
    """Row -> its columns, from whichever table has it."""
    found: dict[int, dict[str, Any]] = {}
    for table in tables:
        inside = np.isin(table[ROW].to_numpy(), np.fromiter(rows - found.keys(), dtype=np.int64))
        found |= {entry[ROW]: entry for entry in table.filter(pa.array(inside)).to_pylist()}
    return found
