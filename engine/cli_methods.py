"""Commands about methods: what each is, and how the selections of several differ. Each calls the engine and prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from engine.cli_judge import Debug, Json
from engine.recipes import RECIPES, load_recipe


def methods(
    name: Annotated[str | None, typer.Argument(help="Recipe; none lists them all.")] = None,
    write: Annotated[Path | None, typer.Option(help="Write all cards into this folder.")] = None,
    debug: Debug = False,
) -> None:
    """Says what a method does, needs, costs and prefers."""
    from engine.method_cards import card, pages

    if write is not None:
        write.mkdir(parents=True, exist_ok=True)
        for file, text in pages():
            (write / file).write_text(text, encoding="utf-8")
        return
    if name is not None:
        print(card(name), end="")
        return
    for known in RECIPES:
        print(f"{known:<20} {load_recipe(known).summary}")


def compare(
    outs: Annotated[list[str], typer.Argument(help="Finished runs; one of several methods stands for all.")],
    output: Annotated[str | None, typer.Option("--output", "-o", help="Folder for a page and pictures.")] = None,
    as_json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Says how the selections of finished runs differ: overlap, shifts, cost, rows agreed on and disputed."""
    from engine.compare.collect import collect, find_runs
    from engine.compare.facts import compare as compared

    stores = find_runs(outs)
    pool, choices, notes = collect(stores)
    found = compared(pool, choices, notes)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        from engine.compare.view import render

        Console().print(render(found))
    if output is not None:
        from engine.compare.page import write_page
        from engine.store import Store

        write_page(Store(output), found, pool, stores)
        print(f"wrote {output}/index.html", file=sys.stderr)
