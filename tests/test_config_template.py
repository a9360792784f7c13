"""Writing configurations: lossless dumps, templates that load back, and the JSON schema."""

from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config_loader import validate
from engine.config_template import commented_yaml, dump_yaml, json_schema
from engine.errors import ConfigError
from engine.yaml_document import parse_yaml
from tests.config_models import Run

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    [
        "no",
        "1e-5",
        "0o17",
        "~",
        "null",
        "",
        " x ",
        "1:30",
        "2024-01-01",
        "a: b",
        "# c",
        "\x07\x85\u2028",
        "- a",
        "=",
        "<<",
    ]
)


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(TEXTS, max_size=4),
    limits=st.dictionaries(TEXTS, st.integers(-(10**20), 10**20), max_size=3),
    budget=st.floats(min_value=1e-300, allow_infinity=False),
    accuracy=st.floats(allow_nan=False, allow_infinity=False) | st.just("auto"),
)
def test_dump_loads_to_an_equal_model(
    texts: list[str], limits: dict[str, int], budget: float, accuracy: object
) -> None:
    run = Run.model_validate(
        {"budget": budget, "judge": {"kind": "remote", "model": "m"}, "texts": texts, "limits": limits,
         "stop": {"accuracy": accuracy}}
    )  # fmt: skip
    text = dump_yaml(run)
    assert validate(Run, parse_yaml(text, "dump")) == run
    assert yaml.safe_load(text)["texts"] == texts  # other YAML 1.1 readers see the same text


VALUES = {
    "budget": 0.25, "judge": {"kind": "local", "threads": 2}, "stop": {},
    "judges": [{"kind": "local"}, {"kind": "remote", "model": "x"}],
    "texts": ["a\n\nb", "c"], "weights": {"w": {"max_rounds": 2}},
}  # fmt: skip


@pytest.mark.parametrize("values", [VALUES, {"budget": 1, "judge": {"kind": "remote", "model": "m"}}])
def test_template_loads_back(values: dict) -> None:
    text = commented_yaml(Run, values)
    assert validate(Run, parse_yaml(text, "template")) == Run.model_validate(values)


def test_template_with_everything_switched_on_is_valid_and_the_same() -> None:
    values = {"budget": 1, "judge": {"kind": "local"}}
    text = commented_yaml(Run, values)
    switched_on = re.sub(r"^(\s*)#(?! \S)", r"\1", text, flags=re.MULTILINE)
    document = parse_yaml(switched_on, "template")
    assert set(document.value) == set(Run.model_fields)
    assert validate(Run, document) == Run.model_validate({**values, "maybe": {}})


def test_template_reads_well() -> None:
    text = commented_yaml(Run, {"budget": 0.25, "judge": {"kind": "local", "threads": 2}})
    assert text.startswith(
        "# Share of the pool (required)\n"
        "budget: 0.25\n"
        "# Who compares (one of kind: remote, local; required)\n"
        "judge:\n"
        "  kind: local\n"
        "  # CPU threads (default: 1)\n"
        "  threads: 2\n"
        "  # (one of: fast, slow; default: fast)\n"
        "  #mode: fast\n"
    )
    assert "# When to stop\n#stop:\n#  # Most rounds (default: 5)\n#  max_rounds: 5\n" in text


def test_template_of_wrong_values_is_refused() -> None:
    with pytest.raises(ConfigError, match="budget: is required"):
        commented_yaml(Run, {"judge": {"kind": "local"}})


def test_json_schema_names_itself() -> None:
    schema = json_schema(Run)
    assert schema["title"] == "Run"
    assert schema["$id"] == "urn:iterselect:Run"
    assert schema["properties"]["judge"]["discriminator"]["propertyName"] == "kind"
    assert schema["additionalProperties"] is False
