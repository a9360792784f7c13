"""Where the files of a finished run are: the outputs, and the steps, which several methods may share.

A run of one method keeps its steps in its own folder. In a run of several, each method's outputs are in
`methods/<name>`, and the steps two folders up.
"""

from __future__ import annotations

import json

from engine.artifacts import Step
from engine.store import Store

METHODS = "methods"
COMMIT_FILE = "COMMIT"  # beside the code of a submitted run: the commit it came from


def step_folder(run: Store, levels_up: int) -> Store:
    """The folder that holds the steps of a run."""
    return Store(run.root.rsplit("/", levels_up)[0]) if levels_up else run


def run_steps(run: Store, *names: str) -> dict[str, Step]:
    """The steps that run.json of a finished run names: `ingest`, `selected`, its random baselines, `scores` where there
    is one, and whatever else its recipe made.

    Args:
        names: those wanted, as far as the run has them; all when none is given.
    """
    record = json.loads(run.read_bytes("run.json"))
    store = step_folder(run, record.get("levels_up", 0))
    return {name: Step.at(store, folder) for name, folder in record["steps"].items() if not names or name in names}
