"""`apply --update`: the loop goes on among new rows, and what comes of it is a run like the first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from engine.artifacts import Step
from engine.cli import run_cli
from engine.cut import pool_scores
from engine.data.vectors import vectors_from_arrow
from engine.explain import explain
from engine.lineage import steps_of
from engine.models.probe import ProbeSettings, train_probe
from engine.plan_steps import plan_steps
from engine.recipes import update
from engine.report.write import write_report
from engine.schema import id_words
from engine.settings_apply import load_apply
from engine.store import Store
from engine.takeover import smallest
from engine.trained import HardSet, load_selector
from engine.trainer import targets
from tests.conftest import Recorder
from tests.fake_server import FakeServer
from tests.finished.conftest import JUDGE, Finished, scores_of
from tests.finished.test_apply import applied, numbers
from tests.paid.cli_runs import generator, judge, tell
from tests.runs import config_for, outputs, run_local, run_ray

Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Updated:
    """The run of nine tenths, updated with the whole pool: what it knows is among the new rows; then removed."""

    out: Path
    hard_before: set[int]  # words of the ids
    labels_before: dict[str, bool]
    cut_before: float


def steps(out: Path) -> dict[str, Step]:
    return {step.name: step for step in steps_of(Store(str(out)))}


def labels(out: Path) -> dict[str, bool]:
    """hard of every row that the rounds of a run labelled, by id."""
    tables = [step.read_all(["id", "hard"]) for name, step in steps(out).items() if name.endswith("/labels")]
    return {row["id"]: row["hard"] for table in tables for row in table.to_pylist()}


def hard_words(out: Path) -> set[int]:
    return set(HardSet(load_selector(str(out)))._words_M.tolist())


@pytest.fixture(scope="module")
def updated(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Updated:
    folder = tmp_path_factory.mktemp("updated")
    former = folder / "former"
    shutil.copytree(finished.out, former)
    line = ["apply", str(former), str(finished.whole), f"out={folder / 'out'}", "--update", "--local", "--quiet"]
    assert run_cli(line) == 0
    before, seen = outputs(folder / "out"), pool_scores(load_selector(str(former)))
    assert run_cli([*line, "--json"]) == 0 and outputs(folder / "out") == before
    found = Updated(folder / "out", hard_words(former), labels(former), seen.cut)
    shutil.rmtree(former)  # nothing may need it from here on
    return found


def test_no_row_is_judged_twice_and_the_hard_set_grows(updated: Updated) -> None:
    batches = [step.read_all(["id"])["id"].to_pylist() for name, step in steps(updated.out).items() if "batch" in name]
    asked = [key for batch in batches for key in batch]
    assert len(batches) == 3 and len(asked) == len(set(asked)) and not set(asked) & updated.labels_before.keys()
    now, new = hard_words(updated.out), labels(updated.out)
    hard_ids = [key for key, hard in new.items() if hard]
    assert now == updated.hard_before | set(id_words(hard_ids).tolist()) and len(now) > len(updated.hard_before)
    summary = json.loads((updated.out / "run.json").read_text())["summary"]
    assert [one["judged"] for one in summary["rounds"]] == [len(batch) for batch in batches]
    assert summary["rounds"][-1]["num_train"] + summary["rounds"][-1]["num_val"] == len(updated.labels_before | new)


def test_the_classifier_learns_from_the_old_labels_and_the_new(updated: Updated) -> None:
    """The model is that of all labels at once, in an order of their own."""
    selector = load_selector(str(updated.out))
    tables = [step.read_all() for step in selector.log if step.name != "hard_before"]
    ids = [key for table in tables for key in table["id"].to_pylist()]
    vectors = np.concatenate([vectors_from_arrow(table["vector"]) for table in tables])
    goal = np.concatenate([targets(table) for table in tables])
    assert set(ids) == updated.labels_before.keys() | labels(updated.out).keys()
    model, _ = train_probe(vectors[::-1], goal[::-1], id_words(ids[::-1]), ProbeSettings(validation_fraction=0.2), 0)
    folder = Path(selector.checkpoint.store.path(selector.checkpoint.folder))
    assert (folder / "model.safetensors").read_bytes() == model.to_bytes()


def test_the_cut_keeps_the_share_of_all_rows_so_far(updated: Updated) -> None:
    """Also: judged rows follow their verdicts, whichever run asked for them, and all others the cut."""
    seen, rows = pool_scores(load_selector(str(updated.out))), scores_of(updated.out)
    assert sorted(seen.words_P.tolist()) == sorted(id_words(list(rows)).tolist())  # whole holds all there was
    assert seen.selected == round(40 / 177 * len(rows)) and seen.cut != updated.cut_before
    cut = sorted((row["score"] for row in rows.values()), reverse=True)[seen.selected - 1]
    assert seen.cut == pytest.approx(cut, abs=0)
    verdict = updated.labels_before | labels(updated.out)
    for key, row in rows.items():
        assert row["selected"] == verdict.get(key, row["score"] >= cut), row["reason"]
        assert row["reason"].startswith(
            ("judged hard" if verdict[key] else "judged easy") if key in verdict else "score "
        )
    assert {row["reason"] for row in rows.values()} >= {"judged easy in an earlier run", "judged hard"}


def test_it_can_be_applied(updated: Updated, finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    """The same rows alone score as they did in the update, bit for bit; report and explain work on it."""
    own, held = scores_of(updated.out), applied(updated.out, finished.held, tmp_path / "held")
    assert numbers(held, held) == numbers(own, held)
    cut = pool_scores(load_selector(str(updated.out))).cut
    assert {key for key, row in held.items() if row["selected"]} == {k for k in held if held[k]["score"] >= cut}
    store = Store(str(updated.out))
    assert write_report(store, store.sub("report"), pictures=False)["rounds"]
    told = [explain(str(updated.out), key, 40) for key in list(own)[:3]]
    how = {one["how"] for found in told for one in found["neighbours"]}
    assert any(one.startswith("judged hard") and "earlier" not in one for one in how)
    assert any(one.startswith("judged hard") and "of an earlier run" in one for one in how)
    assert any(one.startswith("taken in inference turn") and "of an earlier run" in one for one in how)
    for found in told:
        assert found["neighbours"][0]["similarity"] == pytest.approx(found["scores"]["similarity"], abs=2e-4)
        assert all(one["prompt"] and one["id"] != found["id"] for one in found["neighbours"])
    key = next(key for key in labels(updated.out))
    assert run_cli(["explain", str(updated.out), key]) == 0 and "judged in round" in capsys.readouterr().out


def test_it_can_be_updated_again_for_any_parts_and_shards(updated: Updated, finished: Finished, tmp_path: Path) -> None:
    """A second update, and the same of rows in another order and other parts."""
    lines = [f'{{"prompt": "new question {k}", "response": "new answer {k}"}}\n' for k in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    (tmp_path / "b.jsonl").write_text("".join(reversed(lines)))
    results = []
    for name, shards, rows in (("a", 1, 4096), ("b", 3, 4)):
        words = [str(tmp_path / f"{name}.jsonl"), f"out={tmp_path / name}", f"data.part_rows={rows}"]
        config = load_apply(str(updated.out), words, True, update=True)
        run_local(config, Recorder(), shards=shards)
        results.append((numbers(scores_of(tmp_path / name), scores_of(tmp_path / name)), labels(tmp_path / name)))
        assert hard_words(tmp_path / name) >= hard_words(updated.out)
    assert results[0] == results[1]
    assert (tmp_path / "a/ids.txt").read_bytes() == (tmp_path / "b/ids.txt").read_bytes()
    seen = pool_scores(load_selector(str(tmp_path / "a")))
    assert len(seen.words_P) == len(scores_of(updated.out)) + 30
    words = [str(tmp_path / "a.jsonl"), f"out={tmp_path / 'a'}", "data.part_rows=4096"]
    plan = plan_steps(load_apply(str(updated.out), words, True, update=True), 1)
    assert plan["run"] == [] and plan["then"] == ["write"]


def test_rows_that_are_all_known(updated: Updated, tmp_path: Path, capsys: Capture) -> None:
    rows = pq.read_table(updated.out / "scores").to_pylist()
    known = {row["line"] for row in rows if row["id"] in updated.labels_before}
    lines = Path(rows[0]["file"]).read_bytes().splitlines(keepends=True)
    (tmp_path / "known.jsonl").write_bytes(b"".join(lines[line - 1] for line in sorted(known)))
    line = ["apply", str(updated.out), str(tmp_path / "known.jsonl"), f"out={tmp_path / 'out'}", "--local", "--quiet"]
    assert run_cli([*line, "--update"]) == 4
    assert "E474" in capsys.readouterr().err


def test_the_sample_of_all_rows(updated: Updated, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of samples is the sample of the union."""
    selector = load_selector(str(updated.out))
    whole = smallest([selector.pool])[0]
    monkeypatch.setattr("engine.takeover.REFERENCE_ROWS", 50)
    few, rows, fresh = smallest([selector.texts, selector.pool])
    assert sorted(few.tolist()) == sorted(whole[:50].tolist()) and not fresh.any() and len(set(rows.tolist())) == 50


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.mark.slow
def test_money(finished: Finished, server: FakeServer, tmp_path: Path, capsys: Capture) -> None:
    """The run's settings and ledger, its rules for money, and no call that was made before."""
    paid = [generator(server), judge(server, orders="both")]
    run_local(config_for(finished.pool, tmp_path / "out", *paid, "paid.max_usd=5"), Recorder())
    line = ["apply", tmp_path / "out", finished.whole, "--local", "--update"]
    config = load_apply(str(tmp_path / "out"), [str(finished.whole), f"out={tmp_path / 'new'}"], True, update=True)
    assert isinstance(config.recipe, update.Config) and config.recipe.judge.kind == "openai"
    assert config.paid.max_usd is None and config.paid.ledger == str(tmp_path / "out" / "ledger")
    asks = tell(capsys, *line, f"out={tmp_path / 'new'}", "paid.confirm_above_usd=0")
    assert asks.code == 2 and "E263" in asks.err and not (tmp_path / "new").exists()
    planned = tell(capsys, *line, f"out={tmp_path / 'new'}", "--dry-run", "--json")
    assert planned.code == 0 and planned.json["usd"]["likely"] > 0
    server.reset()
    stopped = tell(capsys, *line, f"out={tmp_path / 'new'}", "--max-usd", "0.00001", "-q")
    assert stopped.code == 5 and "E510" in stopped.err
    done = tell(capsys, *line, f"out={tmp_path / 'new'}", "--yes", "--json")
    stats = server.stats()
    assert done.code == 0 and done.json["calls"]["calls"] == stats["completed"] == stats["distinct_completed"] > 0
    server.reset()
    again = tell(capsys, *line, f"out={tmp_path / 'other'}", "--yes", "--json")  # another folder, the same ledger
    assert again.code == 0 and server.stats()["received"] == 0
    assert (tmp_path / "other/ids.txt").read_bytes() == (tmp_path / "new/ids.txt").read_bytes()


