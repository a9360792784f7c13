"""The record of what happened in a run: events.jsonl (everything, appended) and status.json (now, replaced).

It prints nothing (engine/console.py does) and decides nothing. Both files are plain JSON, so a person, a dashboard or
`iterselect status` can read them from another machine; a number that is not finite is written as null.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NotRequired, Protocol, TypedDict

from engine.remote import FINISHED, READS

EVENTS_FILE, STATUS_FILE = "events.jsonl", "status.json"
STATUS_INTERVAL_S = 2.0
SUBMISSION_ENV = "ITERSELECT_SUBMISSION"  # the id of the Ray job this is, if it is one
RESUME_ENV = "ITERSELECT_RESUME"  # the command that submitted it

State = Literal["running", "done", "failed", "stopped"]


class Files(Protocol):
    """What Events needs of engine.store.Store."""

    def append_line(self, relative: str, line: str) -> None: ...

    def write_bytes(self, relative: str, data: bytes) -> None: ...


class Observer(Protocol):
    """Told by runtimes and recipes how a run goes on. Calls may come from any thread."""

    def step_started(self, name: str, total_rows: int | None) -> None:
        """A step begins; `total_rows` is None when it is not known."""
        ...

    def advance(self, name: str, rows: int) -> None:
        """`rows` more rows of a running step are committed."""
        ...

    def used(self, name: str, amounts: Mapping[str, float]) -> None:
        """What a step did and took since the last call: rows, failed, busy_s, bytes, tokens (see artifacts.Part)."""
        ...

    def step_done(self, name: str, rows: int, seconds: float, failed: int, reused: bool) -> None:
        """A step is complete; `reused` when an earlier run had done it, in which case it may not have started here."""
        ...

    def round_done(self, metrics: dict[str, Any]) -> None:
        """A round of the loop is over. Shown: round, judged, hard_rate, val_accuracy, val_auc, seconds."""
        ...

    def spent(self, step: str, facts: Mapping[str, Any]) -> None:
        """What the run's paid calls amount to so far: calls, tokens_in, tokens_out, cost_usd, max_usd (or None)."""
        ...

    def note(self, text: str) -> None:
        """Something the user should read."""
        ...


class Events:
    """Writes the record into a run folder. Safe to call from several threads of one process.

    Args:
        files: the run folder.
        clock: seconds that only grow; paces status.json.
    """

    def __init__(self, files: Files, clock: Callable[[], float] = time.monotonic) -> None:
        self._files, self._clock = files, clock
        self._lock = threading.Lock()
        self._written = -math.inf
        self._status: dict[str, Any] = {
            "state": "running",
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "submission": os.environ.get(SUBMISSION_ENV),
            "started": utc_now(),
            "updated": None,
            "step": None,
            "rows_done": 0,
            "rows_total": None,
            "exit_code": None,
            "reason": None,
            "resume_command": None,
        }

    def emit(self, kind: str, **fields: Any) -> None:
        """Append one JSON line `{"t": UTC time, "kind": kind, ...fields}` to events.jsonl."""
        with self._lock:  # the time is taken inside it: times never run backwards in the file
            self._files.append_line(EVENTS_FILE, _json({"t": utc_now(), "kind": kind} | fields))

    def status(self, state: State, **fields: Any) -> None:
        """Replace status.json now: what was known before, then `state` and `fields` (exit_code, reason, ...)."""
        with self._lock:
            self._status |= {**fields, "state": state}
            self._write()

    def progress(self, step: str, rows_done: int, rows_total: int | None) -> None:
        """Note where the run is; status.json is replaced at most every two seconds."""
        with self._lock:
            self._status |= {"step": step, "rows_done": rows_done, "rows_total": rows_total}
            if self._clock() - self._written >= STATUS_INTERVAL_S:
                self._write()

    def _write(self) -> None:
        self._status["updated"] = utc_now()
        self._files.write_bytes(STATUS_FILE, _json(self._status).encode() + b"\n")
        self._written = self._clock()


