"""A comparison for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from engine.screen import dollars, duration, line, number, table_of


def render(found: Mapping[str, Any]) -> RenderableType:
    """`engine.compare.facts.compare` as tables."""
    pieces: list[RenderableType] = [Text(line(note), style="yellow") for note in found["notes"]]
    return Group(*pieces, methods_table(found), "", overlap_table(found), "", Text(agreement(found), style="dim"))


def methods_table(found: Mapping[str, Any]) -> RenderableType:
    """One line per method: size, cost, means, shifts."""
    paid = any(entry.get("usd") for entry in found["methods"])
    table = table_of(
        "method", "rows", "time", *(["USD"] if paid else []), "prompt\nchars", "answer\nchars", "sources",
        "length\nshift", "source\nshift", title=f"{found['pool_rows']:,} rows in the pool",
        name_width=20,
    )  # fmt: skip
    for entry in found["methods"]:
        shift = entry["shift"]
        cells = [
            f"{entry['rows']:,}",
            duration(entry["seconds"]) if "seconds" in entry else "-",
            *([dollars(entry["usd"]) if entry.get("usd") else "-"] if paid else []),
            *(number(entry[name]) for name in ("prompt_chars", "response_chars", "sources")),
            *(number(shift[name]) for name in ("response_chars", "source")),
        ]
        table.add_row(Text(line(entry["name"])), *map(Text, cells), style="" if "out" in entry else "dim")
    return table


def overlap_table(found: Mapping[str, Any]) -> RenderableType:
    """Jaccard of every pair, similar methods beside one another; on the diagonal what chance gives for that size."""
    order, names = found["order"], [entry["name"] for entry in found["methods"]]
    heading = "rows in common, % of the rows of either (Jaccard); in brackets: two random selections of that size"
    table = table_of("", *(str(place) for place in range(1, len(order) + 1)), title=heading, name_width=20)
    for place, a in enumerate(order, 1):
        shares = [found["chance" if a == b else "jaccard"][a][b] for b in order]
        cells = [f"{100 * share:.0f}" for share in shares]
        cells[place - 1] = f"({cells[place - 1]})"
        table.add_row(Text(f"{place:>2} {line(names[a])}"), *map(Text, cells))
    return table


def agreement(found: Mapping[str, Any]) -> str:
    """How many rows were chosen by none, one, two ... of the runs."""
    counts = [f"{count:,} by {votes}" for votes, count in enumerate(found["agreement"]) if count]
    return "rows chosen by how many of the runs: " + ", ".join(counts)
