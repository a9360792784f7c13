"""The command that measures: it hands over to the benchmarks of a source tree, which no installed package has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from engine.cli_judge import Debug, Json
from engine.errors import ConfigError, EnvironmentProblem

ROOT = Path(__file__).parents[1]


def bench(
    what: Annotated[list[str] | None, typer.Argument(help="Stages of docs/benchmarks.md; default: all.")] = None,
    rows: Annotated[int | None, typer.Option(min=100, help="Of the largest pool; default: the stage's own.")] = None,
    sizes: Annotated[str, typer.Option(help="Pools of the stages end_to_end and vectors, such as 1e5,1e6.")] = "",
    dim: Annotated[int, typer.Option(min=16, help="Dimensions of vectors.")] = 384,
    clusters: Annotated[int, typer.Option(min=1, help="K of K-Means.")] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds of each comparison.")] = 3,
    workers: Annotated[str, typer.Option(help="Workers of the stage scaling, such as 1,2,4.")] = "1,2",
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value of the end-to-end runs.")] = None,
    folder: Annotated[str | None, typer.Option(help="Where scratch files go; default: the temporary folder.")] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="Record; .md and .svg go beside it.")] = "bench.json",
    baseline: Annotated[str | None, typer.Option(help="An earlier record to compare with.")] = None,
    worst: Annotated[float, typer.Option(min=1.0, help="Exit code 1 when a figure is worse by more than that.")] = 1.5,
    as_json: Json = False, debug: Debug = False,
) -> int:  # fmt: skip
    """Measures this machine: every stage beside its peers in the same run; a record, a page and a plot."""
    if not (ROOT / "benchmarks" / "__main__.py").exists():
        raise EnvironmentProblem(
            "this installation has no benchmarks",
            why="they are in the source tree, with the peers they need",
            fix="clone the repository, run `make test` there once, then .venv/bin/iterselect bench",
            code="E353",
        )
    asked = {
        "what": what or [], "rows": rows, "sizes": numbers(sizes), "dim": dim, "clusters": clusters, "rounds": rounds,
        "workers": numbers(workers), "settings": settings or [], "folder": folder, "output": output,
        "baseline": baseline, "worst": worst, "json": as_json,
    }  # fmt: skip
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "benchmarks", json.dumps(asked)]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode


def numbers(text: str) -> list[int]:
    """1e5,1e6 -> [100000, 1000000].

    Raises:
        ConfigError: E284, not whole numbers.
    """
    try:
        found = [float(one) for one in text.split(",") if one]
    except ValueError:
        found = [0.5]
    if any(one < 1 or one != int(one) for one in found):
        raise ConfigError(f"{text!r} is no list of whole numbers", fix="for example 1e5,1e6", code="E284")
    return [int(one) for one in found]
