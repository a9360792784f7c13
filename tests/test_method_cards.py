"""The pages of docs/methods are what the sources say, and every recipe says what a reader wants to know."""

from __future__ import annotations

import pytest

from engine.method_cards import SECTIONS, pages, sections
from engine.recipes import RECIPES, load_recipe
from tests.conftest import ROOT


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_every_section(name: str) -> None:
    found = sections(load_recipe(name))
    assert all(len(found[section]) > 5 for section in SECTIONS)
    assert len(found[""].splitlines()[0]) <= 120


def test_the_pages_are_up_to_date() -> None:
    folder = ROOT / "docs" / "methods"
    made = dict(pages())
    assert {path.name for path in folder.iterdir()} == set(made), "run `make docs`"
    for name, text in made.items():
        assert (folder / name).read_text(encoding="utf-8") == text, f"{name} is old: run `make docs`"
