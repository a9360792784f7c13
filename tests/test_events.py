"""The record of a run: every line is JSON, status.json is whole and not written too often, threads do not mix."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.events import EventObserver, Events
from engine.store import Store


class Recorder:
    """An Observer that keeps the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def step_started(self, name: str, total_rows: int | None) -> None:
        self.calls.append(("step_started", name, total_rows))

    def advance(self, name: str, rows: int) -> None:
        self.calls.append(("advance", name, rows))

    def used(self, name: str, amounts: Mapping[str, float]) -> None:
        self.calls.append(("used", name, dict(amounts)))

    def step_done(self, name: str, rows: int, seconds: float, failed: int, reused: bool) -> None:
        self.calls.append(("step_done", name, rows, seconds, failed, reused))

    def round_done(self, metrics: dict[str, Any]) -> None:
        self.calls.append(("round_done", metrics))

    def note(self, text: str) -> None:
        self.calls.append(("note", text))


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def lines(store: Store) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.read_bytes("events.jsonl").decode("ascii").splitlines()]


def status(store: Store) -> dict[str, Any]:
    return json.loads(store.read_bytes("status.json"))


def test_an_event_is_one_line_whatever_it_holds(store: Store) -> None:
    events = Events(store)
    events.emit("note", text="a\nb\u2028c\x1b[31m\ud800é", path=Path("x/y"), auc=float("nan"), top=float("-inf"))
    events.emit("numbers", a=np.float32(0.5), b=np.int64(3), c=np.array([1, 2]), d={1: (2, None)}, e=True, f=np.nan)
    first, second = lines(store)
    assert first["text"] == "a\nb\u2028c\x1b[31m\ud800é"
    assert (first["path"], first["auc"], first["top"]) == ("x/y", None, None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["t"])
    assert {key: second[key] for key in "abcdef"} == {
        "a": 0.5, "b": 3, "c": [1, 2], "d": {"1": [2, None]}, "e": True, "f": None,
    }  # fmt: skip
    assert list(second)[:2] == ["t", "kind"]


def test_status_keeps_what_was_known_and_is_written_at_once(store: Store) -> None:
    events = Events(store, Clock())
    events.status("running", resume_command="iterselect run c.yaml")
    first = status(store)
    assert first["state"] == "running"
    assert first["pid"] > 0
    assert (first["exit_code"], first["reason"], first["step"]) == (None, None, None)
    events.status("failed", exit_code=4, reason="no rows")
    last = status(store)
    assert (last["state"], last["exit_code"], last["reason"]) == ("failed", 4, "no rows")
    assert last["resume_command"] == "iterselect run c.yaml"
    assert last["started"] == first["started"] <= last["updated"]


def test_progress_is_written_every_two_seconds_and_loses_nothing(store: Store) -> None:
    clock = Clock()
    events = Events(store, clock)
    events.progress("embed", 1, 100)
    assert status(store)["rows_done"] == 1
    for done in range(2, 40):
        clock.now_s += 0.05
        events.progress("embed", done, 100)
    assert status(store)["rows_done"] == 1
    clock.now_s += 0.2
    events.progress("embed", 40, 100)
    assert (status(store)["step"], status(store)["rows_done"], status(store)["rows_total"]) == ("embed", 40, 100)
    events.progress("score", 7, None)
    assert status(store)["step"] == "embed"
    events.status("done", exit_code=0)
    assert (status(store)["step"], status(store)["rows_done"], status(store)["rows_total"]) == ("score", 7, None)


def test_observer_records_and_passes_on(store: Store) -> None:
    clock, view = Clock(), Recorder()
    observer = EventObserver(Events(store, clock), view)
    observer.step_started("embed", 30)
    clock.now_s += 5
    observer.advance("embed", 10)
    observer.advance("embed", 20)
    assert status(store)["rows_done"] == 10
    observer.step_done("embed", 30, 2.0, 1, reused=False)
    observer.step_done("old", 9, 0.0, 0, reused=True)
    observer.step_done("embed", 30, 0.0, 1, reused=True)
    observer.round_done({"round": 1, "kind": "x", "val_auc": float("nan")})
    observer.note("hello")
    assert view.calls == [
        ("step_started", "embed", 30), ("advance", "embed", 10), ("advance", "embed", 20),
        ("step_done", "embed", 30, 2.0, 1, False), ("step_done", "old", 9, 0.0, 0, True),
        ("step_done", "embed", 30, 0.0, 1, True),
        *view.calls[6:],
    ]  # fmt: skip
    assert [call[0] for call in view.calls[6:]] == ["round_done", "note"]
    found = lines(store)
    assert [line["kind"] for line in found] == ["step_started", *["step_done"] * 3, "round_done", "note"]
    assert found[1] | {"t": ""} == {
        "t": "", "kind": "step_done", "step": "embed", "rows": 30, "seconds": 2.0, "rows_per_s": 15.0, "failed": 1,
        "reused": False,
    }  # fmt: skip
    assert found[2]["rows_per_s"] is None
    assert found[4]["metrics"] == {"round": 1, "kind": "x", "val_auc": None}
    assert list(observer.steps) == ["embed", "old"]
    assert observer.steps["embed"] == {"name": "embed", "rows": 30, "seconds": 2.0, "failed": 1, "reused": False}


def test_threads_do_not_mix(store: Store) -> None:
    observer = EventObserver(Events(store), Recorder())
    observer.step_started("judge", 4000)

    def work() -> None:
        for number in range(100):
            observer.advance("judge", 10)
            observer.note(f"row {number} " + "x" * 500)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = lines(store)
    assert len(found) == 401
    assert [line["t"] for line in found] == sorted(line["t"] for line in found)
    observer.step_done("judge", 4000, 1.0, 0, reused=False)
    assert observer.steps["judge"]["rows"] == 4000
