"""The command that writes the report of a finished run. It calls the engine and prints where the page is."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from engine.cli_judge import Debug, Json
from engine.errors import ConfigError


def report(
    out: Annotated[str, typer.Argument(help="Finished run; one of several methods gets a report for each.")],
    output: Annotated[str | None, typer.Option("--output", "-o", help="Folder to write; default: OUT/report.")] = None,
    map_by: Annotated[str, typer.Option("--map", help="Map of the vectors: pca, or umap (needs umap-learn).")] = "pca",
    usd_per_million_tokens: Annotated[float | None, typer.Option(min=0, help="Price of training.")] = None,
    usd_per_gpu_hour: Annotated[float | None, typer.Option(min=0, help="Price of a GPU, instead.")] = None,
    tokens_per_gpu_second: Annotated[float | None, typer.Option(min=1, help="Tokens a GPU trains on.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Counts tokens; default: characters are counted.")] = None,
    pictures: Annotated[bool, typer.Option(help="Also write every chart as SVG and PNG.")] = True,
    as_json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Writes a page about a finished run: what it chose, why, at what cost, and the rows themselves."""
    from engine.report.savings import Prices
    from engine.report.write import write_report
    from engine.run_folder import REPORT, finished_runs
    from engine.store import Store

    if map_by not in ("pca", "umap"):
        raise ConfigError(f"unknown map {map_by!r}", fix="--map pca, or --map umap", code="E278")
    prices = Prices(usd_per_million_tokens, usd_per_gpu_hour, tokens_per_gpu_second, tokenizer)
    runs = finished_runs(out)
    written: dict[str, Any] = {}
    for run in runs:
        target = run.sub(REPORT)
        if output is not None:
            target = Store(output) if len(runs) == 1 else Store(output).sub(run.root.rsplit("/", 1)[-1])
        written[target.path("index.html")] = write_report(run, target, prices, map_by, pictures)
    if as_json:
        print(json.dumps(written, indent=1))
    else:
        print("\n".join(f"wrote {path}" for path in written))
