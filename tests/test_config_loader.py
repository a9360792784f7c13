"""Validating configurations: one plain message, with its place, for every kind of problem."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from engine.config_loader import validate
from engine.errors import ConfigError
from engine.yaml_document import apply_overrides, parse_yaml
from tests.config_models import Local, Run, Stop, Strict

GOOD = "budget: 0.5\njudge: {kind: local}\n"


def problems(text: str, overrides: tuple[str, ...] = (), model: type[BaseModel] = Run) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(model, apply_overrides(parse_yaml(text, "c.yaml"), overrides))
    lines = str(caught.value).splitlines()
    return [line.removesuffix(" [E200]") for line in lines if not line.endswith("problems in the configuration")]


def test_a_good_document_gives_the_model() -> None:
    run = validate(Run, apply_overrides(parse_yaml(GOOD, "c.yaml"), ["judge.threads=3"]))
    assert isinstance(run, Run)
    assert run.judge == Local(threads=3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("budgt: 1", "c.yaml:4:1: budgt: unknown key; did you mean 'budget'?"),
        ("max_usd: 1", "c.yaml:4:1: max_usd: unknown key; did you mean 'judge.max_usd'?"),
        ("stop: {zzz: 1}", "c.yaml:4:8: stop.zzz: unknown key; known keys: max_rounds, accuracy"),
        ("stop:\n  max_rounds: x", "c.yaml:5:3: stop.max_rounds: must be a whole number, not 'x'"),
        ("stop: {max_rounds: 1.5}", "c.yaml:4:8: stop.max_rounds: must be a whole number, not 1.5"),
        ("stop: {max_rounds: 0}", "c.yaml:4:8: stop.max_rounds: must be at least 1, not 0"),
        ("stop: {max_rounds: 101}", "c.yaml:4:8: stop.max_rounds: must be at most 100, not 101"),
        ("stop: 3", "c.yaml:4:1: stop: must be a mapping (key: value), not 3"),
        ("stop:", "c.yaml:4:1: stop: must be a mapping (key: value), not null"),
        (
            "stop: {accuracy: aut}",
            "c.yaml:4:8: stop.accuracy: must be a number or 'auto', not 'aut'; did you mean 'auto'?",
        ),
        ("stop: {max_rounds: 13}", "c.yaml:4:1: stop: max_rounds must not be 13; take 12 or 14"),
        ("maybe: {max_round: 1}", "c.yaml:4:9: maybe.max_round: unknown key; did you mean 'max_rounds'?"),
        ("seed: 3", "c.yaml:4:1: seed: the seed must be even"),
        ("color: bleu", "c.yaml:4:1: color: must be 'red' or 'blue', not 'bleu'; did you mean 'blue'?"),
        ("color: RED", "c.yaml:4:1: color: must be 'red' or 'blue', not 'RED'; did you mean 'red'?"),
        ("limits: {a: 1, b: x}", "c.yaml:4:16: limits.b: must be a whole number, not 'x'"),
        ("weights: {a: {max_round: 1}}", "c.yaml:4:15: weights.a.max_round: unknown key; did you mean 'max_rounds'?"),
        ("pair: [1, 2]", "c.yaml:4:11: pair.1: must be text, not 2; put it in quotes"),
        ("pair: [x, a]", "c.yaml:4:8: pair.0: must be a whole number, not 'x'"),
        ("pair: [1]", "c.yaml:4:1: pair.1: is required"),
        ("texts: a", "c.yaml:4:1: texts: must be a list, not 'a'"),
        ("texts: [a, true]", "c.yaml:4:12: texts.1: must be text, not true; put it in quotes"),
        ("flag: maybe", "c.yaml:4:1: flag: must be true or false, not 'maybe'"),
        ("judges: [{kind: local}, {kind: local, thread: 2}]", "c.yaml:4:39: judges.1.thread: unknown key; "),
        ("judges: [{kind: remote, model: m, remote: x}]", "c.yaml:4:35: judges.0.remote: must be a whole number"),
        ("judges: [{kind: locl}]", "c.yaml:4:11: judges.0.kind: must be one of 'remote', 'local', not 'locl'; did you"),
        ("judges: [{threads: 1}]", "c.yaml:4:10: judges.0.kind: is required"),
        ("judges: [{kind: remote}]", "c.yaml:4:10: judges.0.model: is required (Name of the model)"),
    ],
)
def test_one_problem(text: str, expected: str) -> None:
    (line,) = problems(f"{GOOD}\n{text}\n")
    assert line.replace("\n  fix: ", "; ").startswith(expected)


def test_problems_of_a_discriminated_union() -> None:
    base = "budget: 1\njudge:\n  "
    assert problems(base + "kind: remote\n") == ["c.yaml:2:1: judge.model: is required (Name of the model)"]
    assert problems(base + "kind: remoet\n") == [
        "c.yaml:3:3: judge.kind: must be one of 'remote', 'local', not 'remoet'; did you mean 'remote'?"
    ]
    assert problems(base + "threads: 3\n") == ["c.yaml:2:1: judge.kind: is required: remote, local"]
    assert problems(base + "kind: local\n  mode: fats\n") == [
        "c.yaml:4:3: judge.mode: must be 'fast' or 'slow', not 'fats'; did you mean 'fast'?"
    ]


def test_every_problem_is_listed_in_the_order_of_the_file() -> None:
    text = "sed: 1\nstop: {max_rounds: 0, accuracy: x}\njudge: {kind: local, threads: 0}\n"
    assert problems(text, ("flag=3", "judge.mode=x")) == [
        "c.yaml:1:1: budget: is required (Share of the pool)",
        "c.yaml:1:1: sed: unknown key; did you mean 'seed'?",
        "c.yaml:2:8: stop.max_rounds: must be at least 1, not 0",
        "c.yaml:2:23: stop.accuracy: must be a number or 'auto', not 'x'",
        "c.yaml:3:22: judge.threads: must be at least 1, not 0",
        "override flag=3: flag: must be true or false, not 3",
        "override judge.mode=x: judge.mode: must be 'fast' or 'slow', not 'x'",
    ]


def test_unions_without_a_discriminator() -> None:
    class Loose(Strict):
        either: Stop | Local | int

    lines = problems("either: {max_rounds: x, threads: 1}", model=Loose)
    assert any(line.startswith("c.yaml:1:10: either.max_rounds: must be a whole number") for line in lines)
    (line,) = problems("either: text", model=Loose)
    assert line == "c.yaml:1:1: either: must be a mapping (key: value) or a whole number, not 'text'"


def test_values_are_shortened_and_pasted_keys_hidden() -> None:
    (line,) = problems(f"{GOOD}stop: {{max_rounds: {'x' * 500}}}")
    assert len(line) < 150
    (line,) = problems(f"{GOOD}stop: {{max_rounds: sk-abcdef123456}}")
    assert "abcdef" not in line
    (line,) = problems(GOOD, ("flag=sk-abcdef123456",))
    assert "abcdef" not in line


def test_overridden_parent_reports_the_override() -> None:
    assert problems(GOOD, ("judge={kind: remote}",)) == [
        "override judge={kind: remote}: judge.model: is required (Name of the model)"
    ]
    assert problems(GOOD, ("stop.max_rond=1",))[0].startswith("override stop.max_rond=1: stop.max_rond: unknown key")
