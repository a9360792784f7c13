"""What a person sees on the terminal: the live table of a run, its summary, and errors.

It computes nothing but rates and remaining times and writes no file. Everything goes to the console it is given, by
default stderr, so that stdout stays for results. Text that comes from data is hostile: it is only shown through `clean`
and as rich `Text`, in which markup means nothing.
"""

from __future__ import annotations

import re
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

from engine.errors import IterselectError
from engine.events import StepSummary

LINE_INTERVAL_S = 30.0  # between progress lines where there is no terminal
_SHOWN_ROUNDS = 8
_MESSAGE_CHARS = 400
# C0 and C1 controls but tab and newline, line separators, and marks that reverse the direction of text
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_STATE_STYLE = {"running": "cyan", "done": "green", "reused": "dim", "stopped": "yellow"}


class Summary(TypedDict):
    """The end of a run. Rows read = pool + rejected + duplicates.

    Attributes:
        recipe: name of the method.
        out: path of the run folder.
        rejected: reason -> rows.
        rows_read, duplicates, pool, selected: numbers of rows.
        seconds: wall time of this command.
        clusters: number of K-Means clusters, None without clusters.
        baselines: one mapping per selection of the same size, the method itself first: `name`, `rows` and any further
            numbers, which become columns. A share is a float in [0, 1] whose name ends in `overlap` or `rate`.
        next_commands: (command, what it does).
    """

    recipe: str
    out: str
    rows_read: int
    rejected: Mapping[str, int]
    duplicates: int
    pool: int
    selected: int
    seconds: float
    steps: Sequence[StepSummary]
    clusters: int | None
    rounds: Sequence[Mapping[str, Any]]
    baselines: NotRequired[Sequence[Mapping[str, Any]]]
    next_commands: NotRequired[Sequence[tuple[str, str]]]


def clean(value: object) -> str:
    """The text of a value without terminal control, lone surrogates and direction marks."""
    return _UNSAFE.sub("", str(value).replace("\r\n", "\n"))


def _line(value: object) -> str:
    return " ".join(clean(value).split())


