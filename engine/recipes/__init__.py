"""The registry of selection methods. One line per recipe; listing them imports nothing heavy."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from engine.errors import ConfigError

# name -> module that holds `Config` (a RecipeConfig) and `select(context) -> Selection`, and `EXAMPLE`, the settings
# that a user has to give, where there are any
RECIPES = {
    "iterselect": "engine.recipes.iterselect",
    "random": "engine.recipes.random",
    "balanced_random": "engine.recipes.balanced_random",
    "longest": "engine.recipes.longest",
    "ifd": "engine.recipes.ifd",
    "superfiltering": "engine.recipes.superfiltering",
    "perplexity": "engine.recipes.perplexity",
    "deita": "engine.recipes.deita",
    "selectit": "engine.recipes.selectit",
    "nuggets": "engine.recipes.nuggets",
    "kcenter": "engine.recipes.kcenter",
    "herding": "engine.recipes.herding",
    "facility_location": "engine.recipes.facility_location",
    "dq": "engine.recipes.dq",
    "coreset": "engine.recipes.coreset",
    "instructmining": "engine.recipes.instructmining",
    "instructiongpt4": "engine.recipes.instructiongpt4",
    "mods": "engine.recipes.mods",
    "rds_plus": "engine.recipes.rds_plus",
    "kmq": "engine.recipes.kmq",
    "alpagasus": "engine.recipes.alpagasus",
    "backtranslation": "engine.recipes.backtranslation",
    "tegit": "engine.recipes.tegit",
    "lift": "engine.recipes.lift",
    "wavecoder": "engine.recipes.wavecoder",
    "instag": "engine.recipes.instag",
    "tree_instruct": "engine.recipes.tree_instruct",
    "selectllm": "engine.recipes.selectllm",
    "compose": "engine.recipes.compose",
    "apply": "engine.recipes.apply",
    "update": "engine.recipes.update",
}


@dataclass(frozen=True)
class Recipe:
    """A registered method: its module gives the config model, the function and the one-line description."""

    name: str
    module: ModuleType

    @property
    def example(self) -> dict[str, Any]:
        """Settings to start from: the module's `EXAMPLE`, for recipes that cannot do without some of them."""
        return {"name": self.name, **getattr(self.module, "EXAMPLE", {})}

    @property
    def summary(self) -> str:
        return (self.module.__doc__ or "").strip().splitlines()[0]


def load_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"no recipe is called {name!r}", fix=f"{hint}known recipes: {', '.join(RECIPES)}", code="E220"
        )
    return Recipe(name, importlib.import_module(RECIPES[name]))
