"""Feeds a tracker from a run: a view that passes everything on, and sends what is worth tracking to another process.

What has been sent is kept in `tracking.json` of the run folder, so the same command again goes on with the same run at
the tracker and sends nothing twice (after a crash, at most the one record whose answer was on its way). A tracker that
cannot be reached, is not installed or does not answer costs one warning, and what it missed is sent next time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.config import RunConfig, TrackingConfig
from engine.errors import IterselectError
from engine.events import Events, Observer
from engine.store import Store
from engine.tracking import values

STATE_FILE = "tracking.json"
WAIT_S = 20.0  # for a tracker at the end of a run; what it has not taken by then is sent next time
INSTALL = "install it: pip install 'iterselect[{0}]'"


class Feed:
    """One run at one tracker.

    Args:
        tracking: settings; `name` is not None.
        config: of the run, as JSON.
        store: the folder of its outputs.
        warn: told once when the tracker fails.
    """

    def __init__(
        self, tracking: TrackingConfig, config: Mapping[str, Any], store: Store, warn: Callable[[str], None]
    ) -> None:
        self.tracking, self.store, self.warn = tracking, store, warn
        name = tracking.run or store.root.rstrip("/").rsplit("/", 1)[-1]
        place = {"tracker": tracking.name, "project": tracking.project, "name": name}
        self.state = read_state(store)
        self.id = values.run_id(self.state["folder"], place, config)
        self.known: dict[str, Any] = self.state["runs"].setdefault(self.id, {"remote": None, "sent": []})
        self.failed = False
        self.process = start_sender()
        self.reader = threading.Thread(target=self._read, name="tracking", daemon=True)
        self.reader.start()
        opening = {**place, "id": self.id, "remote": self.known["remote"], "config": values.settings_of(config)}
        self._write(opening)

    def send(self, key: str, found: values.Values, step: int) -> None:
        """Sends a record unless it has been, in this session or an earlier one."""
        if key not in self.known["sent"] and found:
            self._write({"key": key, "values": found, "step": step})

    def close(self, done: bool) -> None:
        """Waits a little for what is on its way. `done`: the run is finished."""
        self._write({"done": done})
        stdin = self.process.stdin
        assert stdin is not None
        try:
            stdin.close()
        except BrokenPipeError:
            self._fail("it ended early")
        try:
            self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            self._fail(f"no answer within {WAIT_S:.0f} s of the end of the run")
        if self.process.returncode:
            self._fail(f"it ended with code {self.process.returncode}")
        self.reader.join(WAIT_S)

    def _write(self, record: Mapping[str, Any]) -> None:
        stdin = self.process.stdin
        assert stdin is not None
        if self.failed:
            return
        try:
            stdin.write(json.dumps(record) + "\n")
            stdin.flush()
        except BrokenPipeError:
            self.reader.join(WAIT_S)  # it may have said why
            self._fail("it ended early")

    def _read(self) -> None:
        """In a thread: keeps what the sender says that it has sent."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            answer = json.loads(line)
            if "error" in answer:
                self._fail(values.without_secrets(answer["error"], os.environ))
                continue
            if "sent" in answer:
                self.known["sent"].append(answer["sent"])
            else:
                self.known["remote"] = answer["remote"]
            try:
                self.store.write_bytes(STATE_FILE, (json.dumps(self.state, indent=1) + "\n").encode())
            except (OSError, IterselectError) as error:  # a full disk stops the run where it writes itself
                self._fail(f"{STATE_FILE} cannot be written: {error}")

    def _fail(self, why: str) -> None:
        if not self.failed:
            self.failed = True
            fix = (
                INSTALL.format(self.tracking.name)
                if "ModuleNotFoundError" in why
                else "the same command tells the rest"
            )
            self.warn(f"{self.tracking.name} is not told of this run: {why[:300]}; {fix}")


def read_state(store: Store) -> dict[str, Any]:
    """What was sent so far: `folder` (a name made once), `runs`: id -> `remote`, `sent`."""
    if store.exists(STATE_FILE):
        return json.loads(store.read_bytes(STATE_FILE))
    return {"folder": uuid.uuid4().hex, "runs": {}}


def start_sender() -> subprocess.Popen[str]:
    """engine/tracking/sender.py in a process that ends with this one's pipe; what libraries print is dropped."""
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "engine.tracking.sender"], env={**os.environ, "PYTHONPATH": paths}, text=True,
        encoding="utf-8", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C ends the run, which then says so
    )  # fmt: skip


class TrackedView:
    """An Observer that passes everything on to another and tells a feed of rounds, steps and money."""

    def __init__(self, view: Observer, feed: Feed | None) -> None:
        self.view, self.feed = view, feed
        self.rounds = 0
        self.spending: Mapping[str, Any] = {}

    def step_started(self, name: str, total_rows: int | None) -> None:
        self.view.step_started(name, total_rows)

    def advance(self, name: str, rows: int) -> None:
        self.view.advance(name, rows)

    def used(self, name: str, amounts: Mapping[str, float]) -> None:
        self.view.used(name, amounts)

    def step_done(self, name: str, rows: int, seconds: float, failed: int, reused: bool) -> None:
        self.view.step_done(name, rows, seconds, failed, reused)
        if self.feed is not None and not reused:
            plain, step = values.step_place(name, self.rounds)
            self.feed.send(f"step {name}", values.step_values(plain, rows, seconds, failed), step)

    def round_done(self, metrics: dict[str, Any]) -> None:
        self.view.round_done(metrics)
        self.rounds = metrics["round"]
        if self.feed is not None:
            self.feed.send(f"round {self.rounds}", values.round_values(metrics, self.spending), self.rounds)

    def spent(self, step: str, facts: Mapping[str, Any]) -> None:
        self.view.spent(step, facts)
        self.spending = facts

    def note(self, text: str) -> None:
        self.view.note(text)

    def finished(self, summary: Mapping[str, Any]) -> None:
        """The run is done."""
        if self.feed is not None:
            self.feed.send("summary", values.summary_values(summary), self.rounds)


@contextmanager
def tracked(config: RunConfig, store: Store, view: Observer, events: Events) -> Iterator[TrackedView]:
    """The view of a run, which tells the run's tracker as well if it has one.

    Args:
        store: the folder of the run's outputs.
    """
    if config.tracking.name is None:
        yield TrackedView(view, None)
        return

    def warn(text: str) -> None:
        events.emit("note", text=text)
        view.note(text)

    feed = Feed(config.tracking, config.model_dump(mode="json"), store, warn)
    done = False
    try:
        yield TrackedView(view, feed)
        done = True
    finally:
        feed.close(done)
