"""What the judge said and what the classifier learned of it: by round, by source, and against the source's name.

A selector that was learned from verdicts may have learned no more than which source a row comes from. Two figures on
the rows held out of training tell: how well the classifier ranks hard above easy *within* a source, and how well the
hard rate of the source alone does over all of them.
"""

# Shape letters: J labelled rows.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.algorithms.metrics import auc
from engine.algorithms.split import validation_mask
from engine.artifacts import Step
from engine.judging.pairwise import FIRST, SECOND
from engine.report.collect import Collected, numbers_of
from engine.schema import ANSWER, ERROR, HARD, ID, PROBABILITY, ROW, SOURCE, VERDICT, id_words
from engine.screen import few_rows
from engine.web_page import cut_texts, shown

FEW = 10  # hard or easy rows below which an AUC says little
ANSWER_CHARS, SOURCE_CHARS = 2_000, 80


def rounds(found: Collected) -> list[dict[str, Any]]:
    """The rounds of the run's summary, each with `judge_calls`, `few` and, where paid, `usd`, the answers with it."""
    reported = []
    for metrics in found.summary["rounds"]:
        folder = f"rounds/{metrics['round'] - 1:03d}"
        verdicts, answers = found.steps.get(f"{folder}/verdicts"), found.steps.get(f"{folder}/answers")
        paid = [total(step, "usd") for step in (verdicts, answers) if step is not None]
        usd = sum(value for value in paid if value is not None) if any(value is not None for value in paid) else None
        calls = judge_calls(verdicts) if verdicts is not None else metrics["judged"]
        reported.append({**metrics, "judge_calls": calls, "usd": usd, "few": few_rows(metrics)})
    return reported


def judge_calls(verdicts: Step) -> int:
    """Times the judge was asked: once for each order of a pair, or once a row."""
    table = verdicts.read_all()
    if FIRST in table.column_names:
        return sum(table.num_rows - table[name].null_count for name in (FIRST, SECOND))
    return table.num_rows


def total(step: Step, column: str) -> float | None:
    """Sum of a column of a small step; None when it has no such column."""
    table = step.read_all()
    return float(pc.sum(table[column]).as_py() or 0.0) if column in table.column_names else None  # pyright: ignore


def by_source(labelled: pa.Table, seed: int, validation_fraction: float) -> dict[str, Any] | None:
    """AUC on the rows held out of training: the classifier's, that of the source's name alone, and within each source.

    The baseline gives each row the hard rate of its source among the training rows, (hard + 1) / (rows + 2); a source
    that training never saw gets the rate of all.

    Args:
        labelled: `Collected.judged`.
        seed, validation_fraction: of the run; the split is the classifier's own.

    Returns:
        `held_out` (rows), `auc`, `source_auc`, `sources`: name, hard, easy, hard_rate, auc and `few`, most rows first.
        None without a probability or a held-out row.
    """
    if PROBABILITY not in labelled.column_names:
        return None
    probability_J = numbers_of(labelled, PROBABILITY)
    held_J = validation_mask(id_words(labelled[ID]), seed, validation_fraction) & np.isfinite(probability_J)
    if not held_J.any():
        return None
    hard_J = labelled[HARD].to_numpy()
    sources_J = np.array(labelled[SOURCE].to_pylist(), dtype=object)
    rate_J = source_rates(sources_J, hard_J, ~held_J)
    lines = []
    for source in sorted(set(sources_J[held_J])):
        inside_J = held_J & (sources_J == source)
        hard, rows = int(hard_J[inside_J].sum()), int(inside_J.sum())
        lines.append(
            {
                "source": shown(str(source), SOURCE_CHARS),
                "hard": hard,
                "easy": rows - hard,
                "hard_rate": hard / rows,
                "auc": auc(hard_J[inside_J], probability_J[inside_J]),
                "few": min(hard, rows - hard) < FEW,
            }
        )
    return {
        "held_out": int(held_J.sum()),
        "auc": auc(hard_J[held_J], probability_J[held_J]),
        "source_auc": auc(hard_J[held_J], rate_J[held_J]),
        "sources": sorted(lines, key=lambda entry: -(entry["hard"] + entry["easy"])),
    }


def source_rates(sources_J: np.ndarray, hard_J: np.ndarray, train_J: np.ndarray) -> np.ndarray:
    """(J,) float64 smoothed hard rate of each row's source among the training rows."""
    counts: dict[Any, tuple[int, int]] = {}
    for source, hard in zip(sources_J[train_J], hard_J[train_J], strict=True):
        seen, hards = counts.get(source, (0, 0))
        counts[source] = seen + 1, hards + int(hard)
    everyone = (int(hard_J[train_J].sum()) + 1) / (int(train_J.sum()) + 2)
    rates = {source: (hards + 1) / (seen + 2) for source, (seen, hards) in counts.items()}
    return np.array([rates.get(source, everyone) for source in sources_J])


def verdicts_of(found: Collected, rows: set[int]) -> dict[int, dict[str, Any]]:
    """What the judge said about some rows, and the answer it compared: round, verdict, scores, error, answer."""
    said: dict[int, dict[str, Any]] = {}
    for name, step in found.steps.items():
        if not (name.startswith("rounds/") and name.endswith("/verdicts")):
            continue
        number = int(name.split("/")[1]) + 1
        for entry in wanted_rows(step, rows).to_pylist():
            said[entry[ROW]] = {"round": number, **told(entry)}
        answers = found.steps.get(name.replace("/verdicts", "/answers"))
        if answers is not None:
            for entry in wanted_rows(answers, rows).to_pylist():
                said.setdefault(entry[ROW], {"round": number})[ANSWER] = entry[ANSWER] or f"failed: {entry[ERROR]}"
    return said


def wanted_rows(step: Step, rows: set[int]) -> pa.Table:
    """Rows of a small step, long answers cut part by part."""
    pieces = []
    for part in step.require().parts:
        table = step.read(part.index)
        table = table.filter(pc.is_in(table[ROW], pa.array(sorted(rows), pa.int64())))  # pyright: ignore
        pieces.append(cut_texts(table, [name for name in (ANSWER, ERROR) if name in table.column_names], ANSWER_CHARS))
    return pa.concat_tables(pieces)


def told(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The judge's columns that hold something, by the names a reader knows."""
    names = {
        VERDICT: "verdict", HARD: "hard", "score_reference": "score of the reference",
        "score_answer": "score of the answer", "p_reference": "probability that the reference wins",
        FIRST: "reply, reference shown first", SECOND: "reply, answer shown first", "suspect": "suspect",
        ERROR: "error",
    }  # fmt: skip
    return {label: entry[name] for name, label in names.items() if entry.get(name) is not None}
