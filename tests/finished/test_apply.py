"""`apply`: new rows get the scores that the run would have given them, bit for bit, and the cut selects among them."""

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
from engine.models.probe import ProbeModel
from engine.settings_apply import load_apply
from engine.store import Store
from tests.conftest import Recorder
from tests.finished.conftest import JUDGE, Finished, scores_of
from tests.runs import config_for, outputs, run_local, run_ray

Capture = pytest.CaptureFixture[str]
COLUMNS = ("probability", "similarity", "score", "cluster")


def applied(run: Path, data: Path, out: Path, *words: str) -> dict[str, dict]:
    """Applies a run in process; the scores by id."""
    run_local(load_apply(str(run), [str(data), f"out={out}", *words], local=True), Recorder())
    return scores_of(out)


def numbers(rows: dict[str, dict], keys: Any) -> dict[str, tuple]:
    return {key: tuple(rows[key][name] for name in COLUMNS) for key in keys}


@pytest.fixture(scope="module")
def held(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The held-back tenth with the run applied, by the real command."""
    out = tmp_path_factory.mktemp("held") / "out"
    assert run_cli(["apply", str(finished.out), str(finished.held), "-o", str(out), "--local", "--quiet"]) == 0
    return out


def test_held_back_rows_score_as_beside_the_pool(finished: Finished, held: Path, tmp_path: Path) -> None:
    """The whole pool scored by the run of nine tenths: those have the run's own bits, the tenth those it has alone."""
    whole, ran, tenth = (
        applied(finished.out, finished.whole, tmp_path / "whole"),
        scores_of(finished.out),
        scores_of(held),
    )
    assert len(tenth) > 15 and whole.keys() == ran.keys() | tenth.keys() and not ran.keys() & tenth.keys()
    assert numbers(whole, ran) == numbers(ran, ran)
    assert numbers(whole, tenth) == numbers(tenth, tenth)
    assert json.loads((tmp_path / "whole" / "drift.json").read_text())["known_rows"] == len(ran)
    assert json.loads((held / "drift.json").read_text())["known_rows"] == 0


def test_scores_are_those_of_the_definition(finished: Finished, held: Path) -> None:
    """M of the last classifier, R as the largest product with any hard row, F their sum: in float64, without tiles."""
    steps = {step.name: step for step in steps_of(Store(str(finished.out)))}
    (embed,) = (step for step in steps_of(Store(str(held))) if step.name == "embed")
    table = pq.read_table(held / "scores").sort_by("row")
    x_ND = vectors_from_arrow(embed.read_all(["vector"])["vector"])
    classifier = max(name for name in steps if name.endswith("/classifier"))
    model = ProbeModel.from_bytes((finished.out / steps[classifier].folder / "model.safetensors").read_bytes())
    log = [
        step.read_all(["hard", "vector"]) for name, step in steps.items() if "/labels" in name or "inference" in name
    ]
    hard_HD = np.concatenate([vectors_from_arrow(t["vector"])[t["hard"].to_numpy()] for t in log]).astype(np.float64)
    r_N = (x_ND.astype(np.float64) @ hard_HD.T).max(axis=1).clip(0, 1)
    m_N = model.probability(x_ND)
    assert np.array_equal(table["probability"].to_numpy(), m_N)
    assert table["similarity"].to_numpy() == pytest.approx(r_N, abs=1e-5)
    assert table["score"].to_numpy() == pytest.approx(0.7 * m_N + 0.3 * r_N, abs=1e-5)


def test_the_cut_of_the_run_selects(finished: Finished, held: Path) -> None:
    ran, tenth = scores_of(finished.out), scores_of(held)
    cut = sorted(row["score"] for row in ran.values())[-40]  # the run selected 40 rows
    reached = sorted((row for row in tenth.values() if row["score"] >= cut), key=lambda row: -row["score"])
    chosen = sorted((row for row in tenth.values() if row["selected"]), key=lambda row: row["rank"])
    assert 0 < len(chosen) < len(tenth) and [row["score"] for row in chosen] == [row["score"] for row in reached]
    assert {row["reason"] for row in chosen} == {f"score of at least {cut:.4f}, the cut of the run"}
    assert {row["reason"] for row in tenth.values() if not row["selected"]} == {"score below the cut"}
    assert (held / "ids.txt").read_text().split() == [row["id"] for row in chosen]
    assert len(pq.read_table(held / "data")) == len(chosen)
    card = (held / "README.md").read_text()
    assert f"score of at least {cut:.4f}" in card and "drift of the cluster" in card
    assert run_cli(["report", str(held), "--no-pictures"]) == 0
    page, facts = ((held / "report" / name).read_text() for name in ("index.html", "report.json"))
    facts = json.loads(facts)
    assert f"<b>{cut:.4f}</b>, the cut of that run" in page and "drift from its pool" in page
    assert facts["score"]["cut"] == facts["applied"]["cut"] == pytest.approx(cut) and facts["score"]["cut_applied"]
    record = json.loads((held / "run.json").read_text())
    assert {line["rows"] for line in record["summary"]["baselines"][:-1]} == {len(chosen)}


def test_a_budget_takes_the_best(finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    line = ["apply", str(finished.out), str(finished.held), f"out={tmp_path / 'out'}", "--local"]
    assert run_cli([*line, "budget=5"]) == 0
    printed = capsys.readouterr().out
    assert "drift from the pool of the run" in printed and "apply: done in" in printed
    rows = scores_of(tmp_path / "out").values()
    best = sorted((row["score"] for row in rows), reverse=True)[:5]
    assert [row["score"] for row in sorted((r for r in rows if r["selected"]), key=lambda r: r["rank"])] == best
    assert {row["reason"] for row in rows if not row["selected"]} == {"not among the best scores"}
    assert explain(str(tmp_path / "out"), next(r["id"] for r in rows))["standing"]["cut"] == pytest.approx(best[-1])
    assert run_cli(["explain", str(tmp_path / "out"), next(r["id"] for r in rows if r["selected"])]) == 0
    assert "nearest rows of the hard set" in capsys.readouterr().out
    assert run_cli([*line, "budget=0.5", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["selected"] == round(0.5 * len(rows))
    assert {step["name"]: step["reused"] for step in summary["steps"]}["scores"]


def test_what_cannot_be_applied(finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    other = tmp_path / "random"
    assert run_cli(["run", "random", str(finished.pool), f"out={other}", "budget=9", "--local", "--quiet"]) == 0
    new = [str(finished.held), "--local", "--quiet"]
    out = f"out={tmp_path / 'out'}"
    refused = [
        ([str(other), *new, out], 2, "no selector that stands on its own"),
        ([str(tmp_path), *new, out], 4, "E441"),
        ([str(finished.out), *new, f"out={finished.out}"], 2, "E227"),
        ([str(finished.out), *new], 2, "where the result goes must be said once"),
        ([str(finished.out), "--local", out], 2, "E229"),
        ([str(finished.out), *new, out, "encoder.max_tokens=32"], 2, "E228"),
        ([str(finished.out), *new, out, "budget=999"], 2, "E221"),
    ]
    for words, code, said in refused:
        assert run_cli(["apply", *words]) == code, words
        assert said in capsys.readouterr().err
    before = outputs(finished.out)
    assert run_cli(["run", "apply", *new, f"out={tmp_path / 'copy'}", f"recipe.run={finished.out}"]) == 2
    assert "another encoder" in capsys.readouterr().err and outputs(finished.out) == before


@pytest.mark.slow
def test_a_fine_tuned_classifier_and_minmax(finished: Finished, tmp_path: Path) -> None:
    """One-shot inference: the cut takes exactly the run's selection, out of its own pool."""
    own = [
        JUDGE, "recipe.inference=one_shot", "recipe.similarity=minmax", "recipe.max_rounds=2",
        f"recipe.classifier={{kind: finetune, model: {finished.pool.parent / 'encoder'}, epochs: 1, max_tokens: 64}}",
    ]  # fmt: skip
    run_local(config_for(finished.pool, tmp_path / "out", *own), Recorder())
    ran, whole = scores_of(tmp_path / "out"), applied(tmp_path / "out", finished.whole, tmp_path / "whole")
    assert numbers(whole, ran) == numbers(ran, ran)
    again = applied(tmp_path / "out", finished.pool, tmp_path / "again")
    chosen = [{key for key, row in rows.items() if row["selected"]} for rows in (ran, again)]
    assert chosen[0] == chosen[1] and len(chosen[0]) == 40


@pytest.mark.slow
@pytest.mark.ray
def test_the_same_bytes_on_ray(finished: Finished, held: Path, tmp_path: Path, ray_cluster: Any) -> None:
    config = load_apply(str(finished.out), [str(finished.held), f"out={tmp_path / 'ray'}", "data.part_rows=10"], False)
    run_ray(config, Recorder(), workers=1, shards=1)
    assert numbers(scores_of(tmp_path / "ray"), scores_of(held)) == numbers(scores_of(held), scores_of(held))
    assert (tmp_path / "ray" / "ids.txt").read_bytes() == (held / "ids.txt").read_bytes()
