"""The bench: stages with their peers in the same run, one record, one table, one plot. `iterselect bench` starts it.

Its one argument is what that command was asked, as JSON. Exit code 1 when a figure is worse than the baseline's by more
than the factor `worst`, otherwise that of the error, or 0.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import Scope, compared, read_baseline
from benchmarks.record import write_record
from benchmarks.show import markdown, plot, print_comparison, print_stages
from benchmarks.stages import STAGES
from engine.errors import ConfigError, IterselectError


def main() -> int:
    asked = json.loads(sys.argv[1])
    try:
        return bench(asked)
    except IterselectError as error:
        print(error, f"({error.fix})", file=sys.stderr)
        return error.exit_code


def bench(asked: Mapping[str, Any]) -> int:
    """Runs the stages; returns the exit code.

    Raises:
        ConfigError: E285, there is no such stage.
    """
    if unknown := [name for name in asked["what"] if name not in STAGES]:
        raise ConfigError(f"no stage {', '.join(unknown)}", fix=f"there are {', '.join(STAGES)}", code="E285")
    baseline = read_baseline(Path(asked["baseline"])) if asked["baseline"] else {}
    load, stages = round(os.getloadavg()[0], 2), {}
    with tempfile.TemporaryDirectory(dir=asked["folder"]) as folder:
        sized = {name: asked[name] for name in ("rows", "sizes", "dim", "clusters", "rounds", "workers", "settings")}
        scope = Scope(folder=Path(folder), **sized)
        for name in asked["what"] or STAGES:
            print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
            measured = importlib.import_module(f"benchmarks.stages.{name}").measure(scope)
            stages[name] = measured.to_dict()
    path = write_record("bench", {"load_before": load, "stages": stages}, Path(asked["output"]))
    record = json.loads(path.read_text(encoding="utf-8"))
    path.with_suffix(".md").write_text(markdown(record), encoding="utf-8")
    drawn = plot(stages, path.with_suffix(".svg"))
    lines = compared(stages, baseline)
    if asked["json"]:
        print(json.dumps({**record, "compared": lines}, indent=1))
    else:
        print_stages(stages)
        print(", ".join(str(path.with_suffix(end)) for end in (".json", ".md", *([".svg"] if drawn else []))))
        if baseline:
            print_comparison(lines, asked["worst"])
    return int(any(line["ratio"] * asked["worst"] < 1 for line in lines))


if __name__ == "__main__":
    sys.exit(main())
