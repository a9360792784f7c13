"""From the command line to a RunConfig, with the real models and every shipped recipe."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from engine.config import (
    EmbeddingJudgeConfig,
    FinetuneConfig,
    NeighborConfig,
    NoGeneratorConfig,
    RecorderConfig,
    RunConfig,
    budget_rows,
    check_backends,
)
from engine.config_base import OpenFraction
from engine.config_loader import validate
from engine.config_template import commented_yaml, dump_yaml, json_schema
from engine.errors import ConfigError
from engine.recipes import RECIPES, iterselect, load_recipe
from engine.settings import load_config, run_config_model
from engine.yaml_document import parse_yaml

SMALL = """\
data:
  path: pool.jsonl
  format: messages
out: runs/small
budget: 100
seed: 7
recipe:
  name: iterselect
  judge: {kind: embedding, margin: 0.1}
  classifier: {kind: finetune, epochs: 1}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def failure(target: str, *rest: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(target, list(rest))
    return caught.value


def test_preset_with_data_and_overrides_in_any_order() -> None:
    config = load_config("iterselect", ["budget=0.5", "a.jsonl", "recipe.alpha=1", "b.jsonl", "out=runs/x"])
    assert config.data.path == ["a.jsonl", "b.jsonl"]
    assert (config.budget, config.out) == (0.5, "runs/x")
    assert config.recipe == iterselect.Config.model_validate({"alpha": 1.0})
    assert load_config("random", ["pool.jsonl"]).data.path == "pool.jsonl"


@pytest.mark.parametrize("name", ["pool #1.jsonl", "[x].jsonl", "123", "{a}.jsonl", "a: b", "null", "'x", "-"])
def test_data_paths_are_taken_as_typed(tmp_path: Path, name: str) -> None:
    assert load_config("random", [name]).data.path == name
    assert load_config("random", [name, "b.jsonl"]).data.path == [name, "b.jsonl"]
    assert load_config(write(tmp_path, "recipe: random\ndata: [x, y]\n"), [name]).data.path == name
    assert load_config(write(tmp_path, "recipe: random\ndata:\n"), [name]).data.path == name


def test_a_path_that_looks_like_an_override_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lang=en").mkdir()
    monkeypatch.chdir(tmp_path)
    config = load_config("random", ["lang=en", "seed=3"])
    assert (config.data.path, config.seed) == ("lang=en", 3)
    assert "lang" in str(failure("random", "lang=de"))


def test_a_wrong_data_path_is_named_as_an_override(tmp_path: Path) -> None:
    path = write(tmp_path, "recipe: random\ndata:\n  path: [x, y]\n")
    assert str(failure(path, "\ud800.jsonl")).startswith("override data.path=")
    assert str(failure(write(tmp_path, "recipe: random\ndata: 3\n"), "pool.jsonl")).startswith(
        f"{path}:2:1: data: must"
    )


@pytest.mark.parametrize("part", ["generator", "judge"])
def test_recorded_needs_a_column_or_a_file(part: str) -> None:
    error = failure("iterselect", "pool.jsonl", f"recipe.{part}.kind=recorded")
    assert f"recipe.{part}: kind recorded needs `column`" in str(error)
    load_config("iterselect", ["pool.jsonl", f"recipe.{part}={{kind: recorded, column: x}}"])


def test_a_judge_that_compares_needs_a_generator() -> None:
    recorded = RecorderConfig.model_validate({"column": "x"})
    check_backends(NoGeneratorConfig(), recorded)
    check_backends(NeighborConfig(), EmbeddingJudgeConfig())
    with pytest.raises(ValueError, match="needs judge kind recorded"):
        check_backends(NoGeneratorConfig(), EmbeddingJudgeConfig())


def test_an_open_fraction_ends_before_one() -> None:
    assert TypeAdapter(OpenFraction).validate_python(0.999) == 0.999
    with pytest.raises(ValidationError):
        TypeAdapter(OpenFraction).validate_python(1.0)


def test_budget_as_a_share_or_a_number_of_rows() -> None:
    assert [budget_rows(budget, 10) for budget in (0.001, 0.25, 1, 2, 10)] == [1, 2, 10, 2, 10]
    with pytest.raises(ConfigError, match="budget 11 is more than the pool of 10 rows") as caught:
        budget_rows(11, 10)
    assert caught.value.code == "E221"


def test_preset_without_data_says_what_is_missing() -> None:
    assert "data: is required (What to select from)" in str(failure("random"))


def test_yaml_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, SMALL), [])
    assert (config.data.path, config.data.format, config.budget, config.seed) == ("pool.jsonl", "messages", 100, 7)
    recipe = config.recipe
    assert isinstance(recipe, iterselect.Config)
    assert recipe.judge == EmbeddingJudgeConfig.model_validate({"margin": 0.1})
    assert recipe.classifier == FinetuneConfig.model_validate({"epochs": 1})


