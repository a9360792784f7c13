"""The pieces of what a person sees: safe text, numbers, tables. No state and no output of its own.

Text that comes from data is hostile: it is only shown through `clean` and as rich `Text`, in which markup means
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

# C0 and C1 controls but tab and newline, line separators, and marks that reverse the direction of text
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
ROUND_COLUMNS = ("round", "judged", "hard", "val rows", "val accuracy", "val AUC", "time")
FEW_ROWS = 20  # held-out rows below which accuracy and AUC say next to nothing


def clean(value: object) -> str:
    """The text of a value without terminal control, lone surrogates and direction marks."""
    return _UNSAFE.sub("", str(value).replace("\r\n", "\n"))


def line(value: object) -> str:
    return " ".join(clean(value).split())


def duration(seconds: float) -> str:
    """0.4 s, 42 s, 3:05 min, 2:03:04 h."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def rate(rows: float, seconds: float) -> str:
    per_second = rows / seconds if seconds > 0 else 0.0
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.1f}" if per_second > 0 else "-"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def number(value: float | None) -> str:
    if value is None or isinstance(value, int):
        return "-" if value is None else f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3f}"


def dollars(usd: float) -> str:
    """$12.34, and more digits for small amounts."""
    return f"${usd:,.2f}" if usd >= 1 else f"${usd:.4f}"


def spending(facts: Mapping[str, Any]) -> str:
    """One line on calls, tokens and money."""
    text = f"{facts['calls']:,} calls, {facts['tokens_in']:,} tokens in, {facts['tokens_out']:,} out"
    cap = facts.get("max_usd")
    text += f", {dollars(facts['cost_usd'])}" + (f" of {dollars(cap)}" if cap is not None else "")
    text += f", {facts['failed']:,} attempts failed" if facts.get("failed") else ""
    return text + (f", {facts['limited']:,} times told to slow down" if facts.get("limited") else "")


def few_rows(metrics: Mapping[str, Any]) -> bool:
    """Whether a round's validation figures are of too few rows to mean something."""
    return metrics.get("num_val") is not None and metrics["num_val"] < FEW_ROWS


def round_cells(metrics: Mapping[str, Any]) -> list[str]:
    """A cell for each of ROUND_COLUMNS; `?` marks figures of fewer than FEW_ROWS held-out rows."""
    seconds = metrics.get("seconds")
    mark = "?" if few_rows(metrics) else ""
    figures = percent(metrics.get("val_accuracy")), number(metrics.get("val_auc"))
    return [
        number(metrics.get("round")),
        number(metrics.get("judged")),
        percent(metrics.get("hard_rate")),
        number(metrics.get("num_val")),
        *(text if text == "-" else f"{text}{mark}" for text in figures),
        "-" if seconds is None else duration(seconds),
    ]


def table_of(*columns: str, title: str = "", name_width: int = 12) -> Table:
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


def rounds_table(rounds: Sequence[Mapping[str, Any]]) -> Table:
    table = table_of(*ROUND_COLUMNS, title="rounds", name_width=5)
    for metrics in rounds:
        table.add_row(*map(Text, round_cells(metrics)))
    if any(map(few_rows, rounds)):
        table.caption = Text(f"?: of fewer than {FEW_ROWS} held-out rows, next to no evidence", style="dim")
        table.caption_justify = "left"
    return table


def failed_text(count: int) -> Text:
    return Text(f"{count:,}", style="bold red" if count else "dim")


def labelled(label: str, value: object) -> Text:
    return Text(label, style="dim").append(clean(value).replace("\n", "\n" + " " * len(label)), style="not dim")


def print_line(console: Console, text: Text) -> None:
    """Without wrapping, so that paths and commands can be copied and logs keep one line for one event."""
    console.print(text, soft_wrap=True)