class StepSummary(TypedDict):
    """One finished step; `reused` when an earlier run had done it (`seconds` is 0 then).

    What its parts amount to is there for steps that have parts: `used_rows` were computed by this run, the others by
    an earlier one that did not finish; `busy_s` adds up over the workers.
    `read_requests` and `read_bytes` are there when something was read from an object store.
    """

    name: str
    rows: int
    seconds: float
    failed: int
    reused: bool
    read_requests: NotRequired[int]
    read_bytes: NotRequired[int]
    used_rows: NotRequired[int]
    busy_s: NotRequired[float]
    bytes: NotRequired[int]
    tokens: NotRequired[int]


class EventObserver:
    """An Observer that writes every call to Events and passes it on to a view (engine.console.LiveTable).

    Attributes:
        steps: the finished steps by name, in the order in which they were finished first.
    """

    def __init__(self, events: Events, view: Observer) -> None:
        self._events, self._view = events, view
        self._lock = threading.Lock()
        self.steps: dict[str, StepSummary] = {}
        self._rows: dict[str, tuple[int, int | None]] = {}  # step -> (done, total)
        self._spent: Mapping[str, Any] = {}
        self._used: dict[str, Counter[str]] = {}
        for counter in (FINISHED, READS):  # what was read before is not this run's
            counter.take()

    def step_started(self, name: str, total_rows: int | None) -> None:
        with self._lock:
            self._rows[name] = (0, total_rows)
        self._events.emit("step_started", step=name, rows_total=total_rows)
        self._events.progress(name, 0, total_rows)
        self._view.step_started(name, total_rows)

    def advance(self, name: str, rows: int) -> None:
        with self._lock:
            done, total = self._rows.get(name, (0, None))
            done += rows
            self._rows[name] = (done, total)
        self._events.progress(name, done, total)
        self._view.advance(name, rows)

    def used(self, name: str, amounts: Mapping[str, float]) -> None:
        with self._lock:
            self._used.setdefault(name, Counter()).update(amounts)
        self._view.used(name, amounts)

    def step_done(self, name: str, rows: int, seconds: float, failed: int, reused: bool) -> None:
        finished, own = FINISHED.take(), READS.take()
        reads: dict[str, Any] = {}
        if finished.requests or own.requests:
            reads = {"read_requests": finished.requests + own.requests, "read_bytes": finished.bytes + own.bytes}
        with self._lock:
            self._rows.pop(name, None)
            used = _amounts(self._used.pop(name, None))
            done = StepSummary(name=name, rows=rows, seconds=seconds, failed=failed, reused=reused, **reads, **used)
            if not (reused and name in self.steps):  # a step that this very run did keeps its seconds
                self.steps[name] = done
        rate = rows / seconds if seconds > 0 and not reused else None
        facts = {key: value for key, value in done.items() if key != "name"}
        self._events.emit("step_done", step=name, rows_per_s=rate, **facts)
        self._events.progress(name, rows, rows)
        self._view.step_done(name, rows, seconds, failed, reused)

    def round_done(self, metrics: dict[str, Any]) -> None:
        self._events.emit("round_done", metrics=metrics)
        self._view.round_done(metrics)

    def spent(self, step: str, facts: Mapping[str, Any]) -> None:
        if facts != self._spent:  # nothing is written while nothing is spent
            self._spent = facts
            self._events.emit("spent", step=step, **facts)
            self._view.spent(step, facts)

    def note(self, text: str) -> None:
        self._events.emit("note", text=text)
        self._view.note(text)


def _amounts(used: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the parts of a step amount to, as StepSummary names it; empty for a step without parts."""
    if used is None:
        return {}
    busy_s = round(used["busy_s"], 3)
    return {"used_rows": used["rows"], "busy_s": busy_s, "bytes": used["bytes"], "tokens": used["tokens"]}


def utc_now() -> str:
    """UTC time as ISO 8601 with milliseconds, such as 2026-01-31T12:00:00.123Z."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(value: Mapping[str, Any]) -> str:
    """One line of ASCII: text from data can break neither the line nor the encoding."""
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    """JSON's own types; numpy's arrays and scalars become lists and numbers, paths and other objects their text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
