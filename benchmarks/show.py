"""A record of the bench for readers: a table in the terminal, a page of Markdown, a plot. It measures nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Stages = Mapping[str, Mapping[str, Any]]


def number(value: Any) -> str:
    """As people write it."""
    if not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:,.4g}"


def figure_rows(stages: Stages) -> Iterable[list[str]]:
    """stage, figure, value, unit, target, whether it was reached."""
    for stage, found in stages.items():
        for one in found["figures"]:
            target = "" if one["target"] is None else f"{'>=' if one['better'] == 'higher' else '<='} {one['target']:g}"
            reached = {None: "", True: "yes", False: "MISSED"}[one["reached"]]
            yield [stage, one["name"], number(one["value"]), one["unit"], target, reached]


HEADER = ["stage", "figure", "value", "unit", "target", "reached"]


def print_stages(stages: Stages) -> None:
    """To stdout."""
    console = Console(width=130)
    for title, header, rows in tables(stages):
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def tables(stages: Stages) -> Iterable[tuple[str, list[str], list[list[str]]]]:
    """The figures, then the table of every stage that has one: title, header, rows."""
    yield "", HEADER, list(figure_rows(stages))
    for stage, found in stages.items():
        if found["lines"]:
            header = list(found["lines"][0])
            yield stage, header, [[number(line.get(key)) for key in header] for line in found["lines"]]


def print_comparison(lines: Sequence[Mapping[str, Any]], worst: float) -> None:
    """Every figure beside the baseline's."""
    title = f"beside the baseline; a figure may be {worst:g}x worse"
    table = Table("stage", "figure", "before", "now", "unit", "better by", title=title)
    for line in lines:
        verdict = f"{line['ratio']:.2f}x" + (" WORSE" if line["ratio"] * worst < 1 else "")
        table.add_row(line["stage"], line["name"], number(line["before"]), number(line["value"]), line["unit"], verdict)
    Console(width=130).print(table)


def markdown(record: Mapping[str, Any]) -> str:
    """The page of a record."""
    hardware = record["hardware"]
    lines = [
        f"# Bench of {record['date'][:10]}, commit {record['commit']}",
        "",
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB, GPU {hardware['gpu'] or 'none'}; "
        f"load before {record['result']['load_before']}, after {hardware['load_1min']}. "
        "The machine may be shared: read the ratios before the seconds.",
    ]
    for title, header, rows in tables(record["result"]["stages"]):
        lines += ["", *([f"## {title}", ""] if title else []), *("| " + " | ".join(row) + " |" for row in [header])]
        lines += ["|" + "---|" * len(header), *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join(lines) + "\n"


def plot(stages: Stages, path: Path) -> bool:
    """Every ratio to a peer, a floor or perfect scaling, as bars beside 1; SVG or PNG by the file's name.

    Returns:
        whether there was a ratio to draw.
    """
    import altair

    ratios = [
        {"figure": f"{stage}: {one['name']}", "ratio": one["value"], "stage": stage}
        for stage, found in stages.items()
        for one in found["figures"]
        if one["unit"] == "x"
    ]
    if not ratios:
        return False
    bars = (
        altair.Chart(altair.Data(values=ratios))
        .mark_bar()
        .encode(
            x=altair.X("ratio:Q", title="times (log scale)", scale=altair.Scale(type="log"), stack=None),
            y=altair.Y("figure:N", sort=None, title=None, axis=altair.Axis(labelLimit=420)),
            color=altair.Color("stage:N", legend=None),
        )
    )
    one = altair.Chart(altair.Data(values=[{"ratio": 1}])).mark_rule(strokeDash=[5, 4]).encode(x="ratio:Q")
    (bars + one).properties(width=420).save(str(path))
    return True
