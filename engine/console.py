"""What a person sees at the end: the summary of a run, its status, and errors. Writes to the console it is given."""

from __future__ import annotations

import re
import shlex
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from rich.columns import Columns
from rich.console import Console
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

from engine.doctor import Check
from engine.errors import IterselectError
from engine.events import StepSummary
from engine.screen import (
    clean,
    dollars,
    duration,
    failed_text,
    labelled,
    line,
    number,
    percent,
    print_line,
    rate,
    rounds_table,
    table_of,
)  # fmt: skip

_MESSAGE_CHARS = 400


class Summary(TypedDict):
    """The end of a run. Rows read = pool + rejected + duplicates + left_out.

    Attributes:
        recipe: name of the method.
        out: path of the run folder.
        rejected: reason -> rows.
        rows_read, duplicates, pool, selected: numbers of rows.
        left_out: rows that a pilot did not draw.
        added: rows of the pool that a model wrote.
        warnings: what one must know before using the selection.
        seconds: wall time of this command.
        clusters: number of K-Means clusters, None without clusters.
        calls: what the run's paid calls amount to; empty when there were none.
        judge: what is known of a model judge, as engine.judging.report; None for others.
        drift: how far new rows are from the pool of the run that was applied; None for other recipes.
        baselines: one mapping per selection of the same size, the method itself first: `name`, `rows` and any further
            numbers, which become columns. A share is a float in [0, 1] whose name ends in `overlap` or `rate`.
        next_commands: (command, what it does).
        up_to_date: an earlier run had done it all; nothing was written.
    """

    recipe: str
    out: str
    rows_read: int
    rejected: Mapping[str, int]
    duplicates: int
    left_out: NotRequired[int]
    added: NotRequired[int]
    warnings: NotRequired[Sequence[str]]
    pool: int
    selected: int
    seconds: float
    steps: Sequence[StepSummary]
    clusters: int | None
    rounds: Sequence[Mapping[str, Any]]
    calls: NotRequired[Mapping[str, Any]]
    judge: NotRequired[Mapping[str, Any] | None]
    drift: NotRequired[Mapping[str, Any] | None]
    baselines: NotRequired[Sequence[Mapping[str, Any]]]
    next_commands: NotRequired[Sequence[tuple[str, str]]]
    up_to_date: NotRequired[bool]


def _steps_table(steps: Sequence[StepSummary]) -> Table:
    """One line per step; the steps of all rounds (`rounds/000/answers`, `rounds/001/answers`, ...) share one."""
    groups: dict[str, list[StepSummary]] = {}
    for step in steps:
        groups.setdefault(re.sub(r"/\d+(?=/|$)", "/*", step["name"]), []).append(step)
    table = table_of("step", "rows", "time", "rows/s", "failed", title="steps")
    for name, group in groups.items():
        fresh = [step for step in group if not step["reused"]]
        rows, seconds = sum(step["rows"] for step in fresh), sum(step["seconds"] for step in fresh)
        cells = [
            f"{sum(step['rows'] for step in group):,}",
            duration(seconds) if fresh else "reused",
            rate(rows, seconds),
        ]
        table.add_row(Text(line(name)), *map(Text, cells), failed_text(sum(step["failed"] for step in group)))
    return table


def _baselines_table(baselines: Sequence[Mapping[str, Any]]) -> Table:
    names = [name for name in baselines[0] if name not in ("name", "rows")]
    table = table_of(
        "selection", "rows", *(line(name).replace("_", "\n") for name in names), title="beside the baselines"
    )
    for index, entry in enumerate(baselines):
        cells = [percent(entry[name]) if name.endswith(("overlap", "rate")) else number(entry[name]) for name in names]
        style = "bold" if index == 0 else ""
        table.add_row(Text(line(entry["name"])), Text(f"{entry['rows']:,}"), *map(Text, cells), style=style)
    return table


def _facts(summary: Summary) -> Table:
    rejected = summary["rejected"]
    clusters = summary["clusters"]
    pool = [f"in {clusters:,} clusters"] if clusters else []
    if added := summary.get("added", 0):
        pool.append(f"{added:,} of them written by the rewriter")
    facts = [
        ("read", summary["rows_read"], "rows"),
        ("rejected", sum(rejected.values()), ", ".join(f"{count:,} {line(why)}" for why, count in rejected.items())),
        ("duplicates", summary["duplicates"], ""),
        ("left out", summary.get("left_out", 0), "a pilot: the rest was not drawn"),
        ("pool", summary["pool"], "; ".join(pool)),
        ("selected", summary["selected"], f"{summary['selected'] / max(1, summary['pool']):.1%} of the pool"),
    ]
    columns = Column(style="dim"), Column(justify="right"), Column(style="dim")
    grid = Table.grid(*columns, padding=(0, 2, 0, 0))
    for name, count, remark in facts:
        if name == "left out" and not count:
            continue
        grid.add_row(name, Text(f"{count:,}", style="bold green" if name == "selected" else ""), Text(remark))
    return grid


def paid_text(calls: Mapping[str, Any]) -> str:
    """Calls, tokens and money of a whole run, and what went wrong with them."""
    text = f"{dollars(calls['usd'])} for {calls['calls']:,} calls, {calls['tokens_in']:,} tokens in and "
    text += f"{calls['tokens_out']:,} out, all sessions of this run together"
    spoiled = {name: calls[name] for name in ("spoiled", "in_doubt", "repeated") if calls[name]}
    return text + "".join(f"; {count:,} {name.replace('_', ' ')}" for name, count in spoiled.items())


