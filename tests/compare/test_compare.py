"""Several methods on one pool, compared: what is shared is computed once, and the figures are those of the runs."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from engine.cli import run_cli
from engine.settings import load_config
from tests.conftest import Recorder
from tests.runs import run_local

SETTINGS = """
data: {{path: {pool}, part_rows: 40}}
out: {out}
budget: 30
encoder: {{model: {encoder}, max_tokens: 64}}
runtime: {{mode: local}}
methods:
  kcenter: {{}}
  dq: {{text: prompt, bins: 5}}
  random: {{}}
  words:
    name: compose
    scores:
      words: {{kind: length, of: response_words}}
      topic: {{kind: cluster, clusters: 6}}
    select:
      - {{kind: quota, group: topic, by: words}}
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, small_pool: Path) -> Path:
    """The config of a run of four methods, run once."""
    folder = tmp_path_factory.mktemp("methods")
    text = SETTINGS.format(pool=small_pool, out=folder / "out", encoder=small_pool.parent / "encoder")
    (folder / "methods.yaml").write_text(text)
    assert run_cli(["run", str(folder / "methods.yaml"), "--methods", "all", "--quiet"]) == 0
    return folder / "methods.yaml"


def chosen(out: Path) -> set[str]:
    return set((out / "ids.txt").read_text().split())


def test_each_method_has_its_outputs_and_the_vectors_are_made_once(settings: Path) -> None:
    out = settings.parent / "out"
    methods = {folder.name: folder for folder in (out / "methods").iterdir()}
    assert set(methods) == {"kcenter", "dq", "random", "words"}
    assert all((folder / "data").is_dir() and (folder / "run.json").exists() for folder in methods.values())
    assert len(list((out / "steps").glob("embed-*"))) == 1
    reused = [
        step["name"]
        for name in ("dq", "words")
        for step in json.loads((methods[name] / "run.json").read_text())["summary"]["steps"]
        if step["reused"]
    ]
    assert reused.count("embed") == 2 and reused.count("ingest") == 2


def test_a_method_among_several_selects_what_it_selects_alone(settings: Path, tmp_path: Path) -> None:
    text = settings.read_text().replace(str(settings.parent / "out"), str(tmp_path / "out"))
    text = re.sub(r"methods:.*", "recipe: {name: dq, text: prompt, bins: 5}\n", text, flags=re.DOTALL)
    (tmp_path / "dq.yaml").write_text(text)
    run_local(load_config(str(tmp_path / "dq.yaml"), []), Recorder())
    alone, among = tmp_path / "out", settings.parent / "out" / "methods" / "dq"
    for name in ("ids.txt", "data/train-00000-of-00001.parquet", "scores/part-00000.parquet"):
        assert (alone / name).read_bytes() == (among / name).read_bytes()


def test_export_finds_the_steps_of_a_method(settings: Path, tmp_path: Path) -> None:
    run = settings.parent / "out" / "methods" / "words"
    command = ["export", str(run), str(tmp_path / "new"), "--format", "messages", "--container", "jsonl"]
    assert run_cli(command) == 0
    assert len((tmp_path / "new" / "train-00000-of-00001.jsonl").read_text().splitlines()) == 30


