"""The names of a run's counters, and what feeds them. Ray serves them to Prometheus with `ray_` put before the name.

Names and labels are a promise: dashboards and alarms are built on them. This file turns what an Observer hears into
amounts; actors/metrics.py gives them to Ray. All counters start at 0 with the driver, so a resumed run counts what it
did itself and not what it found done.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from engine.events import Observer

STEP = "step"

# name -> (meaning, labels)
# The steps of all rounds share a label: rounds/*/answers.
COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "iterselect_rows_total": ("Rows that a step has committed", (STEP,)),
    "iterselect_failed_rows_total": ("Rows among them that failed and carry the reason", (STEP,)),
    "iterselect_tokens_total": ("Tokens that models in the run's own workers read and wrote", (STEP,)),
    "iterselect_bytes_total": ("Bytes of the files that a step has committed", (STEP,)),
    "iterselect_busy_seconds_total": ("Seconds that workers spent on a step's parts, added up over workers", (STEP,)),
    "iterselect_step_seconds_total": ("Wall time of completed steps", (STEP,)),
    "iterselect_steps_total": ("Steps that are complete; reused=true when an earlier run had made them", ("reused",)),
    "iterselect_rounds_total": ("Rounds of the loop that are over", ()),
    "iterselect_paid_calls_total": ("Paid calls that were answered", (STEP,)),
    "iterselect_paid_tokens_total": ("Tokens of paid calls; direction is in or out", (STEP, "direction")),
    "iterselect_paid_usd_total": ("USD spent on calls", (STEP,)),
    "iterselect_retries_total": (
        "Work done again; reason is rate_limited, failed_call (both of paid calls) or member_restart",
        (STEP, "reason"),
    ),
}
EXPORTED_PREFIX = "ray_"

_USED = {
    "rows": "iterselect_rows_total",
    "failed": "iterselect_failed_rows_total",
    "tokens": "iterselect_tokens_total",
    "bytes": "iterselect_bytes_total",
    "busy_s": "iterselect_busy_seconds_total",
}
# fact of a run's paid calls -> counter, further labels
_SPENT: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "calls": ("iterselect_paid_calls_total", {}),
    "tokens_in": ("iterselect_paid_tokens_total", {"direction": "in"}),
    "tokens_out": ("iterselect_paid_tokens_total", {"direction": "out"}),
    "cost_usd": ("iterselect_paid_usd_total", {}),
    "limited": ("iterselect_retries_total", {"reason": "rate_limited"}),
    "failed": ("iterselect_retries_total", {"reason": "failed_call"}),
}


class Meter(Protocol):
    """Where amounts go."""

    def count(self, name: str, amount: float, **labels: str) -> None:
        """Adds `amount` > 0 to one of COUNTERS."""
        ...


class MeteredObserver:
    """An Observer that counts what it hears and passes it on.

    Args:
        observer: hears everything too.
        meter: where the amounts go.
    """

    def __init__(self, observer: Observer, meter: Meter) -> None:
        self.observer, self.meter = observer, meter
        self._by_part: set[str] = set()  # steps whose rows are counted as their parts are committed
        self._spent: Mapping[str, Any] | None = None

    def _count(self, name: str, amount: float, **labels: str) -> None:
        if STEP in labels:
            labels[STEP] = re.sub(r"/\d+(?=/|$)", "/*", labels[STEP])  # few labels, however many rounds there are
        if amount > 0:
            self.meter.count(name, amount, **labels)

    def step_started(self, name: str, total_rows: int | None) -> None:
        self.observer.step_started(name, total_rows)

    def advance(self, name: str, rows: int) -> None:
        self.observer.advance(name, rows)

    def used(self, name: str, amounts: Mapping[str, float]) -> None:
        self._by_part.add(name)
        for what, counter in _USED.items():
            self._count(counter, amounts.get(what, 0), step=name)
        self.observer.used(name, amounts)

    def step_done(self, name: str, rows: int, seconds: float, failed: int, reused: bool) -> None:
        self._count("iterselect_steps_total", 1, reused=str(reused).lower())
        if not reused:
            self._count("iterselect_step_seconds_total", seconds, step=name)
            if name not in self._by_part:  # made in one piece
                self._count("iterselect_rows_total", rows, step=name)
                self._count("iterselect_failed_rows_total", failed, step=name)
        self.observer.step_done(name, rows, seconds, failed, reused)

    def round_done(self, metrics: dict[str, Any]) -> None:
        self._count("iterselect_rounds_total", 1)
        self.observer.round_done(metrics)

    def spent(self, step: str, facts: Mapping[str, Any]) -> None:
        before = self._spent if self._spent is not None else facts  # the first facts are of earlier sessions
        for fact, (counter, labels) in _SPENT.items():
            self._count(counter, facts.get(fact, 0) - before.get(fact, 0), step=step, **labels)
        self._spent = dict(facts)
        self.observer.spent(step, facts)

    def note(self, text: str) -> None:
        self.observer.note(text)
