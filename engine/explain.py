"""Why a row of a finished run is in or out: everything the run folder knows of it, gathered from committed files.

It computes no score and judges nothing: what is shown is what the run wrote, and the similarity of the row's stored
vector to the stored hard set. The pool is read part by part, ids and scores only, and texts of a few rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from engine.artifacts import Step, take_rows
from engine.composition import RESERVED
from engine.data.vectors import vectors_from_arrow
from engine.errors import DataError
from engine.expansion import made_of
from engine.find_row import find_row
from engine.lineage import steps_of
from engine.recipes.iterselect import DRAWN, taken_in
from engine.run_folder import read_manifest, run_steps
from engine.schema import ANSWER, FILE, ID, LINE, PROMPT, RECORD, RESPONSE, ROW, SOURCE, TURNS, VECTOR, id_words
from engine.store import Store
from engine.trained import SELECTORS, HardSet, TrainedSelector, hard_rows, load_selector

SNIPPET_CHARS = 300
WITH_HARD_SET = (*SELECTORS, "apply")
VERDICT_FACTS = (
    "verdict", "first", "second", "score_reference", "score_answer", "p_reference", "p_tie", "suspect", "error",
)  # fmt: skip


def explain(out: str, wanted: str, neighbours: int = 5) -> dict[str, Any]:
    """What a finished run knows of one row.

    Args:
        out: run folder.
        wanted: id of the row, a start of it that no other row has, or `file:line` of the input.
        neighbours: rows of the hard set to show, where the run has one.

    Returns:
        JSON-able. Always `status` ("selected", "left_out" or "rejected"), `file`, `line`, `reason`. A rejected row:
        `detail`, `snippet`. Others: `id`, `row`, `source`, `turns`, `prompt`, `response` (their starts), `made_of` (id
        of the row that a model rewrote, None for one of the input), `rank` (from 1, None), `scores`, `standing` (see
        `standing_of`, None without a score), `drawn` (see `turns_of`), `verdicts`,
        `neighbours` (None without a hard set), `passes` (what else the run measured of it), `notes`.

    Raises:
        DataError: E441, there is no finished run.
        ConfigError: E223, no such row; E224, more than one.
    """
    run = Store(out)
    record = read_manifest(run)
    found = find_row(run, wanted)
    if "reason" in found:
        return {"status": "rejected", **found}
    row, summary = found[ROW], record["summary"]
    steps, pool = steps_of(run), run_steps(run)["ingest"]
    texts = take_rows(pool, np.array([row]), [PROMPT, RESPONSE, RECORD]).to_pylist()[0]
    scores = part_row(run, found)
    facts: dict[str, Any] = {"status": "selected" if scores["selected"] else "left_out", "recipe": summary["recipe"]}
    facts |= {name: scores[name] for name in (ID, ROW, FILE, LINE, SOURCE, TURNS, "rank", "reason")}
    facts |= {"prompt": snippet(texts[PROMPT]), "response": snippet(texts[RESPONSE])}
    facts["made_of"] = made_of(facts[FILE], texts[RECORD])
    facts["scores"] = {name: value for name, value in scores.items() if name not in RESERVED}
    column = summary.get("score")
    facts["standing"] = standing_of(run, column, scores[column], cut_of(run)) if column else None
    facts["drawn"] = turns_of(steps, row)
    facts["verdicts"] = verdicts_of(steps, row)
    facts["notes"] = notes_on(facts)
    facts["neighbours"], facts["passes"] = None, []
    if summary["recipe"] not in WITH_HARD_SET:
        facts["passes"] = passes_of(steps, pool, row)
        return facts
    try:
        selector = load_selector(run.root if summary["recipe"] in SELECTORS else record["config"]["recipe"]["run"])
    except DataError as error:  # an applied run whose own run is gone
        facts["notes"].append(f"The hard set is not here: {error.what}.")
        return facts
    facts["neighbours"] = hard_neighbours(selector, steps, facts, neighbours)
    return facts


def part_row(run: Store, place: dict[str, Any]) -> dict[str, Any]:
    """The row of `scores/`."""
    table = pq.read_table(run.open_read(f"scores/{place['part']}"))
    return table.slice(place["at"], 1).to_pylist()[0]


def cut_of(run: Store) -> float | None:
    """The score at which the selection ends, where one ranking of the pool gave it; None for all others."""
    return run_steps(run, "selected")["selected"].require().extra.get("cut")


def standing_of(run: Store, column: str, value: float | None, cut: float | None) -> dict[str, Any]:
    """Where a score stands in the pool.

    Returns:
        `column`; `of`, rows with a score; `place`, from 1, of this row from the top (ties share the best; None without
        a score); `selected` and `left_out`: [lowest, highest] score, None where there is none; `cut`: the given one.
    """
    scores, chosen = [], []
    for part in run.list("scores"):
        table = pq.read_table(run.open_read(f"scores/{part}"), columns=[column, "selected"])
        scores.append(table[column].to_numpy(zero_copy_only=False).astype(np.float64))
        chosen.append(table["selected"].to_numpy(zero_copy_only=False))
    score_N, chosen_N = np.concatenate(scores), np.concatenate(chosen)
    known_N = np.isfinite(score_N)

    def span(inside_N: np.ndarray) -> list[float] | None:
        values = score_N[inside_N & known_N]
        return [float(values.min()), float(values.max())] if len(values) else None

    return {
        "column": column,
        "of": int(known_N.sum()),
        "place": None if value is None else int((score_N[known_N] > value).sum()) + 1,
        "selected": span(chosen_N),
        "left_out": span(~chosen_N),
        "cut": cut,
    }


def turns_of(steps: Sequence[Step], row: int) -> list[dict[str, Any]]:
    """The inference turns that drew a row: `turn`, `score` then, whether it was `taken`, `lowest_taken` score."""
    found = []
    for step in sorted((step for step in steps if step.name.startswith(f"{DRAWN}/")), key=lambda step: step.name):
        drawn = row_of(step, row)
        if drawn is not None:
            lowest = float(taken_in(step)[1][-1])
            about = {"score": drawn["score"], "taken": drawn["taken"], "lowest_taken": lowest}
            found.append({"turn": int(step.name.split("/")[1]) + 1, **about})
    return found


def verdicts_of(steps: Sequence[Step], row: int) -> list[dict[str, Any]]:
    """What the judge said of a row, round by round: its verdict, both orders, scores, and the label that came of it."""
    named = {step.name: step for step in steps}
    found = []
    for name in [name for name in named if re.fullmatch(r"rounds/\d+/verdicts", name)]:
        verdict = row_of(named[name], row)
        if verdict is None:
            continue
        about = name.removesuffix("verdicts")
        label = row_of(named[f"{about}labels"], row) or {}
        answer = row_of(named[f"{about}answers"], row) if f"{about}answers" in named else None
        found.append(
            {
                "round": int(about.split("/")[1]) + 1,
                **{key: verdict[key] for key in VERDICT_FACTS if verdict.get(key) is not None},
                "margin": margin_of(verdict),
                "label": {True: "hard", False: "easy", None: None}[label.get("hard")],
                "soft": label.get("soft"),
                "answer": snippet((answer or {}).get(ANSWER)),
            }
        )
    return found


def margin_of(verdict: Mapping[str, Any]) -> float | None:
    """By how much the judge preferred the reference to the model's answer: in its scores, else in its probabilities."""
    pair = verdict.get("score_reference"), verdict.get("score_answer")
    if pair[0] is None or pair[1] is None:
        p_tie = verdict.get("p_tie") or 0.0
        pair = verdict.get("p_reference"), 1.0 - p_tie - (verdict.get("p_reference") or 0.0)
    return None if pair[0] is None else pair[0] - pair[1]