def print_summary(summary: Summary, console: Console) -> None:
    """The final block of a run: counts, rounds, steps, baselines, output, next commands."""
    took = duration(summary["seconds"])
    state = f"finished before, nothing to do ({took})" if summary.get("up_to_date") else f"done in {took}"
    title = Text(f"{line(summary['recipe'])}: {state}", style="bold")
    console.print(Rule(title, align="left", style="dim"))
    if summary.get("up_to_date"):
        print_line(console, Text(f"{summary['selected']:,} of {summary['pool']:,} rows selected"))
        print_end(line(summary["out"]), summary.get("next_commands", ()), console)
        return
    console.print(_facts(summary))
    tables = [rounds_table(summary["rounds"])] if summary["rounds"] else []
    console.print("", Columns([*tables, _steps_table(summary["steps"])], padding=(1, 4)))
    baselines = summary.get("baselines")
    if baselines:
        console.print("", _baselines_table(baselines))
    if drift := summary.get("drift"):
        from engine.compare.drift_view import render as drift_table

        console.print("", drift_table(drift))
    if judge := summary.get("judge"):
        from engine.judging.report import render

        console.print("", render(judge))
    console.print()
    if calls := summary.get("calls"):
        print_line(console, Text("paid    ", style="dim").append(paid_text(calls), style="not dim"))
    for warning in summary.get("warnings", ()):
        print_line(console, Text("warning ", style="bold yellow").append(line(warning), style="not bold"))
    print_end(line(summary["out"]), summary.get("next_commands", ()), console)


def print_methods(out: str, labels: Sequence[str], summaries: Sequence[Any], console: Console) -> None:
    """The end of a run of several methods, below their comparison: what was read, where it all is, what to do next.

    Args:
        labels, summaries: of the methods, which have one pool.
    """
    first = summaries[0]
    rejected = ", ".join(f"{count:,} {line(why)}" for why, count in first["rejected"].items()) or "none"
    facts = {
        "read": f"{first['rows_read']:,} rows",
        "rejected": f"{rejected}; each with file, line and reason in {first['out']}/rejected.jsonl",
        "duplicates": f"{first['duplicates']:,}",
        "pool": f"{first['pool']:,} rows",
    }
    console.print()
    for name, value in facts.items():
        print_line(console, labelled(f"{name:<12}", value))
    export = f"iterselect export {shlex.quote(first['out'])} NEW_FOLDER"
    commands = [
        (f"open {shlex.quote(out)}/compare/index.html", "the comparison as a page"),
        (f"iterselect report {shlex.quote(out)}", "a page about each method again, with every chart as SVG and PNG"),
        (export, f"the selection of {labels[0]} in another format"),
    ]
    print_end(f"{line(out)}/methods/{{{','.join(map(line, labels))}}}", commands, console)


def print_end(out: str, next_commands: Sequence[tuple[str, str]], console: Console) -> None:
    """Where the output is, and what one may do with it."""
    print_line(console, Text("output  ", style="dim").append(out, style="bold not dim"))
    commands = [(line(command), line(about)) for command, about in next_commands]
    width = max((len(command) for command, _ in commands), default=0)
    for index, (command, about) in enumerate(commands):
        entry = Text("next    " if index == 0 else "        ", style="dim")
        entry.append(command.ljust(width), style="cyan not dim")
        print_line(console, entry.append(f"  {about}"))


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
    if status["state"] not in ("running", "done"):  # a failed run would fail again as it is; its reason says the fix
        facts["fix, then" if status["state"] == "failed" else "continue"] = status.get("resume_command")
    for name, value in facts.items():
        if value not in (None, ""):
            print_line(console, labelled(f"{name:<10}", value))


def print_checks(checks: Sequence[Check], console: Console) -> None:
    """One line for each check of `iterselect doctor`, and what to do below it."""
    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    width = max(len(check.name) for check in checks) + 2
    for check in checks:
        head = Text(f"{check.status:<6}", style=styles[check.status]).append(f"{check.name:<{width}}", style="default")
        print_line(console, head.append(line(check.found), style="default"))
        if check.fix:
            print_line(console, labelled(" " * 6 + "fix: ", check.fix))


def print_error(error: BaseException, console: Console, debug: bool) -> None:
    """Says what went wrong, where, why and how to fix it; a traceback only with `debug`."""
    if isinstance(error, IterselectError):
        print_line(console, Text(f"error {error.code}: ", style="bold red").append(clean(error.what), style="default"))
        for label, text in (("where", error.where), ("why", error.why), ("fix", error.fix)):
            if text:
                print_line(console, labelled(f"  {label + ':':<7}", text))
    else:
        message = line(error)
        if len(message) > _MESSAGE_CHARS:  # both ends: an error from a worker names its cause last
            message = f"{message[: _MESSAGE_CHARS // 2]} ... {message[-_MESSAGE_CHARS // 2 :]}"
        text = f"{type(error).__name__}: {message}" if message else type(error).__name__
        again = "" if debug else "; run again with --debug for the traceback"
        print_line(
            console, Text("unexpected error: ", style="bold red").append(f"{text} [E100]{again}", style="default")
        )
    if debug:
        print_line(console, Text(clean("".join(traceback.format_exception(error))).rstrip(), style="dim"))