def test_command_line_wins_over_the_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, SMALL), ["other.jsonl", "seed=9", "recipe.classifier={kind: probe}"])
    assert (config.data.path, config.data.format, config.seed) == ("other.jsonl", "messages", 9)
    assert isinstance(config.recipe, iterselect.Config)
    assert config.recipe.classifier.kind == "probe"


def test_short_forms_equal_the_long_ones(tmp_path: Path) -> None:
    long = load_config(write(tmp_path, "recipe: {name: random}\ndata: {path: pool.jsonl}\n"), [])
    path = write(tmp_path, "recipe: random\ndata: pool.jsonl\n")
    assert load_config(path, []) == long
    assert load_config(path, ["other.jsonl"]).data.path == "other.jsonl"


@pytest.mark.parametrize("where", ["target", "file", "override"])
def test_an_unknown_recipe_names_the_nearest(tmp_path: Path, where: str) -> None:
    path = write(tmp_path, f"data: pool.jsonl\nrecipe: {{name: {'iterselct' if where == 'file' else 'random'}}}\n")
    target = "iterselct" if where == "target" else path
    error = failure(target, *(["recipe.name=iterselct"] if where == "override" else []))
    assert "did you mean 'iterselect'?" in error.fix
    assert error.code == "E220"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: x\n", "recipe is required"),
        ("data: x\nrecipe: {alpha: 1}\n", "recipe.name is required"),
        ("data: x\nrecipe: 3\n", ":2:1: recipe must be a name or settings, got 3"),
        (
            "data: x\nrecipe: random\nbudget: 1.5\n",
            ":3:1: budget: a budget above 1 is a number of rows and must be whole",
        ),
        ("data: x\nrecipe: random\nbudget: 0\n", ":3:1: budget: must be greater than 0"),
        (
            "data: x\nrecipe: random\nencoder: {pool: cls}\n",
            ":3:11: encoder.pool: unknown key; did you mean 'pooling'?",
        ),
    ],
)
def test_problems_say_where_and_what(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in str(failure(write(tmp_path, text)))


def test_an_unknown_key_deep_inside_the_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL.replace("margin: 0.1", "margn: 0.1"))
    assert str(failure(path)).startswith(f"{path}:9:28: recipe.judge.margn: unknown key; did you mean 'margin'?")


def example(name: str) -> list[str]:
    """Words of a command line that runs a recipe with the settings that it must be given."""
    return ["pool.jsonl", *(f"recipe.{key}={json.dumps(value)}" for key, value in load_recipe(name).example.items())]


@pytest.mark.parametrize("name", RECIPES)
def test_the_template_of_every_recipe_loads_back(tmp_path: Path, name: str) -> None:
    values = {"data": {"path": "pool.jsonl"}, "recipe": load_recipe(name).example}
    text = commented_yaml(run_config_model(name), values)
    config = load_config(write(tmp_path, text), [])
    assert config == load_config(name, [*example(name), f"out={RunConfig.model_fields['out'].default}"])
    assert type(config.recipe) is load_recipe(name).module.Config


@pytest.mark.parametrize("name", RECIPES)
def test_the_resolved_file_of_every_recipe_is_complete_and_loads_back(tmp_path: Path, name: str) -> None:
    config = load_config(name, [*example(name), "seed=3"])
    text = dump_yaml(config)
    assert load_config(write(tmp_path, text), []) == config
    assert parse_yaml(text, "dump").value["recipe"].keys() == load_recipe(name).module.Config.model_fields.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_json_schema_of_every_recipe(name: str) -> None:
    schema = json_schema(run_config_model(name))
    assert set(schema["properties"]) == set(RunConfig.model_fields)
    assert set(schema["required"]) == {"data", "recipe"}
    recipe = schema["$defs"][schema["properties"]["recipe"]["$ref"].removeprefix("#/$defs/")]
    assert recipe["properties"]["name"]["const"] == name
    assert recipe["additionalProperties"] is False


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_is_described(name: str) -> None:
    for title, model in json_schema(run_config_model(name))["$defs"].items():
        for key, field in model.get("properties", {}).items():
            assert "const" in field or "description" in field or (title, key) == ("DataConfig", "path"), (title, key)


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_survives_pickling(name: str) -> None:
    config = load_config(name, example(name))
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert copy.model_dump() == config.model_dump()
    assert validate(run_config_model(name), parse_yaml(dump_yaml(copy), "dump")).recipe == config.recipe