@pytest.mark.slow
def test_a_fine_tuned_classifier_goes_on(finished: Finished, tmp_path: Path) -> None:
    """One-shot inference, min-max similarity, and a classifier that continues from the run's."""
    encoder = finished.pool.parent / "encoder"
    own = [
        JUDGE, "recipe.inference=one_shot", "recipe.similarity=minmax", "recipe.max_rounds=2",
        f"recipe.classifier={{kind: finetune, model: {encoder}, epochs: 1, max_tokens: 64, retrain: continue}}",
    ]  # fmt: skip
    run_local(config_for(finished.pool, tmp_path / "out", *own), Recorder())
    config = load_apply(str(tmp_path / "out"), [str(finished.whole), f"out={tmp_path / 'new'}"], True, update=True)
    run_local(config, Recorder())
    rows, held = scores_of(tmp_path / "new"), applied(tmp_path / "new", finished.held, tmp_path / "held")
    assert numbers(held, held) == numbers(rows, held)
    f = np.array([row["score"] for row in rows.values()])
    r = np.array([row["similarity"] for row in rows.values()])
    m = np.array([row["probability"] for row in rows.values()])
    assert f == pytest.approx(0.7 * m + 0.3 * (r - r.min()) / (r.max() - r.min()), abs=1e-5)
    models = [next((tmp_path / name).glob("rounds/001/classifier-*/model.safetensors")) for name in ("out", "new")]
    assert models[0].read_bytes() != models[1].read_bytes()


@pytest.mark.slow
@pytest.mark.ray
def test_the_same_on_ray(updated: Updated, finished: Finished, tmp_path: Path, ray_cluster: Any) -> None:
    configs = [
        load_apply(str(updated.out), [str(finished.held), f"out={tmp_path / name}", "budget=8"], True, update=True)
        for name in ("local", "ray")
    ]
    run_local(configs[0], Recorder())
    run_ray(configs[1], Recorder(), workers=1, shards=1)
    assert outputs(tmp_path / "local") == outputs(tmp_path / "ray")
