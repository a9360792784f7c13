"""The config of `iterselect apply`: the settings of a finished run with new data, for recipe `apply` or `update`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.config import RunConfig
from engine.errors import ConfigError
from engine.recipes.iterselect import DiverseConfig
from engine.run_folder import read_manifest, step_folder
from engine.settings import config_of, split_words, with_data
from engine.store import Store, absolute_root
from engine.trained import load_selector
from engine.yaml_document import Document, apply_overrides

# Of the run's settings, those that say how rows are read, embedded, written and executed.
KEPT = ("data", "seed", "max_failed", "encoder", "kmeans", "output", "runtime")


def load_apply(run: str, rest: list[str], local: bool, update: bool = False) -> RunConfig:
    """Resolves an application of a run's selector.

    Args:
        run: folder of the finished run.
        rest: new data and `key.sub=value` overrides; `budget=` takes the best rows instead of those above the cut.
        local: run in this process.
        update: go on with rounds of judging, by the settings that the run's rounds had and with its ledger.

    Raises:
        DataError: E441, there is no finished run.
        ConfigError: E226, it leaves no selector; E227, `out` is the run; others naming key and override.
    """
    selector = load_selector(run)
    theirs = selector.config.model_dump(mode="json")
    data, overrides = split_words(rest)
    if not data:
        raise ConfigError("there is no new data", fix="iterselect apply OUT new.jsonl out=FOLDER", code="E229")
    best = any(word.startswith("budget=") for word in overrides)
    values = {name: theirs[name] for name in KEPT}
    values["data"] = {**theirs["data"], "limit": None}
    values["tracking"] = {**theirs["tracking"], "run": None}
    recipe = {"name": "apply", "run": absolute_root(run), "rule": "budget" if best else "threshold"}
    if update:
        recipe = rounds_of(theirs["recipe"]) | recipe | {"name": "update"}
        values["paid"] = paid_of(theirs["paid"], selector.run)
    values |= {"recipe": recipe, "budget": 1.0}
    if local:
        values["runtime"] = {**values["runtime"], "mode": "local"}
    config = config_of(apply_overrides(with_data(Document(values, f"settings of {run}"), data), overrides))
    if absolute_root(config.out) == absolute_root(run):
        raise ConfigError("out= is the run itself", where=run, fix="choose another folder", code="E227")
    return config


def rounds_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's recipe, the settings of its rounds."""
    return {name: value for name, value in recipe.items() if name in DiverseConfig.model_fields}


def paid_of(paid: Mapping[str, Any], run: Store) -> dict[str, Any]:
    """The run's ledger and the limit above which is asked; its caps were for what it spent itself."""
    folder = step_folder(run, read_manifest(run)["levels_up"])  # where several methods share it
    ledger = paid["ledger"] or (folder.path("ledger") if folder.list("ledger") else None)
    return {"ledger": ledger, "confirm_above_usd": paid["confirm_above_usd"]}
