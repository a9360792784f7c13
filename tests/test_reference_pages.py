"""The pages of docs/reference are what the sources say, and the index names every page."""

from __future__ import annotations

from engine.errors import DataError
from engine.reference_pages import index, pages, raised
from tests.conftest import ROOT

DOCS = ROOT / "docs"


def test_the_pages_are_up_to_date() -> None:
    made = dict(pages())
    assert {path.name for path in (DOCS / "reference").iterdir()} == set(made), "run `make docs`"
    for name, text in made.items():
        assert (DOCS / "reference" / name).read_text(encoding="utf-8") == text, f"{name} is old: run `make docs`"
    assert (DOCS / "llms.txt").read_text(encoding="utf-8") == index(DOCS), "llms.txt is old: run `make docs`"


def test_an_error_of_the_sources_is_found_with_its_texts() -> None:
    found = [error for error in raised() if error.code == "E442"]
    assert (DataError.__name__, "... are not of norm 1") in {(error.kind, error.what) for error in found}
    assert any(error.fix.startswith("divide each vector") for error in found)


def test_a_code_stands_for_one_class_of_errors() -> None:
    kinds = {error.code: set() for error in raised()}
    for error in raised():
        kinds[error.code].add(error.kind)
    assert {code: names for code, names in kinds.items() if len(names) > 1} == {}
