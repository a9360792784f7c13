"""The live view of a run: one table in a terminal, plain lines elsewhere. Computes only rates and remaining times."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from engine.screen import (
    ROUND_COLUMNS,
    duration,
    failed_text,
    line,
    print_line,
    rate,
    round_cells,
    rounds_table,
    spending,
    table_of,
)  # fmt: skip

LINE_INTERVAL_S = 30.0  # between progress lines where there is no terminal
_SHOWN_ROUNDS = 8
_STATE_STYLE = {"running": "cyan", "done": "green", "reused": "dim", "stopped": "yellow"}


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
        speed = self.rows_per_s(now)
        left = (self.total or 0) - self.done
        return duration(left / speed) if speed > 0 and left > 0 else "-"


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
        self._last_line = self._last_spent = -LINE_INTERVAL_S
        self._spent = ""
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
            self._say(f"{name}: {row.done:,}{share}, {rate(row.rows_per_s(now), 1)} rows/s, ETA {row.eta(now)}")

    def used(self, name: str, amounts: Mapping[str, float]) -> None:
        """Not shown."""

    def step_done(self, name: str, rows: int, seconds: float, failed: int, reused: bool) -> None:
        with self._lock:
            if reused and name in self._rows and self._rows[name].state == "done":
                return  # done by this very run: keep its speed
            state = "reused" if reused else "done"
            started = self._rows[name].started if name in self._rows else self._clock()
            self._rows[name] = _Row(rows, started, rows, state, seconds, failed)
            speed = "reused" if reused else duration(seconds)
            speed += f", {rate(rows, seconds)} rows/s" if rows and not reused else ""
            self._say(f"{name}: done, {rows:,} rows, {speed}" + (f", {failed:,} failed" if failed else ""))

    def round_done(self, metrics: dict[str, Any]) -> None:
        with self._lock:
            self._rounds.append(metrics)
            cells = zip(ROUND_COLUMNS, round_cells(metrics), strict=True)
            self._say(", ".join(f"{title} {cell}" for title, cell in cells))

    def spent(self, step: str, facts: Mapping[str, Any]) -> None:
        now = self._clock()
        with self._lock:
            self._spent = spending(facts)
            if (facts["calls"] or facts["failed"]) and now - self._last_spent >= LINE_INTERVAL_S:
                self._last_spent = now
                self._say(f"paid so far in this run: {self._spent}")

    def note(self, text: str) -> None:
        self._say(text, beside_table=True)

    def _say(self, text: str, beside_table: bool = False) -> None:
        """A plain line; where there is a live table it already shows all but notes."""
        if not self._quiet and (beside_table or not self._live):
            print_line(self.console, Text(f"{time.strftime('%H:%M:%S')} {line(text)}"))

    def _render(self) -> RenderableType:
        with self._lock:
            now = self._clock()
            rounds = self._rounds[-_SHOWN_ROUNDS:]
            room = max(4, self.console.height - 8 - (len(rounds) + 4 if rounds else 0))
            hidden = max(0, len(self._rows) - room)
            table = table_of("step", "rows", "rows/s", "time", "failed", "state")
            if hidden:
                table.add_row(Text(f"... {hidden} earlier steps", style="dim"))
            for name, row in list(self._rows.items())[hidden:]:
                table.add_row(*_step_cells(name, row, now))
            parts: list[RenderableType] = [table]
            parts += [Text(self._spent, style="dim")] if self._spent else []
            return Group(*parts, "", rounds_table(rounds)) if rounds else Group(*parts)


def _step_cells(name: str, row: _Row, now: float) -> list[Text]:
    if row.state != "running":
        spent = "" if row.state == "reused" else duration(row.seconds)
        cells = [f"{row.done:,}", rate(row.done, row.seconds) if row.state == "done" else "-", spent]
        return [Text(line(name)), *map(Text, cells), failed_text(row.failed), Text(row.state, _STATE_STYLE[row.state])]
    rows, share = (f" / {row.total:,}", f"{row.done / row.total:.0%} ") if row.total else ("", "")
    cells = [f"{row.done:,}{rows}", rate(row.rows_per_s(now), 1), f"{row.eta(now)} left"]
    return [Text(line(name)), *map(Text, cells), Text(""), Text(f"{share}running", _STATE_STYLE["running"])]
