"""From verdicts to labels, and what the verdicts of a run say about the judge. It knows nothing of rounds or models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.artifacts import Source, Step
from engine.judging.pairwise import FIRST, JUDGED_COLUMNS
from engine.judging.report import judge_facts
from engine.schema import ANSWER, ERROR, FILE, HARD, ID, LINE, PROMPT, RESPONSE, ROW, SOFT, VECTOR, VERDICT
from engine.store import Store


def label_table(
    batch: Step, verdicts: Step, tie: str, inconsistent: str, soft: bool
) -> tuple[pa.Table, dict[str, Any]]:
    """The labelled rows of a batch, and what the verdicts amounted to.

    Args:
        tie, inconsistent: what such a verdict counts as: "easy", "hard" or "drop".
        soft: keep the judge's probabilities.

    Returns:
        (row, id, vector, prompt, hard, soft of every labelled row; counts).
    """
    found = verdicts.read_all()
    hard = label_of(found[VERDICT], tie, inconsistent)
    table = batch.read_all([ROW, ID, VECTOR, PROMPT]).append_column(HARD, hard)
    table = table.append_column(SOFT, soft_labels(found, tie) if soft else no_soft(found))
    facts = {
        "judged": found.num_rows,
        "ties": found[VERDICT].to_pylist().count("tie"),
        "inconsistent": found[VERDICT].to_pylist().count("inconsistent"),
        "failed": found.num_rows - found[ERROR].null_count,
    }
    if "usd" in found.column_names:
        facts["usd"] = round(pc.sum(found["usd"]).as_py() or 0.0, 6)  # pyright: ignore
    return table.filter(pc.is_valid(hard)), facts  # pyright: ignore


def label_of(verdicts: pa.ChunkedArray, tie: str, inconsistent: str) -> pa.Array:
    """hard (true), easy (false) or unlabelled (null) of each verdict."""
    rule = {"easy": False, "hard": True, "drop": None}
    meaning = {"reference": True, "answer": False, "tie": rule[tie], "inconsistent": rule[inconsistent], None: None}
    return pa.array([meaning[verdict] for verdict in verdicts.to_pylist()], pa.bool_())


def soft_labels(verdicts: pa.Table, tie: str) -> pa.Array:
    """Probability of hard, float32, from the judge's token probabilities; null where it gave none.

    The mass of a tie counts as the rule for ties says; where ties are dropped it is left out.
    """
    if "p_reference" not in verdicts.column_names:
        return no_soft(verdicts)
    pairs = zip(verdicts["p_reference"].to_pylist(), verdicts["p_tie"].to_pylist(), strict=True)
    weight = {"easy": 0.0, "hard": 1.0, "drop": 0.0}[tie]
    soft = []
    for p_reference, p_tie in pairs:
        if p_reference is None:
            soft.append(None)
        else:
            known = 1.0 - p_tie if tie == "drop" else 1.0
            soft.append((p_reference + weight * p_tie) / known if known > 0 else None)
    return pa.array(soft, pa.float32())


def no_soft(verdicts: pa.Table) -> pa.Array:
    return pa.nulls(verdicts.num_rows, pa.float32())


def judge_report(store: Store, judged: Sequence[Source], identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """How far a model judge can be trusted, over all rounds; also in `judge.json`, its suspects in `suspects.jsonl`.

    None for judges that do not compare in two orders.
    """
    wanted = [ROW, ID, FILE, LINE, RESPONSE, ANSWER, *(field.name for field in JUDGED_COLUMNS)]
    if not judged or FIRST not in judged[0].read(0).column_names:
        return None
    table = pa.concat_tables([source.read(part.index, wanted) for source in judged for part in source.require().parts])
    for name, text in (("reference_chars", RESPONSE), ("answer_chars", ANSWER)):
        table = table.append_column(name, pc.fill_null(pc.utf8_length(table[text]), 0))  # pyright: ignore
    facts = {"judge": {name: identity.get(name) for name in ("model", "base_url", "prompt")}, **judge_facts(table)}
    store.write_bytes("judge.json", (json.dumps(facts, indent=1) + "\n").encode())
    suspects = table.filter(pc.is_valid(table["suspect"])).select([ROW, ID, FILE, LINE, "suspect"])  # pyright: ignore
    lines = [json.dumps(row, ensure_ascii=True) + "\n" for row in suspects.to_pylist()]
    store.write_bytes("suspects.jsonl", "".join(lines).encode())
    return facts
