"""Every command, as a user types it, on a small pool and in process."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from engine.cli import run_cli
from engine.data.writers import OUTPUT_FORMATS
from engine.outputs import CONTAINERS
from tests.conftest import ROOT, write_jsonl
from tests.runs import outputs, settings

Capture = pytest.CaptureFixture[str]


def told(capsys: Capture, *arguments: str) -> tuple[str, str]:
    """What a command that succeeds prints on stdout and on stderr."""
    code = run_cli([str(item) for item in arguments])
    printed, progress = capsys.readouterr()
    assert code == 0, progress
    return printed, progress


def run_lines(pool: Path, out: Path, *overrides: str) -> list[str]:
    return ["run", "iterselect", *settings(pool, out, *overrides), "--local"]


def start(arguments: list[str], cwd: Path = ROOT) -> subprocess.Popen[str]:
    """The real command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "engine", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def finished(small_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A finished run by the real command: its folder, the summary from stdout, and what stderr said."""
    out = tmp_path_factory.mktemp("finished") / "out"
    process = start([*run_lines(small_pool, out), "--json"])
    printed, progress = process.communicate(timeout=180)
    assert process.returncode == 0, progress
    return out, json.loads(printed), progress


def loaded(folder: Path, cache: Path, *config: str) -> list[dict[str, Any]]:
    """The rows as `datasets` gives them to a trainer, without a network."""
    datasets = pytest.importorskip("datasets")
    return list(datasets.load_dataset(str(folder), *config, split="train", cache_dir=str(cache)))


# ------------------------------------------------------------------------------------------------- run


def test_run_json_prints_json_and_nothing_else(finished: tuple[Path, dict[str, Any], str]) -> None:
    out, summary, progress = finished
    assert summary["recipe"] == "iterselect" and summary["selected"] == 40 and summary["out"] == str(out)
    assert summary["rows_read"] == 200 == summary["pool"] + sum(summary["rejected"].values()) + summary["duplicates"]
    assert [line["name"] for line in summary["baselines"]] == [
        "iterselect",
        "random",
        "balanced_random",
        "longest",
        "(pool)",
    ]
    assert "Traceback" not in progress


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("random", []),
        ("balanced_random", []),
        ("balanced_random", ["recipe.by=cluster", "recipe.clusters=6"]),
        ("longest", []),
    ],
)
def test_the_baseline_recipes(
    small_pool: Path, tmp_path: Path, capsys: Capture, recipe: str, overrides: list[str]
) -> None:
    model = [f"encoder.model={small_pool.parent / 'encoder'}", "encoder.max_tokens=64"]
    line = ["run", recipe, str(small_pool), f"out={tmp_path / 'out'}", "budget=40", *model, *overrides, "--local"]
    printed, progress = told(capsys, *line)
    assert f"{recipe}: done in" in printed and "beside the baselines" in printed
    assert "ingest: done, 197 rows" in progress
    scores = pq.read_table(tmp_path / "out" / "scores").to_pylist()
    selected = sorted((row["rank"], row) for row in scores if row["selected"])
    assert [rank for rank, _ in selected] == list(range(1, 41))
    if recipe == "longest":
        left_out = [row["response_chars"] for row in scores if not row["selected"]]
        assert min(row["response_chars"] for _, row in selected) >= max(left_out)
    if recipe == "balanced_random" and not overrides:
        counts = [sum(row["source"] == name for _, row in selected) for name in {row["source"] for row in scores}]
        assert max(counts) - min(counts) <= 1
    # the selection does not depend on a folder's history: a fresh one holds the same
    again = [item.replace(f"out={tmp_path / 'out'}", f"out={tmp_path / 'again'}") for item in line]
    told(capsys, *again)
    assert outputs(tmp_path / "again") == outputs(tmp_path / "out")


def test_an_identical_run_reuses_everything(
    small_pool: Path, finished: tuple[Path, dict[str, Any], str], capsys: Capture
) -> None:
    out, _, _ = finished
    before = outputs(out)
    printed, progress = told(capsys, *run_lines(small_pool, out), "--json")
    steps = {step["name"]: step["reused"] for step in json.loads(printed)["steps"]}
    assert {"ingest", "embed"} <= steps.keys()
    assert all(reused for name, reused in steps.items() if name not in ("start", "write")), steps
    assert outputs(out) == before and progress == ""
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    printed, progress = told(capsys, *run_lines(small_pool, out))
    assert "embed: done, 197 rows, reused" in progress and "changed since" not in progress
    assert "finished before, nothing to do" in printed and f"output  {out}" in printed and len(printed.splitlines()) < 8
    later = {path.name for path in written if path.stat().st_mtime_ns != written[path]}
    assert not later & {"README.md", "run.json", "config.yaml", "ids.txt", "index.html"}
    next((out / "data").iterdir()).unlink()
    assert "done in" in told(capsys, *run_lines(small_pool, out))[0] and outputs(out) == before


def test_a_missing_generator_stops_a_run_before_it_starts(small_pool: Path, tmp_path: Path, capsys: Capture) -> None:
    line = ["run", "iterselect", str(small_pool), f"out={tmp_path / 'out'}", "--local"]
    assert run_cli([*line, "recipe.generator={kind: transformers, model: ./no-such-model}"]) == 3
    said = capsys.readouterr().err
    assert "error E320" in said and "recipe.generator.model" in said and "fix:" in said
    assert not (tmp_path / "out").exists()
    assert run_cli(["run", "lift", str(small_pool), f"out={tmp_path / 'out'}", "--local"]) == 2
    assert "recipe.rater: is required" in (said := capsys.readouterr().err) and "iterselect init lift" in said


def test_status_of_a_failed_run_says_what_to_mend(small_pool: Path, tmp_path: Path, capsys: Capture) -> None:
    line = ["run", "perplexity", str(small_pool), f"out={tmp_path / 'out'}", "--local", "--quiet"]
    assert run_cli([*line, "recipe.model=./no-such-model"]) == 3
    text, _ = told(capsys, "status", str(tmp_path / "out"))
    assert "E320" in text and "fix: check the path" in text and "fix, then iterselect" in text


def test_without_a_handoff(small_pool: Path, tmp_path: Path, capsys: Capture) -> None:
    """Switched off later, what an earlier run wrote for trainers goes too."""
    line = ["run", "longest", str(small_pool), f"out={tmp_path / 'out'}", "--local", "budget=9"]
    assert "trl sft" in told(capsys, *line)[0] and (tmp_path / "out" / "dataset_info.json").exists()
    assert "trl sft" not in told(capsys, *line, "output.handoff=false")[0]
    left = [path for path in (tmp_path / "out" / "handoff").rglob("*") if path.is_file()]
    assert not left and not (tmp_path / "out" / "dataset_info.json").exists()


def test_a_changed_setting_is_named(small_pool: Path, tmp_path: Path, capsys: Capture) -> None:
    line = ["run", "random", str(small_pool), f"out={tmp_path / 'out'}", "--local"]
    told(capsys, *line, "budget=40")
    _, progress = told(capsys, *line, "budget=30", "output.shard_rows=8")
    assert "changed since the last run here: budget: 40.0 -> 30.0" in progress
    assert "changed since the last run here: output.shard_rows: 100000 -> 8" in progress
    assert "ingest: done, 197 rows, reused" in progress
    assert [path.name for path in sorted((tmp_path / "out" / "data").iterdir())] == [
        f"train-{k:05d}-of-00004.parquet" for k in range(4)
    ]
    notes = [json.loads(text) for text in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert sum(note["kind"] == "note" for note in notes) == 2


def test_fresh_keeps_the_old_folder_under_another_name(small_pool: Path, tmp_path: Path, capsys: Capture) -> None:
    line = ["run", "random", str(small_pool), f"out={tmp_path / 'out'}", "budget=40", "--local", "--fresh"]
    for _ in range(3):
        _, progress = told(capsys, *line)
        assert "reused" not in progress
    old = sorted(path for path in tmp_path.iterdir() if path.name != "out")
    assert len(old) == 2 and all(re.fullmatch(r"out\.\d{8}T\d{6}\.\d{6}\.old", path.name) for path in old)
    assert outputs(old[0]) == outputs(old[1]) == outputs(tmp_path / "out")


# ------------------------------------------------------------------------------------------------- inspect, init


def test_inspect(small_pool: Path, capsys: Capture) -> None:
    text, _ = told(capsys, "inspect", str(small_pool))
    assert "detected: messages" in text and "200 rows" in text and "bad_json" in text
    printed, progress = told(capsys, "inspect", str(small_pool), "--json")
    found = json.loads(printed)
    assert found["counts"]["rows_read"] == 200 and found["counts"]["pool"] == 197 and progress == ""
    assert sum(found["sources"].values()) == 197 and found["stopped_early"] is False
    assert set(found["reject_examples"]) == {"bad_json", "empty_response", "no_response"}


def test_inspect_with_a_mapping_and_a_limit(tmp_path: Path, capsys: Capture) -> None:
    pool = write_jsonl(tmp_path / "pool.jsonl", [{"ask": f"q {k} [bold]", "say": f"a {k}"} for k in range(9000)])
    arguments = ["inspect", str(pool), "--column", "prompt=ask", "--column", "response=say", "--limit", "10"]
    found = json.loads(told(capsys, *arguments, "--json")[0])
    assert found["detected"] == "prompt-completion (ask, say)" and found["stopped_early"]
    assert found["counts"]["pool"] < 9000


@pytest.mark.parametrize("recipe", ["iterselect", "random", "balanced_random", "longest"])
def test_init_writes_what_run_accepts(
    small_pool: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "new" / "run.yaml"
    text, _ = told(capsys, "init", recipe, str(small_pool))
    assert f"wrote {config}" in told(capsys, "init", recipe, str(small_pool), "-o", str(config))[0]
    assert config.read_text(encoding="utf-8") == text and "# " in text
    assert run_cli(["init", recipe, "-o", str(config)]) == 2
    assert "exists already" in capsys.readouterr().err and config.read_text(encoding="utf-8") == text
    small = settings(small_pool, "x")[2:] if recipe == "iterselect" else ["data.part_rows=64"]
    printed, _ = told(capsys, "run", str(config), *small, "--local", "--json")
    summary = json.loads(printed)
    assert summary["out"] == str(tmp_path / "runs" / recipe) and summary["recipe"] == recipe


@pytest.mark.parametrize("recipe", ["iterselect", "random", "balanced_random", "longest"])
def test_schema_is_json(capsys: Capture, recipe: str) -> None:
    found = json.loads(told(capsys, "schema", recipe)[0])
    assert found["type"] == "object" and {"data", "recipe", "budget"} <= found["properties"].keys()


# ------------------------------------------------------------------------------------------------- status


def test_status(finished: tuple[Path, dict[str, Any], str], tmp_path: Path, capsys: Capture) -> None:
    out, summary, _ = finished
    text, _ = told(capsys, "status", str(out))
    assert "iterselect: done in" in text and "beside the baselines" in text
    found = json.loads(told(capsys, "status", str(out), "--json")[0])
    assert found["state"] == "done" and found["exit_code"] == 0
    assert found["summary"]["selected"] == summary["selected"]
    for folder in (tmp_path, tmp_path / "nothing"):
        assert run_cli(["status", str(folder)]) == 4
        assert "error E440: no run in" in capsys.readouterr().err


def test_status_of_a_run_whose_process_is_gone(small_pool: Path, tmp_path: Path, capsys: Capture) -> None:
    process = start(run_lines(small_pool, tmp_path / "out"))
    wait_for(tmp_path / "out" / "events.jsonl", "step_started", process)
    assert json.loads(told(capsys, "status", str(tmp_path / "out"), "--json")[0])["state"] == "running"
    process.kill()
    process.communicate()
    text, _ = told(capsys, "status", str(tmp_path / "out"))
    assert "interrupted" in text and "continue  iterselect run iterselect" in text


def wait_for(file: Path, words: str, process: subprocess.Popen[str]) -> None:
    """Until the file holds the words, for at most two minutes, while the process runs."""
    deadline = time.monotonic() + 120
    while not file.exists() or words not in file.read_text(encoding="utf-8"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ['"step": "ingest"', '"step": "embed"', '"step": "diverse"'])
def test_an_interrupted_run_says_so_and_goes_on(
    small_pool: Path, finished: tuple[Path, dict[str, Any], str], tmp_path: Path, moment: str
) -> None:
    out = tmp_path / "out"
    process = start(run_lines(small_pool, out))
    wait_for(out / "events.jsonl", moment, process)
    process.send_signal(signal.SIGINT)
    _, progress = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; everything finished so far is saved" in progress and "Traceback" not in progress
    status = json.loads((out / "status.json").read_text())
    assert status["state"] == "stopped" and status["exit_code"] == 130 and status["reason"] == "interrupted"
    again = shlex.split(status["resume_command"])
    assert again == ["iterselect", *run_lines(small_pool, out)]
    process = start(again[1:])
    _, progress = process.communicate(timeout=180)
    assert process.returncode == 0 and "changed since" not in progress, progress
    status = json.loads((out / "status.json").read_text())
    assert status["state"] == "done" and status["exit_code"] == 0 and not status["reason"]
    assert outputs(out) == outputs(finished[0])


# ------------------------------------------------------------------------------------------------- what trainers load


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


def source_rows(small_pool: Path, out: Path) -> list[dict[str, Any]]:
    """The selected rows as the input has them, in the input's order, training columns only."""
    lines = small_pool.read_text(encoding="utf-8").splitlines()
    scores = pq.read_table(out / "scores").to_pylist()
    chosen = [json.loads(lines[row["line"] - 1]) for row in scores if row["selected"]]
    return [{"messages": row["messages"], "tools": row.get("tools")} for row in chosen]


def plain(value: Any) -> Any:
    """Without the keys that Arrow adds as null to objects of one column."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if item is not None}
    return [plain(item) for item in value] if isinstance(value, list) else value


def test_load_dataset_on_the_run_folder(
    small_pool: Path, finished: tuple[Path, dict[str, Any], str], cache: Path
) -> None:
    out, summary, _ = finished
    assert plain(loaded(out, cache)) == plain(source_rows(small_pool, out))
    scores = loaded(out, cache, "scores")
    assert len(scores) == summary["pool"] and sum(row["selected"] for row in scores) == 40
    ranked = sorted((row for row in scores if row["selected"]), key=lambda row: row["rank"])
    assert [row["id"] for row in ranked] == (out / "ids.txt").read_text().split()


def test_dataset_info_names_the_training_files(finished: tuple[Path, dict[str, Any], str]) -> None:
    out, _, _ = finished
    entries = json.loads((out / "dataset_info.json").read_text())
    assert list(entries) == ["iterselect", "iterselect_random_same_rows", "iterselect_random_same_chars"]
    for entry in entries.values():
        columns = pq.read_schema(next((out / entry["file_name"]).iterdir())).names
        assert set(entry["columns"].values()) <= set(columns)


@pytest.fixture(scope="module")
def without_tools(small_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over the rows that every format can hold."""
    folder = tmp_path_factory.mktemp("plain")
    lines = [line for line in small_pool.read_text(encoding="utf-8").splitlines() if '"tool' not in line]
    (folder / "pool.jsonl").write_text("\n".join(lines), encoding="utf-8")
    line = ["run", "random", str(folder / "pool.jsonl"), f"out={folder / 'out'}", "budget=40", "--local", "--quiet"]
    assert run_cli(line) == 0
    return folder / "out"


def as_chat(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Who says what in a row of any output format."""
    roles = {"human": "user", "gpt": "assistant"}
    system = [("system", row["system"])] if row.get("system") else []
    if "conversations" in row:
        return [*system, *((roles[turn["from"]], turn["value"]) for turn in row["conversations"])]
    if "instruction" in row:
        earlier = [(role, text) for pair in row["history"] for role, text in zip(roles.values(), pair, strict=True)]
        asked = "\n".join(text for text in (row["instruction"], row["input"]) if text)
        return [*system, *earlier, ("user", asked), ("assistant", row["output"])]
    messages = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
    return [(message["role"], message["content"]) for message in messages]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("output", OUTPUT_FORMATS)
def test_export_loads_as_the_same_conversations(
    without_tools: Path, cache: Path, tmp_path: Path, capsys: Capture, output: str, container: str
) -> None:
    to = tmp_path / "exported"
    printed, _ = told(capsys, "export", str(without_tools), str(to), "--format", output, "--container", container)
    assert printed == f"wrote 40 rows to {to}\n"
    assert [path.name for path in to.iterdir()] == [f"train-00000-of-00001.{container}"]
    expected = [as_chat(row) for row in pq.read_table(without_tools / "data").to_pylist()]
    assert [as_chat(row) for row in loaded(to, cache)] == expected


def test_export_refuses(finished: tuple[Path, dict[str, Any], str], tmp_path: Path, capsys: Capture) -> None:
    out, _, _ = finished
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for arguments, code, words in (
        ([out, tmp_path / "new", "--format", "wrong"], 2, "E231"),
        ([out, tmp_path / "new", "--container", "csv"], 2, "E232"),
        ([out, tmp_path / "full"], 2, "E241"),
        ([tmp_path / "full", tmp_path / "new"], 4, "E441"),
        ([out, tmp_path / "new", "--format", "alpaca"], 4, "E420"),  # a selected row has tools
    ):
        assert run_cli(["export", *map(str, arguments)]) == code
        assert f"error {words}" in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_help_and_no_command(capsys: Capture) -> None:
    printed, _ = told(capsys, "--help")
    assert all(name in printed for name in ("demo", "run", "inspect", "init", "status", "export", "schema"))
    assert run_cli([]) == 2
