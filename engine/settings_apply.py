"""The config of `iterselect apply`: the settings of a finished run, with new data and the recipe `apply`."""

from __future__ import annotations

from engine.config import RunConfig
from engine.errors import ConfigError
from engine.settings import config_of, split_words, with_data
from engine.store import absolute_root
from engine.trained import load_selector
from engine.yaml_document import Document, apply_overrides

# Of the run's settings, those that say how rows are read, embedded, written and executed.
KEPT = ("data", "seed", "max_failed", "encoder", "output", "runtime")


def load_apply(run: str, rest: list[str], local: bool) -> RunConfig:
    """Resolves an application of a run's selector.

    Args:
        run: folder of the finished run.
        rest: new data and `key.sub=value` overrides; `budget=` takes the best rows instead of those above the cut.
        local: run in this process.

    Raises:
        DataError: E441, there is no finished run.
        ConfigError: E226, it leaves no selector; E227, `out` is the run; others naming key and override.
    """
    theirs = load_selector(run).config.model_dump(mode="json")
    data, overrides = split_words(rest)
    if not data:
        raise ConfigError("there is no new data", fix="iterselect apply OUT new.jsonl out=FOLDER", code="E229")
    best = any(word.startswith("budget=") for word in overrides)
    values = {name: theirs[name] for name in KEPT}
    values["data"] = {**theirs["data"], "limit": None}
    values |= {
        "recipe": {"name": "apply", "run": absolute_root(run), "rule": "budget" if best else "threshold"},
        "budget": 1.0,
    }
    if local:
        values["runtime"] = {**values["runtime"], "mode": "local"}
    config = config_of(apply_overrides(with_data(Document(values, f"settings of {run}"), data), overrides))
    if absolute_root(config.out) == absolute_root(run):
        raise ConfigError("out= is the run itself", where=run, fix="choose another folder", code="E227")
    return config
