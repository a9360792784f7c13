"""The drift of new data as a table, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from engine.screen import line, table_of

STYLES = {"none": "", "moderate": "yellow", "large": "bold red"}


def render(report: Mapping[str, Any]) -> RenderableType:
    """What `engine.recipes.apply.drift_report` found."""
    names = "PSI", "by\nchance", "Jensen-\nShannon", "by\nchance", "drift"
    table = table_of("column", *names, title="drift from the pool of the run")
    for name, found in report["columns"].items():
        cells = [f"{found[key]:.3f}" for key in ("psi", "chance_psi", "js", "chance_js")]
        level = Text(found["level"], style=STYLES[found["level"]])
        table.add_row(Text(line(name)), *map(Text, cells), level)
    known = f"{report['new_rows']:,} rows beside {report['pool_rows']:,}; {report['known_rows']:,} of them are in both"
    return Group(table, Text(known, style="dim"))
