"""Why a row is in or out, for a terminal. Texts of rows are hostile: they are shown only through `line` and as Text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine.screen import line, number, table_of

TITLES = {
    "selected": ("selected", "bold green"),
    "left_out": ("left out", "bold yellow"),
    "rejected": ("rejected", "bold red"),
}
NEIGHBOUR_CHARS = 120
MARGIN = 11  # columns of the names on the left


def render(found: Mapping[str, Any]) -> RenderableType:
    """What `engine.explain.explain` found."""
    word, style = TITLES[found["status"]]
    head = Text(word, style=style)
    if found.get("rank") is not None:
        head.append(f" at rank {found['rank']:,}", style="not bold")
    head.append(f": {line(found['reason'])}", style="not bold default")
    place = f"{found['file']}:{found['line']}"
    if found["status"] == "rejected":
        return Group(head, facts({"where": place, "why": found["detail"], "text": found["snippet"]}))
    about = {"id": found["id"], "where": place, "source": found["source"], "turns": found["turns"]}
    about |= {"made of": found["made_of"]} if found["made_of"] else {}
    texts = {"prompt": found["prompt"], "response": found["response"]}
    pieces: list[RenderableType] = [head, facts({**about, **texts}), *scores(found)]
    for turn in found["drawn"]:
        pieces += ["", heading(f"drawn in inference turn {turn['turn']}"), facts(turn_facts(turn))]
    for verdict in found["verdicts"]:
        pieces += ["", heading(f"judged in round {verdict['round']}"), facts(verdict_facts(verdict))]
    for one in found["passes"]:
        pieces += ["", heading(f"step {line(one['step'])}"), facts({k: value(v) for k, v in one["columns"].items()})]
    if found["neighbours"]:
        pieces += ["", neighbours(found)]
    return Group(*pieces, *(Text(line(note), style="dim") for note in found["notes"]))


def scores(found: Mapping[str, Any]) -> list[RenderableType]:
    """The row's numbers, and where the one that ranks stands."""
    if not found["scores"]:
        return []
    lines: dict[str, Any] = {name: value(one) for name, one in found["scores"].items()}
    standing = found["standing"]
    if standing is not None:
        place = "no score" if standing["place"] is None else f"{standing['place']:,} of {standing['of']:,} from the top"
        lines["place"] = f"{place} by {standing['column']}"
        if standing["cut"] is not None:
            lines["cut"] = f"{standing['cut']:.4f}"
        for name in ("selected", "left_out"):
            if standing[name] is not None:
                lowest, highest = standing[name]
                lines[name.replace("_", " ")] = f"scores from {lowest:.4f} to {highest:.4f}"
    return ["", heading("scores"), facts(lines)]


def turn_facts(turn: Mapping[str, Any]) -> dict[str, Any]:
    did = "taken" if turn["taken"] else "not taken"
    return {"score then": f"{turn['score']:.4f}, {did}; the last row taken had {turn['lowest_taken']:.4f}"}


def verdict_facts(verdict: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key: value(one) for key, one in verdict.items() if key not in ("round", "answer") and one is not None}
    names = {"first": "reference shown first", "second": "answer shown first"}
    shown = {names.get(key, key.replace("_", " ")): one for key, one in shown.items()}
    return {**shown, "model's answer": verdict["answer"]}


def neighbours(found: Mapping[str, Any]) -> RenderableType:
    table = table_of("similarity", "hard row", "how", "prompt", title="nearest rows of the hard set", name_width=10)
    for column in table.columns[1:]:
        column.justify, column.no_wrap, column.overflow = "left", False, "fold"
    for column in table.columns:
        column.vertical = "top"
    for one in found["neighbours"]:
        cells = one["id"][:12], one["how"], one["prompt"][:NEIGHBOUR_CHARS]
        table.add_row(Text(f"{one['similarity']:.4f}"), *(Text(line(cell)) for cell in cells))
    return table


def heading(text: str) -> Text:
    return Text(text, style="bold")


def value(one: Any) -> str:
    """A number with four digits, other things as they are."""
    if isinstance(one, float):
        return f"{one:.4f}" if abs(one) < 10 else number(one)
    if isinstance(one, list):
        return ", ".join(value(item) for item in one)
    return "-" if one is None else str(one)


def facts(entries: Mapping[str, Any]) -> Table:
    """Names and values, those that are not known left out."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", min_width=MARGIN)
    grid.add_column(overflow="fold")
    for name, one in entries.items():
        if one not in (None, ""):
            grid.add_row(Text(line(name)), Text(line(one)))
    return grid
