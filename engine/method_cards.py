"""A card per method, from its recipe's docstring and settings: what it does, needs, costs, prefers, and how to run it.

`python -m engine methods --write docs/methods` makes the pages; a test compares them with what this file makes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from engine.config_base import Strict
from engine.config_loader import literal_tags, model_keys, union_members
from engine.config_template import commented_yaml
from engine.recipes import RECIPES, Recipe, load_recipe
from engine.settings import run_config_model

SECTIONS = ("Needs", "Cost", "Known bias", "Differs from the paper in")
# Methods of the survey (arXiv 2402.05123) and its neighbours that are no recipe, and why.
WITHOUT_RECIPE = {
    "DiverseEvol": "trains the model anew in every round (arXiv 2311.08182)",
    "Active Instruction Tuning": "trains the model between its rounds of choosing tasks (arXiv 2311.00288)",
    "LESS": "needs gradients of a model that is tuned first (arXiv 2402.04333)",
    "BlendSearch of InstructMining": "tunes a model for every size it tries; the rules themselves are `instructmining`",
    "augmentation of Backtranslation": "tunes a model that writes instructions; its curation is `backtranslation`",
    "pre-experience of IFD": "tunes the model on 1,000 rows before it scores; `ifd` scores with the model as it is",
    "second half of MoDS": "answers with a model tuned on the seed; `mods` takes such answers as recorded ones",
}


def sections(recipe: Recipe) -> dict[str, str]:
    """The docstring by section: "" (what stands before the first), then SECTIONS.

    Raises:
        ValueError: a section is missing.
    """
    text = (recipe.module.__doc__ or "").strip()
    pattern = "|".join(map(re.escape, SECTIONS))
    pieces = re.split(rf"^({pattern}):", text, flags=re.MULTILINE)
    found = {"": pieces[0].strip(), **dict(zip(pieces[1::2], map(str.strip, pieces[2::2]), strict=True))}
    if missing := [name for name in SECTIONS if name not in found]:
        raise ValueError(f"the docstring of recipe {recipe.name} has no {missing}")
    return found


def card(name: str) -> str:
    """The card of a method, in Markdown."""
    recipe = load_recipe(name)
    found = sections(recipe)
    summary, _, body = found[""].partition("\n")
    values = {"data": {"path": "pool.jsonl"}, "budget": 0.1, "recipe": recipe.example}
    settings = recipe_section(commented_yaml(run_config_model(name), values))
    lines = [f"# {name}", summary, body.strip()]
    for section in SECTIONS:
        lines += [f"## {section}", sentence(found[section])]
    given = "".join(f" recipe.{key}=..." for key in recipe.example if key != "name")
    lines += ["## Run it", f"```bash\niterselect run {name} pool.jsonl budget=0.1{given}\n```"]
    lines += ["## Settings", f"`iterselect init {name}` writes a whole config. The settings of the method:"]
    lines += [f"```yaml\n{settings}\n```"]
    return "\n\n".join(line for line in lines if line) + "\n"


def pieces() -> str:
    """What a composition is made of: every kind of score and selector with its settings, in Markdown."""
    from engine.scoring import AnyScore
    from engine.selecting import AnySelector

    lines = ["# Scores and selectors", "", "What [compose](compose.md) puts together; generated from the source.", ""]
    for title, union in (("Scores", AnyScore), ("Selectors", AnySelector)):
        lines += [f"## {title}", ""]
        for member in sorted(union_members(union), key=kind_of):
            lines += [f"### {kind_of(member)}", "", " ".join((inspect.getdoc(member) or "").split()), ""]
            fields = {key: info for key, info in model_keys(member).items() if key != "kind"}
            lines += [f"- `{key}`{default_of(info)}: {info.description}" for key, info in fields.items()]
            lines.append("")
    return "\n".join(lines)


def kind_of(member: type[Strict]) -> str:
    return literal_tags(member, "kind")[0]


def default_of(info: Any) -> str:
    return " (required)" if info.is_required() else f" ({info.get_default(call_default_factory=True)})"


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def recipe_section(text: str) -> str:
    """The lines of a config that belong to `recipe:`, without the comment above it."""
    lines = text.splitlines()
    start = lines.index("recipe:")
    rest = lines[start + 1 :]
    end = next((number for number, line in enumerate(rest) if line and not line.startswith(" ")), len(rest))
    return "\n".join([lines[start], *rest[:end]]).rstrip()


def index() -> str:
    """The list of all methods, in Markdown."""
    lines = ["# Methods", "", "One card per recipe, generated from its source by `iterselect methods --write`.", ""]
    lines += ["| recipe | what it selects | needs |", "|---|---|---|"]
    for name in RECIPES:
        found = sections(load_recipe(name))
        cells = [f"[{name}]({name}.md)", found[""].partition("\n")[0], first_sentence(found["Needs"])]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += ["", "## Not here", "", "These need a model that is tuned on the way:", ""]
    lines += [f"- {name}: {why}." for name, why in WITHOUT_RECIPE.items()]
    return "\n".join(lines) + "\n"


def first_sentence(text: str) -> str:
    return sentence(" ".join(text.split()).split(". ")[0].rstrip("."))


def pages() -> Iterator[tuple[str, str]]:
    """(file name, text) of every page."""
    yield "README.md", index()
    yield "pieces.md", pieces()
    for name in RECIPES:
        yield f"{name}.md", card(name)