def compare(capsys: Any, *words: str) -> dict[str, Any]:
    assert run_cli(["compare", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_figures_are_those_of_the_selections(settings: Path, capsys: Any) -> None:
    out = settings.parent / "out"
    found = compare(capsys, str(out))
    names = [entry["name"] for entry in found["methods"]]
    assert names == ["dq", "kcenter", "random", "words", "balanced_random", "longest"]  # random is a run already
    ids = {name: chosen(out / "methods" / name) for name in names[:4]}
    for a in names[:4]:
        for b in names[:4]:
            shared, either = len(ids[a] & ids[b]), len(ids[a] | ids[b])
            assert found["shared"][names.index(a)][names.index(b)] == shared
            assert found["jaccard"][names.index(a)][names.index(b)] == round(shared / either, 4)
    votes = [sum(key in group for group in ids.values()) for key in set().union(*ids.values())]
    assert found["agreement"][1:] == [votes.count(k) for k in range(1, 5)]
    assert sum(found["agreement"]) == found["pool_rows"]
    rows = pq.read_table(out / "methods" / "dq" / "scores").to_pylist()
    mean = sum(row["response_chars"] for row in rows if row["selected"]) / 30
    assert found["methods"][0]["response_chars"] == round(mean, 1)
    longest = sorted(rows, key=lambda row: (-row["response_chars"], row["id"]))[:30]
    at = names.index("longest")
    assert found["methods"][at]["response_chars"] == round(sum(row["response_chars"] for row in longest) / 30, 1)


def test_runs_of_another_order_or_another_pool_are_joined_by_id(
    settings: Path, small_pool: Path, tmp_path: Path, capsys: Any
) -> None:
    lines = small_pool.read_bytes().splitlines(keepends=True)
    random.Random(1).shuffle(lines)
    (tmp_path / "encoder").symlink_to(small_pool.parent / "encoder")
    (tmp_path / "pool.jsonl").write_bytes(b"".join(lines))
    (tmp_path / "half.jsonl").write_bytes(b"".join(lines[:100]))
    common = [f"encoder.model={tmp_path / 'encoder'}", "encoder.max_tokens=64", "runtime.mode=local"]
    for name in ("pool", "half"):
        words = [str(tmp_path / f"{name}.jsonl"), f"out={tmp_path / name}", "budget=30", *common]
        assert run_cli(["run", "kcenter", *words, "--quiet"]) == 0
    capsys.readouterr()
    first = str(settings.parent / "out" / "methods" / "kcenter")
    found = compare(capsys, first, str(tmp_path / "pool"))
    assert found["jaccard"][0][1] == 1.0 and found["notes"] == []
    assert found["rank_correlation"][0][1] == 1.0
    found = compare(capsys, first, str(tmp_path / "half"))
    assert len(found["notes"]) == 1 and "rows of all pools" in found["notes"][0]
    assert found["pool_rows"] == compare(capsys, first)["pool_rows"]


def test_the_page_is_one_file_without_a_script_and_escapes_texts(settings: Path, tmp_path: Path) -> None:
    hostile = "<script>alert({})</script> question {}", "</p><img src=x onerror=a()> {}"
    rows = [{"instruction": hostile[0].format(k, k), "output": hostile[1].format(k) * (k % 7 + 1)} for k in range(40)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [str(tmp_path / "pool.jsonl"), f"out={tmp_path / 'out'}", "budget=8", "--methods", "longest,random"]
    assert run_cli(["run", *words, "--local", "--quiet"]) == 0
    page = (tmp_path / "out" / "compare" / "index.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(" in page and "<script" not in page and "<img" not in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert (tmp_path / "out" / "compare" / "overlap.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "compare" / "compare.json").read_text())["pool_rows"] == 40


def test_what_cannot_be_compared_is_refused(settings: Path, tmp_path: Path, capsys: Any) -> None:
    out = str(settings.parent / "out")
    assert run_cli(["compare", str(tmp_path)]) == 4
    assert run_cli(["compare", out, out]) == 2
    assert run_cli(["run", str(settings)]) == 2
    assert "one method" in capsys.readouterr().err
    assert run_cli(["run", str(settings), "--methods", "kcentre"]) == 2
    assert "kcenter" in capsys.readouterr().err


def test_random_baseline_is_the_recipe(settings: Path, capsys: Any) -> None:
    """The comparison draws from `scores/`; the recipe draws from the pool. Both take the same rows."""
    out = settings.parent / "out"
    alone = compare(capsys, str(out / "methods" / "kcenter"))
    both = compare(capsys, str(out / "methods" / "kcenter"), str(out / "methods" / "random"))
    drawn = [entry["name"] for entry in alone["methods"]].index("random")
    assert alone["jaccard"][0][drawn] == both["jaccard"][0][1]
    assert alone["methods"][drawn]["response_chars"] == both["methods"][1]["response_chars"]
