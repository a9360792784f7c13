"""Trackers, the real ones in their offline modes: what they are told, that it is once, and what they may break."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.cli import run_cli
from engine.config import TrackingConfig
from engine.store import Store
from engine.tracking import values
from engine.tracking.feed import Feed, TrackedView
from tests.conftest import Recorder
from tests.finished.conftest import JUDGE
from tests.runs import settings

Points = list[tuple[int, dict[str, float]]]
CONFIG = {"seed": 0, "budget": 9.0, "recipe": {"name": "iterselect", "alpha": 0.7}, "encoder": {"model": "m"}}

READ_TRACKIO = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
for run in SQLiteStorage.get_runs(sys.argv[1]):
    print(json.dumps([run, SQLiteStorage.get_logs(sys.argv[1], run)]))
"""


def read_trackio(folder: Path) -> dict[str, Points]:
    """By run: step and values of every record."""
    told = subprocess.run([sys.executable, "-c", READ_TRACKIO, "p"], capture_output=True, text=True, check=True).stdout
    runs = dict(json.loads(line) for line in told.splitlines() if line.startswith("["))
    return {
        run: [(log["step"], {key: one for key, one in log.items() if "/" in key}) for log in logs]
        for run, logs in runs.items()
    }


def read_mlflow(folder: Path) -> dict[str, Points]:
    from mlflow import MlflowClient

    client = MlflowClient(f"file://{folder}")
    (experiment,) = (one for one in client.search_experiments() if one.name == "p")
    found: dict[str, Points] = {}
    for run in client.search_runs([experiment.experiment_id]):
        assert run.data.params["recipe.name"] == "iterselect"
        history = [one for name in run.data.metrics for one in client.get_metric_history(run.info.run_id, name)]
        found[f"{run.info.run_name} {run.info.status}"] = [(one.step, {one.key: one.value}) for one in history]
    return found


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log after a header of 7 bytes: blocks of 32 KiB, a record in one piece or several."""
    at, pieces = 7, []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        pieces.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield b"".join(pieces)
            pieces = []


def read_wandb(folder: Path) -> dict[str, Points]:
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, Points] = {}
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns):
        for data in leveldb_records(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                point = {key: json.loads(one) for key, one in items.items() if not key.startswith("_")}
                found.setdefault(file.stem, []).append((record.history.step.num, point))
    return found


READERS: dict[str, Callable[[Path], dict[str, Points]]] = {
    "trackio": read_trackio, "wandb": read_wandb, "mlflow": read_mlflow,
}  # fmt: skip


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that every tracker writes into."""
    for name, value in {
        "TRACKIO_DIR": str(tmp_path), "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path),
        "MLFLOW_TRACKING_URI": f"file://{tmp_path}", "MLFLOW_ALLOW_FILE_STORE": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return tmp_path


def merged(points: Points) -> dict[tuple[int, str], list[float]]:
    """Every number that a tracker has, by step and name."""
    found: dict[tuple[int, str], list[float]] = {}
    for step, point in points:
        for name, value in point.items():
            found.setdefault((step, name), []).append(value)
    return found


@pytest.mark.parametrize("name", READERS)
def test_a_run_that_goes_on_is_one_run_there(name: str, offline: Path) -> None:
    """Two sessions: the first is cut short, the second is told of everything again and of more."""
    pytest.importorskip(name)
    tracking, warned = TrackingConfig(name=name, project="p", run="r"), []  # pyright: ignore[reportArgumentType]
    for rounds in (1, 2):
        feed = Feed(tracking, CONFIG, Store(str(offline / "out")), warned.append)
        view = TrackedView(Recorder(), feed)
        view.step_done("embed", 100, 4.0, 0, reused=rounds > 1)
        for number in range(1, rounds + 1):
            view.step_done(f"rounds/{number - 1:03d}/verdicts", 10, 2.0, 1, reused=number < rounds)
            view.spent("verdicts", {"calls": 20 * number, "cost_usd": 0.5 * number, "max_usd": None})
            view.round_done({"round": number, "hard_rate": number / 4, "val_auc": None, "judged": 10})
        feed.close(done=rounds == 2)
    assert warned == []
    ((run, points),) = READERS[name](offline).items()
    expected = {
        (0, "step/embed/rows"): [100.0], (0, "step/embed/seconds"): [4.0], (0, "step/embed/failed"): [0.0],
        (0, "step/embed/rows_per_s"): [25.0],
    }  # fmt: skip
    for number in (1, 2):
        step = {"rows": 10.0, "seconds": 2.0, "failed": 1.0, "rows_per_s": 5.0}
        expected |= {(number, f"step/rounds/verdicts/{key}"): [value] for key, value in step.items()}
        expected |= {(number, "round/hard_rate"): [number / 4], (number, "round/judged"): [10.0]}
        expected |= {(number, "paid/calls"): [20.0 * number], (number, "paid/cost_usd"): [0.5 * number]}
    assert merged(points) == expected
    assert feed.id in run or run in (f"r-{feed.id[:6]}", "r FINISHED")


@pytest.mark.slow
def test_a_whole_run(small_pool: Path, offline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What trackio has is what run.json has, the same command again adds nothing, and the selection is the same."""
    pytest.importorskip("trackio")
    line = ["run", "iterselect", *settings(small_pool, offline / "out", JUDGE, "recipe.max_rounds=2"), "--local", "-q"]
    tracked = [*line, "tracking.name=trackio", "tracking.project=p"]
    assert run_cli(tracked) == 0
    ((run, points),) = read_trackio(offline).items()
    summary = json.loads((offline / "out/run.json").read_text())["summary"]
    found = merged(points)
    for one in summary["rounds"]:
        assert found[one["round"], "round/hard_rate"] == [one["hard_rate"]]
        assert found[one["round"], "round/val_auc"] == [one["val_auc"]]
    assert found[0, "step/embed/rows"] == [summary["pool"]] and run.startswith("out-")
    assert found[2, "selection/selected"] == [summary["selected"]] == [40.0]
    assert found[2, "baseline/random/response_chars"] == [summary["baselines"][1]["response_chars"]]
    capsys.readouterr()
    assert run_cli([*tracked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["selected"] == 40  # nothing of a tracker on stdout
    assert read_trackio(offline) == {run: points}


def test_a_tracker_that_fails_costs_one_warning(
    small_pool: Path, offline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that is not there, with a password in its address: the run succeeds, and the password is nowhere."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hunter2@127.0.0.1:9/?sig=hunter2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    line = ["run", "random", str(small_pool), f"out={offline / 'out'}", "budget=9", "output.report=false", "--local"]
    assert run_cli([*line, "tracking.name=mlflow"]) == 0
    said = capsys.readouterr().err.replace("\n", " ")
    assert said.count("mlflow is not told of this run") == 1 and "hunter2" not in said
    files = [file.read_bytes() for file in (offline / "out").rglob("*") if file.is_file()]
    assert not any(b"hunter2" in data for data in files)


def test_a_tracker_that_is_not_installed_or_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stood in for by modules of that name: one that cannot be imported, and one that never returns."""
    for name, text, said in (("gone", "import not_there", "pip install 'iterselect[trackio]'"),
                             ("hangs", "import time\ntime.sleep(600)", "no answer within 1 s")):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "trackio.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / name))
        monkeypatch.setattr("engine.tracking.feed.WAIT_S", 20.0 if name == "gone" else 1.0)
        warned: list[str] = []
        feed = Feed(TrackingConfig(name="trackio"), CONFIG, Store(str(tmp_path / "out")), warned.append)
        for number in range(2000):  # more than a pipe holds
            feed.send(f"round {number}", {"round/hard_rate": 0.5}, number)
        feed.close(done=True)
        assert len(warned) == 1 and said in warned[0]
        assert feed.process.poll() is not None and feed.known["sent"] == []


def test_settings_go_out_without_secrets() -> None:
    judge: dict[str, Any] = {
        "kind": "openai", "model": "m", "base_url": "https://me:hunter2@host/v1?sig=hunter2", "api_key_env": "KEY",
        "extra_body": {"user": "hunter2"}, "engine_args": {"hf_token": "hunter2"}, "api_key": "hunter2",
        "max_tokens": 32, "price": None,
    }  # fmt: skip
    recipe = {"name": "iterselect", "judge": judge, "select": [{"kind": "llm_choice", "chooser": judge}]}
    found = values.settings_of({**CONFIG, "out": "s3://hunter2@b/x", "recipe": recipe})
    assert "hunter2" not in json.dumps(found)
    assert found["recipe.judge.base_url"] == "https://host/v1" and found["recipe.judge.max_tokens"] == 32
    assert found["recipe.select.0.chooser.max_tokens"] == 32
    assert found["recipe.judge.api_key_env"] == "KEY" and found["seed"] == 0 and "out" not in found


def test_errors_are_told_without_secrets() -> None:
    environment = {
        "MLFLOW_TRACKING_URI": "http://me:hunter2@host:9/?sig=abcdef",
        "WANDB_API_KEY": "k" * 40,
        "A_KEY": "a",
    }
    said = values.without_secrets(f"at url: /?sig=abcdef/api, hunter2, {'k' * 40}, http://x:y@host/a", environment)
    assert said == "at url: / ***, ***, http://host/a"


def test_which_run_it_is() -> None:
    """Settings that change the result make another run; how it is executed, paid and tracked does not."""
    place = {"tracker": "wandb", "project": "p", "name": "n"}
    base = {**CONFIG, "runtime": {"mode": "ray"}, "paid": {"max_usd": None}, "out": "a"}
    same = {**base, "runtime": {"mode": "local"}, "paid": {"max_usd": 3}, "out": "b"}
    ids = [values.run_id("f", place, base), values.run_id("f", place, same), values.run_id("g", place, base)]
    ids += [values.run_id("f", {**place, "name": "o"}, base), values.run_id("f", place, {**base, "seed": 1})]
    assert ids[0] == ids[1] and len(set(ids)) == 4
