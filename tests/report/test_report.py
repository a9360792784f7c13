"""The report of a finished run: its figures are those of the rows, whatever the recipe, and its text is harmless."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from engine.algorithms.split import validation_mask
from engine.cli import run_cli
from engine.report.collect import Smallest, collect
from engine.report.facts import gather, text_rows
from engine.report.judged import by_source
from engine.report.layout import lay_out
from engine.report.rows import texts_of, vector_step
from engine.report.savings import Prices
from engine.report.write import write_report
from engine.schema import conversation_id, id_words
from engine.store import Store
from tests.conftest import Recorder
from tests.runs import config_for, run_local


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_pool: Path) -> Path:
    """A finished run of iterselect over the small pool."""
    out = tmp_path_factory.mktemp("report") / "run"
    run_local(config_for(small_pool, out), Recorder())
    return out


@pytest.fixture(scope="module")
def facts(run: Path) -> dict[str, Any]:
    write_report(Store(run), Store(run / "report"), Prices(usd_per_million_tokens=2.0), pictures=False)
    return json.loads((run / "report" / "report.json").read_text())


@pytest.fixture(scope="module")
def rows(run: Path) -> list[dict[str, Any]]:
    return pq.read_table(run / "scores").to_pylist()


def test_totals_and_clusters_are_those_of_the_rows(facts: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    chosen = [row for row in rows if row["selected"]]
    assert (facts["rows"], facts["selected"]) == (len(rows), len(chosen)) and facts["sampled"] is None
    chars = [sum(row["prompt_chars"] + row["response_chars"] for row in group) for group in (rows, chosen)]
    assert [facts["savings"][name] for name in ("pool", "selected")] == chars
    assert facts["savings"]["usd"]["saved"] == pytest.approx(2.0 * (chars[0] - chars[1]) / 4 / 1e6)
    sizes, taken = (Counter(row["cluster"] for row in group) for group in (rows, chosen))
    assert {k: (size, num) for k, size, num in facts["clusters"]["sizes"]} == {k: (sizes[k], taken[k]) for k in sizes}
    assert sum(entry["rows"] for entry in facts["left_out"]) == len(rows) - len(chosen)
    assert [entry["rows"] for entry in facts["funnel"]][-1] == len(chosen)


def test_shares_and_divergences_are_those_of_a_plain_count(facts: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    parts = {part["chart"]: part for part in facts["shares"]}
    assert set(parts) == {f"share-{name}" for name in ("prompt", "response", "turns", "language", "source", "cluster")}
    chosen = [row for row in rows if row["selected"]]
    for name in ("source", "cluster"):
        pool, selected = (Counter(row[name] for row in group) for group in (rows, chosen))
        p, q = ([counts[key] / counts.total() for key in pool] for counts in (pool, selected))
        assert parts[f"share-{name}"]["bits"] == pytest.approx(jensenshannon(p, q, base=2) ** 2, abs=1e-4)
    shown = {entry["name"]: entry for entry in parts["share-source"]["bins"]}
    for source, count in Counter(row["source"] for row in rows).items():
        assert shown[source]["pool"] == pytest.approx(count / len(rows))
    for part in parts.values():
        assert sum(entry["pool"] for entry in part["bins"]) == pytest.approx(1.0)
        assert sum(entry["selected"] for entry in part["bins"]) == pytest.approx(1.0)
    inside = [row["response_chars"] for row in rows if 64 <= row["response_chars"] < 128]
    bins = {entry["name"]: entry["pool"] for entry in parts["share-response"]["bins"]}
    assert bins["64-127"] == pytest.approx(len(inside) / len(rows))


def test_score_histogram_cut_and_correlation(facts: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    score = facts["score"]
    assert sum(score["selected"]) == facts["selected"] and sum(score["rest"]) == facts["rows"] - facts["selected"]
    values = sorted((row["score"] for row in rows), reverse=True)
    assert score["cut"] == pytest.approx(values[facts["selected"] - 1])
    pairs = [(row["score"], row["response_chars"]) for row in rows]
    assert score["spearman"]["response_chars"] == pytest.approx(spearmanr(*zip(*pairs, strict=True)).statistic)


def test_the_classifier_is_measured_on_the_rows_it_did_not_see(
    run: Path, facts: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    last = facts["rounds"][-1]
    assert facts["learned"]["held_out"] == last["num_val"]
    assert facts["learned"]["auc"] == pytest.approx(last["val_auc"])
    assert sum(entry["judge_calls"] for entry in facts["rounds"]) == sum(entry["judged"] for entry in facts["rounds"])
    found = collect(Store(run))
    assert found.judged is not None
    judged = found.judged.to_pylist()
    files = run.glob("rounds/*/labels-*/*.parquet")
    labels = {row["row"]: row["hard"] for file in files for row in pq.read_table(file).to_pylist()}
    assert {row["row"]: row["hard"] for row in judged} == labels
    probabilities = {row["row"]: row["probability"] for row in rows}
    assert {row["row"]: row["probability"] for row in judged} == {row: probabilities[row] for row in labels}


def test_the_classifier_against_the_name_of_the_source() -> None:
    draw = np.random.default_rng(3)
    rows, seed, fraction = 600, 5, 0.3
    ids = [conversation_id(str(k), "") for k in range(rows)]
    source = draw.choice(["easy\u202e", "mixed", "hard"], rows)
    rate = np.select([source == "hard", source == "mixed"], [0.9, 0.5], 0.2)
    hard, probability = draw.random(rows) < rate, draw.random(rows).astype(np.float32)
    table = pa.table({"id": ids, "source": source.tolist(), "hard": hard, "probability": probability})
    found = by_source(table, seed, fraction)
    assert found is not None
    held = validation_mask(id_words(ids), seed, fraction)
    trained = {name: hard[~held & (source == name)] for name in set(source)}
    rates = {name: (labels.sum() + 1) / (len(labels) + 2) for name, labels in trained.items()}
    baseline = roc_auc_score(hard[held], [rates[name] for name in source[held]])
    assert found["source_auc"] == pytest.approx(baseline) and baseline > 0.7
    assert found["auc"] == pytest.approx(roc_auc_score(hard[held], probability[held]))
    for entry in found["sources"]:
        inside = held & (np.char.find(source, entry["source"]) == 0)
        assert (entry["hard"], entry["easy"]) == (hard[inside].sum(), (~hard[inside]).sum())
        assert entry["auc"] == pytest.approx(roc_auc_score(hard[inside], probability[inside]))
    assert {entry["source"] for entry in found["sources"]} == {"easy", "mixed", "hard"}


def test_samples_are_bounded_drawn_by_id_and_say_so(run: Path) -> None:
    found, again = (collect(Store(run), sample_rows=30) for _ in range(2))
    assert found.pool.num_rows == found.selected.num_rows == 30 and found.pool.equals(again.pool)
    assert set(found.selected["selected"].to_pylist()) == {True} and found.sampled
    facts = gather(found, texts_of(found.steps["ingest"], text_rows(found)), Prices())
    whole = collect(Store(run))
    assert facts["sampled"] == 30 and facts["rows"] == whole.totals.rows
    assert (
        facts["clusters"]["sizes"]
        == gather(whole, texts_of(whole.steps["ingest"], text_rows(whole)), Prices())["clusters"]["sizes"]
    )
    assert sum(facts["score"]["rest"]) == pytest.approx(whole.totals.rows - whole.totals.selected, rel=0.3)


def test_smallest_keeps_what_sorting_all_keeps() -> None:
    draw = np.random.default_rng(0)
    keys = draw.permutation(5000)
    kept = Smallest(70)
    for block in np.array_split(keys, 13):
        kept.add(pa.table({"key": block}), block)
    assert kept.rows()["key"].to_pylist() == list(range(70))


def test_the_map_keeps_the_plane_of_largest_variance(run: Path) -> None:
    found = collect(Store(run))
    step = vector_step(found.steps, found.totals.rows)
    assert step is not None
    layout = lay_out(found, step, [], "pca")
    x = np.stack([row["vector"] for row in step.read_all(["row", "vector"]).sort_by("row").to_pylist()]).astype(float)
    x = x[layout.rows_I] - x.mean(axis=0)
    values = np.linalg.svd(x, compute_uv=False)
    assert layout.facts["explained"] == pytest.approx(float(np.sum(values[:2] ** 2) / np.sum(values**2)), abs=1e-3)
    assert np.allclose(np.sum(layout.plane_I2**2, axis=0), values[:2] ** 2, rtol=1e-3)


def test_the_table_has_the_judges_words_and_the_reason(run: Path, facts: dict[str, Any]) -> None:
    data = embedded(run / "report" / "index.html")
    assert len(data["examples"]) == facts["examples"] == facts["rows"]
    judged = [row for row in data["examples"] if row["judge"]]
    assert len(judged) == sum(entry["judged"] for entry in facts["rounds"])
    assert all(row["judge"]["verdict"] in ("reference", "answer", "tie") and row["judge"]["answer"] for row in judged)
    assert all(row["reason"] for row in data["examples"])
    assert {point["id"] for point in data["points"]} == {row["id"] for row in data["examples"]}
    kinds = Counter(row["kind"] for row in data["examples"])
    assert kinds["top"] and kinds["best left out"] and kinds["lowest"]


def embedded(page: Path) -> dict[str, Any]:
    """The data that the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def test_recipes_without_rounds_or_vectors_have_a_report_each(small_pool: Path, tmp_path: Path, capsys: Any) -> None:
    words = [str(small_pool), f"out={tmp_path / 'out'}", "budget=30", "--methods", "longest,random", "--local"]
    assert run_cli(["run", *words, "--quiet"]) == 0
    for name in ("longest", "random"):
        folder = tmp_path / "out" / "methods" / name / "report"
        facts = json.loads((folder / "report.json").read_text())
        assert set(facts["absent"]) >= {"rounds", "learned", "clusters", "map", "near"} and facts["selected"] == 30
        page = (folder / "index.html").read_text()
        assert "Not here: this method has no rounds of judging" in page and "Not here: this method looked at" in page
    capsys.readouterr()
    assert run_cli(["report", str(tmp_path / "out"), "-o", str(tmp_path / "pages"), "--no-pictures", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {
        str(tmp_path / "pages" / name / "index.html") for name in ("longest", "random")
    }


@pytest.mark.slow
def test_every_chart_is_also_a_picture(run: Path, tmp_path: Path) -> None:
    small = collect(Store(run), sample_rows=40)
    assert small.sampled
    write_report(Store(run), Store(tmp_path))
    names = set(embedded(tmp_path / "index.html")["charts"])
    assert {"map-selected", "map-score", "map-cluster", "linked", "score", "rounds", "source-auc", "time"} <= names
    for name in names:
        picture = (tmp_path / "charts" / f"{name}.svg").read_text()
        assert picture.startswith("<svg") and ("<path" in picture or "<text" in picture), name
        assert (tmp_path / "charts" / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name


def test_what_cannot_be_reported_is_refused(tmp_path: Path, run: Path, capsys: Any) -> None:
    assert run_cli(["report", str(tmp_path)]) == 4
    assert run_cli(["report", str(run), "--map", "tsne"]) == 2
    assert run_cli(["report", str(run), "--usd-per-gpu-hour", "2"]) == 2
    assert "--tokens-per-gpu-second" in capsys.readouterr().err


def test_a_report_that_fails_does_not_fail_the_run(small_pool: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    words = [str(small_pool), f"out={out}", "budget=20", "--local"]
    assert run_cli(["run", "longest", *words, "output.report=false", "--quiet"]) == 0
    assert not (out / "report").exists()
    (out / "report").write_text("a file where the folder should be")
    assert run_cli(["run", "longest", *words]) == 0
    assert "no report:" in capsys.readouterr().err
    assert json.loads((out / "status.json").read_text())["state"] == "done"