def duration(seconds: float) -> str:
    """0.4 s, 42 s, 3:05 min, 2:03:04 h."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def _rate(rows: float, seconds: float) -> str:
    per_second = rows / seconds if seconds > 0 else 0.0
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.1f}" if per_second > 0 else "-"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    if value is None or isinstance(value, int):
        return "-" if value is None else f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3f}"


# ------------------------------------------------------------------------------------------------- while it runs


@dataclass
class _Row:
    """A step on the screen. Its rate comes from samples at least a second apart, the last 60 of them."""

    total: int | None
    started: float
    done: int = 0
    state: str = "running"
    seconds: float = 0.0
    failed: int = 0
    samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=60))

    def advance(self, rows: int, now: float) -> None:
        if not self.samples:
            # rows that an earlier run had committed are reported at once: they say nothing of the speed
            kept = rows if now - self.started < 0.1 else 0
            self.samples.append((self.started, kept))
        self.done += rows
        if now - self.samples[-1][0] >= 1.0:
            self.samples.append((now, self.done))

    def rows_per_s(self, now: float) -> float:
        then, before = self.samples[0] if self.samples else (self.started, 0)
        return (self.done - before) / (now - then) if now > then else 0.0

    def eta(self, now: float) -> str:
        rate = self.rows_per_s(now)
        left = (self.total or 0) - self.done
        return duration(left / rate) if rate > 0 and left > 0 else "-"


class LiveTable:
    """An Observer that shows a run: one live table in a terminal, else plain lines. Use it as a context manager.

    Args:
        console: where to draw; default stderr.
        quiet: show nothing.
        clock: seconds that only grow.
    """

    def __init__(
        self, console: Console | None = None, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console or Console(stderr=True)
        self._quiet, self._clock = quiet, clock
        self._lock = threading.RLock()
        self._rows: dict[str, _Row] = {}
        self._rounds: list[dict[str, Any]] = []
        self._last_line = -LINE_INTERVAL_S
        self._live: Live | None = None
        if self.console.is_terminal and not (self.console.is_dumb_terminal or self.console.no_color or quiet):
            # a stdout that is piped holds results and must not be drawn above the table, on stderr
            draw_stdout = sys.stdout.isatty()
            self._live = Live(console=self.console, get_renderable=self._render, redirect_stdout=draw_stdout)

    def __enter__(self) -> LiveTable:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            for row in self._rows.values():
                if row.state == "running":
                    row.state, row.seconds = "stopped", self._clock() - row.started
        if self._live:
            self._live.stop()

    def step_started(self, name: str, total_rows: int | None) -> None:
        with self._lock:
            self._rows.pop(name, None)
            self._rows[name] = _Row(total_rows, self._clock())
            self._say(f"{name}: started" + (f", {total_rows:,} rows" if total_rows else ""))

    def advance(self, name: str, rows: int) -> None:
        now = self._clock()
        with self._lock:
            row = self._rows.setdefault(name, _Row(None, now))
            row.advance(rows, now)
            if now - max(self._last_line, row.started) < LINE_INTERVAL_S:
                return
            self._last_line = now
            share = f"/{row.total:,} rows ({row.done / row.total:.0%})" if row.total else " rows"
            self._say(f"{name}: {row.done:,}{share}, {_rate(row.rows_per_s(now), 1)} rows/s, ETA {row.eta(now)}")

    def step_done(self, name: str, rows: int, seconds: float, failed: int, reused: bool) -> None:
        with self._lock:
            if reused and name in self._rows and self._rows[name].state == "done":
                return  # done by this very run: keep its speed
            state = "reused" if reused else "done"
            started = self._rows[name].started if name in self._rows else self._clock()
            self._rows[name] = _Row(rows, started, rows, state, seconds, failed)
            speed = "reused" if reused else duration(seconds)
            speed += f", {_rate(rows, seconds)} rows/s" if rows and not reused else ""
            self._say(f"{name}: done, {rows:,} rows, {speed}" + (f", {failed:,} failed" if failed else ""))

    def round_done(self, metrics: dict[str, Any]) -> None:
        with self._lock:
            self._rounds.append(metrics)
            cells = zip(_ROUND_COLUMNS, _round_cells(metrics), strict=True)
            self._say(", ".join(f"{title} {cell}" for title, cell in cells))

    def note(self, text: str) -> None:
        self._say(text, beside_table=True)

    def _say(self, text: str, beside_table: bool = False) -> None:
        """A plain line; where there is a live table it already shows all but notes."""
        if not self._quiet and (beside_table or not self._live):
            _print(self.console, Text(f"{time.strftime('%H:%M:%S')} {_line(text)}"))

    def _render(self) -> RenderableType:
        with self._lock:
            now = self._clock()
            rounds = self._rounds[-_SHOWN_ROUNDS:]
            room = max(4, self.console.height - 8 - (len(rounds) + 4 if rounds else 0))
            hidden = max(0, len(self._rows) - room)
            table = _table("step", "rows", "rows/s", "time", "failed", "state")
            if hidden:
                table.add_row(Text(f"... {hidden} earlier steps", style="dim"))
            for name, row in list(self._rows.items())[hidden:]:
                table.add_row(*_step_cells(name, row, now))
            return Group(table, "", _rounds_table(rounds)) if rounds else table


def _step_cells(name: str, row: _Row, now: float) -> list[Text]:
    if row.state != "running":
        spent = "" if row.state == "reused" else duration(row.seconds)
        cells = [f"{row.done:,}", _rate(row.done, row.seconds) if row.state == "done" else "-", spent]
        return [Text(_line(name)), *map(Text, cells), _failed(row.failed), Text(row.state, _STATE_STYLE[row.state])]
    rows, share = (f" / {row.total:,}", f"{row.done / row.total:.0%} ") if row.total else ("", "")
    cells = [f"{row.done:,}{rows}", _rate(row.rows_per_s(now), 1), f"{row.eta(now)} left"]
    return [Text(_line(name)), *map(Text, cells), Text(""), Text(f"{share}running", _STATE_STYLE["running"])]


# ------------------------------------------------------------------------------------------------- at the end


_ROUND_COLUMNS = ("round", "judged", "hard", "val accuracy", "val AUC", "time")


def _round_cells(metrics: Mapping[str, Any]) -> list[str]:
    seconds = metrics.get("seconds")
    return [
        _number(metrics.get("round")),
        _number(metrics.get("judged")),
        _percent(metrics.get("hard_rate")),
        _percent(metrics.get("val_accuracy")),
        _number(metrics.get("val_auc")),
        "-" if seconds is None else duration(seconds),
    ]


def _table(*columns: str, title: str = "", name_width: int = 12) -> Table:
    """The first column holds a name; the others hold numbers and align right."""
    heading = Text(title, style="bold") if title else None
    table = Table(
        box=box.SIMPLE_HEAD,
        title=heading,
        title_justify="left",
        show_edge=False,
        padding=(0, 1, 0, 0),
        header_style="dim",
    )
    table.add_column(Text(columns[0]), overflow="fold", min_width=name_width, vertical="bottom")
    for column in columns[1:]:
        table.add_column(Text(column), justify="right", no_wrap=True, vertical="bottom")
    return table


def _rounds_table(rounds: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(*_ROUND_COLUMNS, title="rounds", name_width=5)
    for metrics in rounds:
        table.add_row(*map(Text, _round_cells(metrics)))
    return table


def _steps_table(steps: Sequence[StepSummary]) -> Table:
    """One line per step; the steps of all rounds (`rounds/000/answers`, `rounds/001/answers`, ...) share one."""
    groups: dict[str, list[StepSummary]] = {}
    for step in steps:
        groups.setdefault(re.sub(r"/\d+(?=/|$)", "/*", step["name"]), []).append(step)
    table = _table("step", "rows", "time", "rows/s", "failed", title="steps")
    for name, group in groups.items():
        fresh = [step for step in group if not step["reused"]]
        rows, seconds = sum(step["rows"] for step in fresh), sum(step["seconds"] for step in fresh)
        cells = [
            f"{sum(step['rows'] for step in group):,}",
            duration(seconds) if fresh else "reused",
            _rate(rows, seconds),
        ]
        table.add_row(Text(_line(name)), *map(Text, cells), _failed(sum(step["failed"] for step in group)))
    return table


def _failed(count: int) -> Text:
    return Text(f"{count:,}", style="bold red" if count else "dim")


def _baselines_table(baselines: Sequence[Mapping[str, Any]]) -> Table:
    names = [name for name in baselines[0] if name not in ("name", "rows")]
    table = _table(
        "selection", "rows", *(_line(name).replace("_", "\n") for name in names), title="beside the baselines"
    )
    for index, entry in enumerate(baselines):
        cells = [
            _percent(entry[name]) if name.endswith(("overlap", "rate")) else _number(entry[name]) for name in names
        ]
        style = "bold" if index == 0 else ""
        table.add_row(Text(_line(entry["name"])), Text(f"{entry['rows']:,}"), *map(Text, cells), style=style)
    return table


def _facts(summary: Summary) -> Table:
    rejected = summary["rejected"]
    clusters = summary["clusters"]
    facts = [
        ("read", summary["rows_read"], "rows"),
        ("rejected", sum(rejected.values()), ", ".join(f"{count:,} {_line(why)}" for why, count in rejected.items())),
        ("duplicates", summary["duplicates"], ""),
        ("pool", summary["pool"], f"in {clusters:,} clusters" if clusters else ""),
        ("selected", summary["selected"], f"{summary['selected'] / max(1, summary['pool']):.1%} of the pool"),
    ]
    columns = Column(style="dim"), Column(justify="right"), Column(style="dim")
    grid = Table.grid(*columns, padding=(0, 2, 0, 0))
    for name, number, remark in facts:
        grid.add_row(name, Text(f"{number:,}", style="bold green" if name == "selected" else ""), Text(remark))
    return grid


def print_summary(summary: Summary, console: Console) -> None:
    """The final block of a run: counts, rounds, steps, baselines, output, next commands."""
    title = Text(f"{_line(summary['recipe'])}: done in {duration(summary['seconds'])}", style="bold")
    console.print(Rule(title, align="left", style="dim"))
    console.print(_facts(summary))
    tables = [_rounds_table(summary["rounds"])] if summary["rounds"] else []
    console.print("", Columns([*tables, _steps_table(summary["steps"])], padding=(1, 4)))
    baselines = summary.get("baselines")
    if baselines:
        console.print("", _baselines_table(baselines))
    console.print()
    _print(console, Text("output  ", style="dim").append(_line(summary["out"]), style="bold not dim"))
    commands = [(_line(command), _line(about)) for command, about in summary.get("next_commands", ())]
    width = max((len(command) for command, _ in commands), default=0)
    for index, (command, about) in enumerate(commands):
        line = Text("next    " if index == 0 else "        ", style="dim").append(
            command.ljust(width), style="cyan not dim"
        )
        _print(console, line.append(f"  {about}"))


def print_status(status: Mapping[str, Any], console: Console) -> None:
    """What status.json says; the summary instead when `status` has one."""
    if status.get("summary"):
        print_summary(status["summary"], console)
        return
    facts = {name: status.get(name) for name in ("state", "step", "started", "updated", "reason")}
    done, total = status.get("rows_done") or 0, status.get("rows_total")
    if status.get("step"):
        facts["step"] = f"{status['step']}, {done:,}" + (
            f" of {total:,} rows ({done / total:.0%})" if total else " rows"
        )
    if status["state"] not in ("running", "done"):
        facts["continue"] = status.get("resume_command")
    for name, value in facts.items():
        if value not in (None, ""):
            _print(console, _labelled(f"{name:<10}", value))


def print_error(error: BaseException, console: Console, debug: bool) -> None:
    """Says what went wrong, where, why and how to fix it; a traceback only with `debug`."""
    if isinstance(error, IterselectError):
        _print(console, Text(f"error {error.code}: ", style="bold red").append(clean(error.what), style="default"))
        for label, text in (("where", error.where), ("why", error.why), ("fix", error.fix)):
            if text:
                _print(console, _labelled(f"  {label + ':':<7}", text))
    else:
        message = _line(error)
        if len(message) > _MESSAGE_CHARS:  # both ends: an error from a worker names its cause last
            message = f"{message[: _MESSAGE_CHARS // 2]} ... {message[-_MESSAGE_CHARS // 2 :]}"
        text = f"{type(error).__name__}: {message}" if message else type(error).__name__
        again = "" if debug else "; run again with --debug for the traceback"
        _print(console, Text("unexpected error: ", style="bold red").append(f"{text} [E100]{again}", style="default"))
    if debug:
        _print(console, Text(clean("".join(traceback.format_exception(error))).rstrip(), style="dim"))


def _labelled(label: str, value: object) -> Text:
    return Text(label, style="dim").append(clean(value).replace("\n", "\n" + " " * len(label)), style="not dim")


def _print(console: Console, text: Text) -> None:
    """Without wrapping, so that paths and commands can be copied and logs keep one line for one event."""
    console.print(text, soft_wrap=True)
