"""The plan of paid calls as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from engine.screen import dollars, duration, line, percent, table_of

CASES = ("low", "likely", "high")


def render(plan: Mapping[str, Any]) -> RenderableType:
    """`engine.paid.plan.estimate` for a terminal."""
    if plan.get("over"):
        return Text(f"The {plan['rounds_done']} rounds are over: the run makes no more calls.")
    table = table_of("calls of the", "", *CASES, title="paid calls")
    for backend in plan["backends"]:
        for name, cells in _rows(backend):
            table.add_row(Text(line(f"{backend['name']} {backend['model']}")), Text(name), *map(Text, cells))
        table.add_section()
    notes = [_note(backend) for backend in plan["backends"]]
    if len(plan["backends"]) > 1:
        cells = [dollars(plan["usd"][case]) if plan["usd"] else "unknown" for case in CASES]
        table.add_row(Text("together", "bold"), Text("USD"), *(Text(cell, "bold") for cell in cells))
    if plan["max_usd"] is not None:
        notes.append(f"The run stops at {dollars(plan['max_usd'])}, resumable.")
    return Group(Text(_head(plan)), "", table, "", Text("\n".join(notes), style="dim"))


def _head(plan: Mapping[str, Any]) -> str:
    if "rounds" not in plan:
        return f"{plan['pool']:,} rows in the pool"
    done, fewest, most = plan["rounds_done"], plan["rounds"]["low"], plan["rounds"]["high"]
    text = f"{plan['pool']:,} rows in the pool, {plan['rows_per_round']:,} judged per round, "
    text += f"{most} rounds" if fewest == most else f"{fewest} to {most} rounds"
    text += f", {done} of them done" if done else ""
    return text + (f"; round {done + 1} has begun, its calls are counted one by one" if plan["rows_in_work"] else "")


def _rows(backend: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    rows = [
        (name.replace("_", " "), [f"{backend[name][case]:,}" for case in CASES])
        for name in ("calls", "tokens_in", "tokens_out")
    ]
    rows.append(("USD", [dollars(backend["usd"][case]) if backend["usd"] else "unknown" for case in CASES]))
    if backend["minutes"]:
        rows.append(("time at the limits", [duration(60 * backend["minutes"][case]) for case in CASES]))
    return rows


def _note(backend: Mapping[str, Any]) -> str:
    price = backend["price"]
    text = f"{backend['name']}: " + (
        f"${price[0]:g} and ${price[1]:g} per million tokens in and out"
        if price
        else "no price is known; give price: {input: ..., output: ...}"
    )
    if backend["ledger_share"]:
        text += f"; {percent(backend['ledger_share'])} of the calls about a sample are in the ledger and free"
    return text + "."
