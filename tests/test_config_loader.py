"""Configuration files: positions, plain messages for every kind of problem, and lossless round trips."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from engine.config_loader import (
    Document,
    apply_overrides,
    commented_yaml,
    dump_yaml,
    json_schema,
    load_yaml,
    parse_yaml,
    validate,
)
from engine.errors import ConfigError


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Remote(Strict):
    kind: Literal["remote"] = "remote"
    model: str = Field(description="Name of the model")
    max_usd: float = Field(1.0, ge=0, description="Money limit")
    remote: int = Field(1, description="Named like its own tag")


class Local(Strict):
    kind: Literal["local"] = "local"
    threads: int = Field(1, ge=1, description="CPU threads")
    mode: Literal["fast", "slow"] = "fast"


Judge = Annotated[Remote | Local, Field(discriminator="kind")]


class Stop(Strict):
    max_rounds: int = Field(5, ge=1, le=100, description="Most rounds")
    accuracy: float | Literal["auto"] = Field("auto", description="Stop at this validation accuracy")

    @model_validator(mode="after")
    def _check(self) -> Stop:
        if self.max_rounds == 13:
            raise ConfigError("max_rounds must not be 13", fix="take 12 or 14")
        return self


class Run(Strict):
    seed: int = Field(0, description="Seed of every draw")
    budget: float = Field(gt=0, description="Share of the pool")
    judge: Judge = Field(description="Who compares")
    judges: list[Judge] = Field(default_factory=list, description="More of them")
    stop: Stop = Field(default_factory=Stop, description="When to stop")
    maybe: Stop | None = Field(None, description="Another stop, off by default")
    color: Color = Color.RED
    limits: dict[str, int] = Field(default_factory=dict, description="Rows per source")
    weights: dict[str, Stop] = Field(default_factory=dict)
    pair: tuple[int, str] = (1, "a")
    texts: list[str] = Field(default_factory=list)
    flag: bool = False

    @field_validator("seed")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("the seed must be even")
        return value


GOOD = "budget: 0.5\njudge: {kind: local}\n"


def problems(text: str, overrides: tuple[str, ...] = (), model: type[BaseModel] = Run) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(model, apply_overrides(parse_yaml(text, "c.yaml"), overrides))
    lines = str(caught.value).splitlines()
    return [line.removesuffix(" [E200]") for line in lines if not line.endswith("problems in the configuration")]


def failure(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "c.yaml")
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------- reading


def test_values_and_marks(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("# top\na: 1\nb:\n  - x\n  - {c: 2,\n     d: [3]}\n", encoding="utf-8")
    document = load_yaml(path)
    assert document.value == {"a": 1, "b": ["x", {"c": 2, "d": [3]}]}
    assert document.mark(("a",)) == (2, 1)
    assert document.mark(("b", 0)) == (4, 5)
    assert document.mark(("b", 1, "d")) == (6, 6)
    assert document.mark(("b", 1, "d", 0)) == (6, 10)
    assert document.mark(("b", 1, "missing", "deep")) == (5, 5)
    assert document.where(("a",)) == f"{path}:2:1"
    assert document.where(()) == f"{path}:1:1"


def test_empty_file_and_bom(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for data in (b"", b"# only a comment\n", b"---\n"):
        path.write_bytes(data)
        assert load_yaml(str(path)).value == {}
    path.write_bytes(b"\xef\xbb\xbfa: \xc3\xa9\r\n")
    assert load_yaml(path).value == {"a": "é"}


def test_scalars_follow_yaml_1_2() -> None:
    text = "[1e-5, 2E3, .5, 0x1f, 0o17, 1_000, -3, 010, no, on, 1:30, 2024-01-01, ~, null, True, .inf, -.Inf, '1', v1]"
    values = parse_yaml(f"a: {text}", "c.yaml").value["a"]
    expected = [1e-5, 2000.0, 0.5, 31, 15, 1000, -3, "010", "no", "on", "1:30", "2024-01-01", None, None, True]
    expected += [float("inf"), -float("inf"), "1", "v1"]
    assert values == expected
    assert [type(value) for value in values] == [type(value) for value in expected]
    assert parse_yaml("1: a\nno: b\n2024-01-01: c\nd:", "c.yaml").value == {
        "1": "a", "no": "b", "2024-01-01": "c", "d": None,
    }  # fmt: skip


def test_aliases_work_and_cannot_explode() -> None:
    document = parse_yaml("a: &x {k: 1}\nb: *x\n", "c.yaml")
    assert document.value == {"a": {"k": 1}, "b": {"k": 1}}
    assert document.value["a"] is not document.value["b"]
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
    assert "aliases expand without end" in failure(bomb)
    assert "aliases expand without end" in failure("a: &x [*x]\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1, 2\nb: 3\n", "c.yaml:2:2: while parsing a flow sequence, expected ',' or ']'"),
        ("a:\n\t- b\n", "c.yaml:2:1: while scanning for the next token, found character '\\t'"),
        ("a: 1\nb:\n  a: 1\n  a: 2\n", "c.yaml:4:3: b.a: key repeated, first on line 3"),
        ("a: !!python/object:os.system {}\n", "c.yaml:1:4: tag !!python/object:os.system is not allowed"),
        ("a: !mine 3\n", "c.yaml:1:4: tag !mine is not allowed"),
        ("a: !!binary aGk=\n", "c.yaml:1:4: tag !!binary is not allowed"),
        ("a: !!int x\n", "c.yaml:1:4: 'x' is not of type int"),
        ("? [a]\n: 1\n", "c.yaml:1:3: a key must be plain text"),
        ("- a\n", 'c.yaml:1:1: must be a mapping (key: value), not ["a"]'),
        ("a: 1\nb: x\x07y\n", "c.yaml:2:5: character U+0007 is not allowed"),
        ("a: 1\nb: *nope\n", "c.yaml:2:4: found undefined alias 'nope'"),
        ("a: 1\n---\nb: 2\n", "c.yaml:2:1: expected a single document in the stream, but found another document"),
        ('a: "\\ud800"\n', "c.yaml:1:4: half of a surrogate pair is not text"),
    ],
)
def test_broken_yaml_says_where(text: str, expected: str) -> None:
    assert failure(text).startswith(expected)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    with pytest.raises(ConfigError, match="No such file") as caught:
        load_yaml(path)
    assert str(path) in str(caught.value)
    assert "iterselect init" in caught.value.fix
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_yaml(path)
    with pytest.raises(ConfigError, match="directory"):
        load_yaml(tmp_path)


# ---------------------------------------------------------------------------------------------------- overrides


def test_overrides_set_values_of_any_kind() -> None:
    before = parse_yaml("a: {b: 1, keep: 2}\nl: [{x: 1}, 2]\nnone:\n", "c.yaml")
    after = apply_overrides(
        before, ["a.b=1e-3", "l.0.x=[1, two]", "l.1={k: v}", "new.deep.key=no", "none.x=true", "empty=", "eq=a=b"]
    )
    assert after.value == {
        "a": {"b": 1e-3, "keep": 2}, "l": [{"x": [1, "two"]}, {"k": "v"}], "none": {"x": True},
        "new": {"deep": {"key": "no"}}, "empty": None, "eq": "a=b",
    }  # fmt: skip
    assert before.value == {"a": {"b": 1, "keep": 2}, "l": [{"x": 1}, 2], "none": None}
    assert after.where(("a", "b")) == "override a.b=1e-3"
    assert after.where(("a", "keep")) == "c.yaml:1:11"
    assert after.where(("a", "other")) == "c.yaml:1:1"
    assert after.where(("new", "deep", "other")) == "override new.deep.key=no"
    assert apply_overrides(before, ["a.b=1", "a.b=2"]).value["a"]["b"] == 2
    assert apply_overrides(Document({}, "defaults"), ["a=1"]).value == {"a": 1}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a", "override a: expected key.path=value"),
        ("=3", "override =3: expected key.path=value"),
        ("a..b=3", "override a..b=3: expected key.path=value"),
        ("a.b.c=3", "override a.b.c=3: a.b is 1, it has no key 'c'"),
        ("l.2=3", "override l.2=3: l is a list of 2, it has no item '2'"),
        ("l.x=3", "override l.x=3: l is a list of 2, it has no item 'x'"),
        ("a=[1", "override a=[1: while parsing a flow sequence"),
        ("a={b: 1, b: 2}", "override a={b: 1, b: 2}: b: key repeated"),
        ("a=!!python/none x", "override a=!!python/none x: tag !!python/none is not allowed"),
    ],
)
def test_broken_overrides(override: str, expected: str) -> None:
    document = parse_yaml("a: {b: 1}\nl: [1, 2]\n", "c.yaml")
    with pytest.raises(ConfigError) as caught:
        apply_overrides(document, [override])
    assert str(caught.value).startswith(expected)


# ---------------------------------------------------------------------------------------------------- validation


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


# ---------------------------------------------------------------------------------------------------- writing


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
