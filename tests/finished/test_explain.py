"""`explain`: rows of every fate, found by id, prefix and line; what it shows is what the run wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from engine.cli import run_cli
from engine.data.vectors import vectors_from_arrow
from engine.explain import explain
from engine.lineage import steps_of
from engine.store import Store
from tests.conftest import write_jsonl
from tests.finished.conftest import Finished, scores_of

Capture = pytest.CaptureFixture[str]


def first(finished: Finished, reason: str) -> dict[str, Any]:
    return next(row for row in scores_of(finished.out).values() if row["reason"].startswith(reason))


@pytest.mark.parametrize(
    ("reason", "status"),
    [("judged hard", "selected"), ("taken in", "selected"), ("judged easy", "left_out"), ("not taken in", "left_out"),
     ("not drawn", "left_out")],
)  # fmt: skip
def test_every_fate_is_told(finished: Finished, reason: str, status: str) -> None:
    row = first(finished, reason)
    found = explain(str(finished.out), row["id"])
    assert found == explain(str(finished.out), f"{finished.pool}:{row['line']}")
    assert (found["status"], found["reason"], found["rank"]) == (status, row["reason"], row["rank"])
    assert found["scores"] == {name: row[name] for name in ("probability", "similarity", "score", "cluster")}
    scores = [one["score"] for one in scores_of(finished.out).values()]
    assert found["standing"]["place"] == 1 + sum(other > row["score"] for other in scores)
    assert found["standing"]["cut"] is None  # turns have no common cut
    last = found["drawn"][-1] if found["drawn"] else None
    assert (last is not None and last["taken"]) == reason.startswith("taken")
    if last is not None and reason.endswith("taken in"):
        assert f"turn {last['turn']}" in row["reason"] and f"{last['score']:.4f} then" in row["reason"]
        assert last["score"] <= row["score"] + 1e-6  # the hard set only grew
        assert last["taken"] or (last["score"] <= last["lowest_taken"] and not row["selected"])
    assert bool(found["verdicts"]) == reason.startswith("judged")
    if found["verdicts"]:
        (verdict,) = found["verdicts"]
        assert verdict["label"] == reason.split()[1] and f"round {verdict['round']}" in row["reason"]
        assert verdict["margin"] == pytest.approx(verdict["score_reference"] - verdict["score_answer"])
        assert verdict["answer"]


def test_neighbours_are_the_most_similar_hard_rows(finished: Finished) -> None:
    """Against all products in float64; the first of them is R."""
    steps = {step.name: step for step in steps_of(Store(str(finished.out)))}
    x_ND = vectors_from_arrow(steps["embed"].read_all(["vector"])["vector"]).astype(np.float64)
    scores = scores_of(finished.out)
    by_row = {one["row"]: one["id"] for one in scores.values()}
    hard = [table for name, step in steps.items() if name.endswith("labels") for table in step.read_all().to_pylist()]
    hard_rows = [one["row"] for one in hard if one["hard"]]
    hard_rows += [one["row"] for one in scores.values() if one["reason"].startswith("taken in")]
    for row in (first(finished, "judged hard"), first(finished, "not taken")):
        found = explain(str(finished.out), row["id"], 4)["neighbours"]
        others = [other for other in hard_rows if other != row["row"]]
        cosine = x_ND[others] @ x_ND[row["row"]]
        best = np.argsort(-cosine, kind="stable")[:4]
        assert [one["similarity"] for one in found] == pytest.approx(cosine[best], abs=2e-4)
        assert found[0]["similarity"] == pytest.approx(row["similarity"], abs=2e-4)
        assert {one["id"] for one in found} <= set(by_row.values()) - {row["id"]}
        assert all(scores[one["id"]]["reason"].startswith(one["how"]) for one in found)


def test_a_rejected_row_says_why(finished: Finished, capsys: Capture) -> None:
    entry = json.loads((finished.out / "rejected.jsonl").read_text().splitlines()[0])
    assert run_cli(["explain", str(finished.out), f"pool.jsonl:{entry['line']}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"status": "rejected", **entry}
    assert run_cli(["explain", str(finished.out), f"pool.jsonl:{entry['line']}"]) == 0
    assert f"rejected: {entry['reason']}" in capsys.readouterr().out


def test_a_prefix_is_enough_and_a_wrong_id_gets_the_nearest(finished: Finished, capsys: Capture) -> None:
    ids = sorted(scores_of(finished.out))
    assert explain(str(finished.out), ids[7][:12])["id"] == ids[7]
    wrong = {
        "a wrong digit": ids[3][:20] + ("0" if ids[3][20] != "0" else "1") + ids[3][21:],
        "a digit too few": ids[3][:9] + ids[3][10:],
    }
    for text in wrong.values():
        assert run_cli(["explain", str(finished.out), text]) == 2
        assert f"did you mean {ids[3]}" in capsys.readouterr().err.replace("\n", "")
    for text, said in (("", "E223"), ("a", "E224"), ("zzz", "E223"), ("pool.jsonl:99999", "past the end"),
                       ("other.jsonl:1", "no file of this name")):  # fmt: skip
        assert run_cli(["explain", str(finished.out), text]) == 2
        assert said in capsys.readouterr().err


def test_text_of_rows_cannot_reach_the_terminal(tmp_path: Path, capsys: Capture) -> None:
    """Also: a recipe without scores, verdicts or a hard set shows what there is."""
    bad = "\x1b]0;owned\x07\x1b[2J\u202egnp.exe[bold red]"
    rows = [{"prompt": f"{bad} question {k}", "response": f"{bad} answer {k}", "source": bad} for k in range(12)]
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    assert run_cli(["run", "random", str(pool), f"out={tmp_path / 'out'}", "budget=4", "--local", "--quiet"]) == 0
    capsys.readouterr()
    for line in range(1, 13):
        assert run_cli(["explain", str(tmp_path / "out"), f"pool.jsonl:{line}"]) == 0
        printed = capsys.readouterr().out
        assert "question" in printed and "[bold red]" in printed.replace("\n", "")
        assert not set(printed) & {"\x1b", "\x07", "\u202e"}
    ids = pq.read_table(tmp_path / "out" / "scores")["id"].to_pylist()
    found = explain(str(tmp_path / "out"), ids[0])
    assert (found["standing"], found["verdicts"], found["neighbours"], found["scores"]) == (None, [], None, {})
