"""Reading configurations: positions, YAML 1.2 scalars, overrides, and a plain message for every broken file."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import ConfigError
from engine.yaml_document import Document, apply_overrides, load_yaml, parse_yaml


def failure(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "c.yaml")
    return str(caught.value)


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
