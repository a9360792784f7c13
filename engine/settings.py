"""From what the user typed to a `RunConfig`: a YAML file or a recipe's name, data paths, and key=value overrides."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, create_model

from engine.config import RunConfig
from engine.config_endpoint import OpenAIJudgeConfig
from engine.config_loader import validate
from engine.data.inputs import COMPRESSIONS, KINDS
from engine.errors import ConfigError
from engine.recipes import RECIPES, load_recipe
from engine.yaml_document import Document, apply_overrides, load_yaml, parse_yaml, shortened

OVERRIDE = re.compile(r"^[A-Za-z_][\w.]*=")

DATA = tuple(ending for ending in KINDS if ending != ".json")  # JSON is YAML as well


def run_config_model(recipe: str) -> type[RunConfig]:
    """RunConfig with the settings of one recipe in place of the base class."""
    config: type[BaseModel] = load_recipe(recipe).module.Config
    description = RunConfig.model_fields["recipe"].description
    return create_model("RunConfig", __base__=RunConfig, recipe=(config, Field(description=description)))


def load_config(target: str, rest: list[str]) -> RunConfig:
    """Resolves a run.

    Args:
        target: path of a YAML file, or the name of a recipe.
        rest: data paths and `key.sub=value` overrides, in any order. What looks like an override and exists as a
            path, such as `lang=en/`, is data.

    Raises:
        ConfigError: naming file, line, column and key of every problem.
    """
    document = resolved_document(target, rest)
    if "methods" in document.value:
        fix = "give --methods, or one `recipe:` in place of `methods:`"
        raise ConfigError("this command takes one method", where=document.where(("methods",)), fix=fix)
    return config_of(document)


def load_methods(target: str, rest: list[str], names: list[str]) -> dict[str, RunConfig]:
    """Resolves several methods on one pool.

    Args:
        target: YAML file, or data; the file may have `methods: {label: settings}` in place of `recipe`.
        rest: as `load_config`.
        names: labels of `methods`, or recipes, which then have the file's settings or their defaults; all of `methods`
            when empty.

    Returns:
        Label -> its config, equal but for the recipe.

    Raises:
        ConfigError: naming file, line, column and key of every problem.
    """
    if not target.endswith((".yaml", ".yml")):
        target, rest = "", [target, *rest]
    document = resolved_document(target, rest)
    methods = document.value.pop("methods", None) or {}
    if not isinstance(methods, dict):
        raise ConfigError("methods must be a mapping of label: settings", where=document.where(("methods",)))
    if not names and not methods:
        raise ConfigError("there are no methods", where=document.where(()), fix="add `methods:`, or name some")
    own = document.value.pop("recipe", None)
    configs = {}
    for label in names or methods:
        if not re.fullmatch(r"[\w.-]+", label):
            raise ConfigError(
                f"{label!r} cannot name a folder", where=document.where(("methods", label)), fix="use letters"
            )
        settings, place = methods.get(label), ("methods", label)
        if label not in methods and own is not None and own.get("name") == label:
            settings, place = own, ("recipe",)
        settings = {"name": label, **(settings or {})}
        marks = {loc: mark for loc, mark in document.marks.items() if loc[:1] not in (("methods",), ("recipe",))}
        own_marks = {loc: mark for loc, mark in document.marks.items() if loc[: len(place)] == place}
        marks |= {("recipe", *loc[len(place) :]): mark for loc, mark in own_marks.items()}
        configs[label] = config_of(Document({**document.value, "recipe": settings}, document.source, marks))
    return configs


def resolved_document(target: str, rest: list[str]) -> Document:
    """What the user typed, put together and not yet checked."""
    data, overrides = split_words(rest)
    document = with_data(expanded(start_document(target)), data)
    return expanded(apply_overrides(document, overrides))


def split_words(rest: list[str]) -> tuple[list[str], list[str]]:
    """Data paths and `key.sub=value` overrides; what looks like an override and exists as a path is data."""
    data = [item for item in rest if not OVERRIDE.match(item) or os.path.exists(item)]
    return data, [item for item in rest if item not in data]


def config_of(document: Document) -> RunConfig:
    """The checked settings of a document with one recipe."""
    if "recipe" not in document.value:
        fix = f"add `recipe: {{name: {next(iter(RECIPES))}}}`"
        raise ConfigError("recipe is required", where=document.where(()), fix=fix)
    name = document.value["recipe"].get("name")
    if not isinstance(name, str):
        raise ConfigError(
            "recipe.name is required", where=document.where(("recipe",)), fix=f"one of {', '.join(RECIPES)}"
        )
    try:
        found = validate(run_config_model(name), document)
    except ConfigError as error:
        if "is required" in error.what and not error.fix:
            error.fix = f"`iterselect init {name}` writes a config that has all it needs"
        raise
    return RunConfig.model_validate(dict(found))  # the class made for validation cannot be pickled


def load_judge(settings: list[str]) -> OpenAIJudgeConfig:
    """Settings of a judge from `key=value` words, or those of a config file's `recipe.judge` and words that change it.

    Raises:
        ConfigError: naming every problem.
    """
    document = Document({}, "judge settings")
    files = [word for word in settings if not OVERRIDE.match(word)]
    if len(files) > 1:
        raise ConfigError(f"several config files: {', '.join(files)}", fix="give one, and key=value for the rest")
    if files:
        found = expanded(load_yaml(files[0]))
        judge = (found.value.get("recipe") or {}).get("judge")
        if not isinstance(judge, dict) or judge.get("kind") != "openai":
            fix = "give its settings here: model=... base_url=..."
            raise ConfigError("the config has no recipe.judge of kind openai", where=files[0], fix=fix)
        marks = {loc[2:]: mark for loc, mark in found.marks.items() if loc[:2] == ("recipe", "judge")}
        document = Document(judge, files[0], marks)
    document = apply_overrides(document, [word for word in settings if word not in files])
    return OpenAIJudgeConfig.model_validate(dict(validate(OpenAIJudgeConfig, document)))


def start_document(target: str) -> Document:
    """The YAML file, or the preset of that name."""
    if not target:
        return Document({"out": "runs/methods"}, "command line")
    if target in RECIPES:
        return parse_yaml(f"recipe: {{name: {target}}}\nout: runs/{target}\n", f"preset {target}")
    if target.endswith((*DATA, *COMPRESSIONS)):
        fix = f"name a recipe first, such as: iterselect run iterselect {target}"
        raise ConfigError(f"{target} is data, not a config", fix=fix, code="E279")
    if not Path(target).exists() and not target.endswith((".yaml", ".yml")):
        load_recipe(target)  # raises, naming the nearest recipe
    return load_yaml(target)


def with_data(document: Document, paths: list[str]) -> Document:
    """The document with `data.path` from the command line, taken as typed: a path is not YAML.

    Raises:
        ConfigError: a name is not UTF-8, so it cannot be written down.
    """
    if not paths:
        return document
    where = f"override data.path={shortened(' '.join(paths))}"
    if any("\ud800" <= char <= "\udfff" for path in paths for char in path):
        where = where.encode(errors="backslashreplace").decode()
        raise ConfigError("the name of a file is not UTF-8", where=where, fix="rename the file")
    if document.value.get("data") is None:
        document.value["data"] = {}
    value: Any = document.value["data"]
    if isinstance(value, dict):  # else validation says what is wrong with it
        value["path"] = paths if len(paths) > 1 else paths[0]
        for loc in [loc for loc in document.marks if loc[:2] == ("data", "path")]:
            del document.marks[loc]
        document.marks["data", "path"] = where
    return document


def expanded(document: Document) -> Document:
    """`recipe: random` is short for `recipe: {name: random}`, `data: pool.jsonl` for `data: {path: pool.jsonl}`.

    Raises:
        ConfigError: recipe is neither a name nor settings.
    """
    recipe: Any = document.value.get("recipe")
    if isinstance(recipe, str):
        document.value["recipe"] = {"name": recipe}
    elif recipe is not None and not isinstance(recipe, dict):
        raise ConfigError(f"recipe must be a name or settings, got {recipe!r}", where=document.where(("recipe",)))
    if isinstance(document.value.get("data"), (str, list)):
        document.value["data"] = {"path": document.value["data"]}
    return document