def row_of(step: Step, row: int) -> dict[str, Any] | None:
    """One row of a step by its number in the pool, without vectors; None when the step has not got it."""
    for part in step.require().parts:
        at = np.flatnonzero(step.read(part.index, [ROW])[ROW].to_numpy() == row)
        if len(at):
            table = step.read(part.index)
            return table.select([n for n in table.column_names if n != VECTOR]).slice(int(at[0]), 1).to_pylist()[0]
    return None


def hard_neighbours(
    selector: TrainedSelector, steps: Sequence[Step], facts: Mapping[str, Any], num: int
) -> list[dict[str, Any]]:
    """The rows of the hard set most similar to a row, best first.

    Returns:
        Per neighbour `id`, `file`, `line`, `similarity` (cosine), `how` it came into the hard set, `prompt`.
    """
    (vectors,) = (step for step in steps if step.name == "embed")
    if not num:
        return []
    x_D = vectors_from_arrow(take_rows(vectors, np.array([facts["row"]]), [VECTOR])[VECTOR])[0]
    nearest = HardSet(selector).nearest(x_D, id_words([facts["id"]])[0], num)
    known: dict[int, dict[str, Any]] = {}
    for log in {log for _, _, log in nearest}:
        rows = [row for row, _, entry in nearest if entry == log]
        known |= dict(zip(rows, hard_rows(selector, rows, log), strict=True))
    return [
        {**known[row], "similarity": round(cosine, 4), PROMPT: snippet(known[row][PROMPT])}
        for row, cosine, _ in nearest
    ]


def passes_of(steps: Sequence[Step], pool: Step, row: int) -> list[dict[str, Any]]:
    """What passes over the whole pool found for a row, but for vectors: per step `step` and `columns`."""
    shape = [part.rows for part in pool.require().parts]
    found = []
    for step in steps:
        if step.name in ("ingest", "scores", "selected") or [part.rows for part in step.require().parts] != shape:
            continue
        names = [name for name in step.read(0).column_names if name not in (ROW, VECTOR)]
        if names and step.folder != pool.folder:
            values = take_rows(step, np.array([row]), names).to_pylist()[0]
            shown = {k: snippet(v) if isinstance(v, str) else v for k, v in values.items() if k in names}
            found.append({"step": step.name, "columns": {k: v for k, v in shown.items() if v is not None}})
    return found


def notes_on(facts: Mapping[str, Any]) -> list[str]:
    """What a reader might take for a contradiction: a run by turns has no cut, and the score shown is the last one."""
    standing, score = facts["standing"], facts["scores"].get("score")
    if facts["recipe"] != "iterselect" or score is None or standing["cut"] is not None:
        return []
    lowest = standing["selected"][0]
    if facts["status"] == "left_out" and score >= lowest:
        return [
            "This score is that of the final hard set, and some selected rows have a lower one: rows were taken turn "
            "by turn, each time the best by the score of the moment among those drawn. The reason says what became of "
            "this row."
        ]
    return []


def snippet(text: str | None) -> str | None:
    """The start of a text."""
    if text is None or len(text) <= SNIPPET_CHARS:
        return text
    return text[:SNIPPET_CHARS] + " ..."
