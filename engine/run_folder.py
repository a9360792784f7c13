"""Where the files of a finished run are: the outputs, and the steps, which several methods may share.

A run of one method keeps its steps in its own folder. In a run of several, each method's outputs are in
`methods/<name>`, and the steps two folders up.
"""

from __future__ import annotations

import json
from typing import Any

from engine.artifacts import Step
from engine.errors import DataError
from engine.store import Store

METHODS = "methods"
REPORT = "report"
FINISH_IT = "finish it with `iterselect run`"
COMMIT_FILE = "COMMIT"  # beside the code of a submitted run: the commit it came from


def step_folder(run: Store, levels_up: int) -> Store:
    """The folder that holds the steps of a run."""
    return Store(run.root.rsplit("/", levels_up)[0]) if levels_up else run


def finished_methods(run: Store) -> list[Store]:
    """The outputs of the finished methods of a run of several, by name; none of a run of one."""
    found = (run.sub(f"{METHODS}/{name}") for name in run.list(METHODS))
    return [one for one in found if one.exists("run.json")]


def finished_runs(out: str) -> list[Store]:
    """The finished run of a folder, or those of its several methods.

    Raises:
        DataError: E441, there is none.
    """
    run = Store(out)
    found = [run] if run.exists("run.json") else finished_methods(run)
    if not found:
        raise DataError(f"{out} holds no finished run", fix=FINISH_IT, code="E441")
    return found


def read_manifest(run: Store) -> dict[str, Any]:
    """run.json of a finished run.

    Raises:
        DataError: E441, the folder holds no finished run, or one of several methods.
    """
    if run.exists("run.json"):
        return json.loads(run.read_bytes("run.json"))
    methods = ", ".join(one.root for one in finished_methods(run))
    fix = f"name one of its methods: {methods}" if methods else FINISH_IT
    raise DataError(f"{run.root} holds no finished run", fix=fix, code="E441")


def run_steps(run: Store, *names: str) -> dict[str, Step]:
    """The steps that run.json of a finished run names: `ingest`, `selected`, its random baselines, `scores` where there
    is one, and whatever else its recipe made.

    Args:
        names: those wanted, as far as the run has them; all when none is given.
    """
    record = json.loads(run.read_bytes("run.json"))
    store = step_folder(run, record.get("levels_up", 0))
    return {name: Step.at(store, folder) for name, folder in record["steps"].items() if not names or name in names}
