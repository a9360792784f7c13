"""YAML with line numbers, and `a.b=c` overrides: a configuration as plain data that knows where each value was written.

It knows no model (engine/config_loader.py does) and reads nothing but the file it is given. Scalars follow the YAML
1.2 core schema, where PyYAML's own loader follows 1.1: `1e-5` is a number, `no`, `on`, `1:30` and `2024-01-01` are
text, and so is `007`. Keys are always text. Aliases work; merge keys (`<<`) are not part of 1.2 and stay plain keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from engine.errors import ConfigError

Loc = tuple[str | int, ...]

_MAX_VALUES = 100_000  # aliases can expand a small file without end
_SHOWN_CHARS = 60
TAG_PREFIX = "tag:yaml.org,2002:"
SCALARS = {  # YAML 1.2 core schema: type -> (pattern, first characters)
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))"
        r"|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
}


def resolve_scalars(cls: type[yaml.SafeLoader] | type[yaml.SafeDumper]) -> None:
    """Makes a loader or dumper class take plain scalars for what the 1.2 core schema says, beside its own rules."""
    for name, (pattern, first) in SCALARS.items():
        cls.add_implicit_resolver(TAG_PREFIX + name, re.compile(f"^(?:{pattern})$"), list(first))


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars by `SCALARS` only."""


_Loader.yaml_implicit_resolvers = {}
resolve_scalars(_Loader)


@dataclass(frozen=True)
class Document:
    """A configuration as plain data that remembers where each value was written.

    Attributes:
        value: the top-level mapping; keys are text.
        source: name of the file, for messages.
        marks: for each path (keys and list indices) the 1-based (line, column) of its key or list item, or the text
            `override a.b=c` when a command-line override set it. The root is `()`.
    """

    value: dict[str, Any]
    source: str
    marks: dict[Loc, tuple[int, int] | str] = field(default_factory=dict)

    def mark(self, loc: Sequence[str | int]) -> tuple[int, int]:
        """1-based (line, column) of the key at `loc`; the nearest parent's when the file does not have it."""
        for end in range(len(loc), -1, -1):
            found = self.marks.get(tuple(loc[:end]))
            if isinstance(found, tuple):
                return found
        return (1, 1)

    def where(self, loc: Sequence[str | int]) -> str:
        """`file:line:column`, or `override a.b=c` for a value (or its parent) that came from the command line."""
        for end in range(len(loc), -1, -1):
            found = self.marks.get(tuple(loc[:end]))
            if isinstance(found, str):
                return found
            if found:
                return f"{self.source}:{found[0]}:{found[1]}"
        return self.source


def load_yaml(path: Path | str) -> Document:
    """Read a YAML file whose top level is a mapping; an empty file is `{}`.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8 or not YAML, repeats a key, or uses a tag such as `!!python`.
    """
    source = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text (byte {error.start})", where=source, fix="save the file as UTF-8") from error
    except OSError as error:
        fix = "check the path; `iterselect init` writes a configuration" if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"cannot read the configuration: {error.strerror}", where=source, fix=fix) from error
    return parse_yaml(text, source)


def parse_yaml(text: str, source: str) -> Document:
    """As `load_yaml`, from text; `source` names it in messages."""
    marks: dict[Loc, tuple[int, int] | str] = {(): (1, 1)}
    value = _Reader(source, marks).read(text)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ConfigError(f"must be a mapping (key: value), not {shown(value)}", where=f"{source}:1:1")
    return Document(value, source, marks)


class _Reader:
    """Turns YAML nodes into plain data and notes where each value stands (`where` is fixed for an override)."""

    def __init__(self, source: str, marks: dict[Loc, tuple[int, int] | str], where: str = "") -> None:
        self.source, self.marks, self.where = source, marks, where
        self.open: list[yaml.Node] = []
        self.count = 0

    def fail(self, what: str, mark: yaml.Mark | None, fix: str = "") -> ConfigError:
        place = f"{self.source}:{mark.line + 1}:{mark.column + 1}" if mark else self.source
        return ConfigError(what, where=self.where or place, fix=fix)

    def read(self, text: str) -> Any:
        try:
            node = yaml.compose(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            what = ", ".join(part for part in (error.context, error.problem) if part)
            fix = "indent with spaces, not tabs" if "'\\t'" in what else ""
            # Without its cause, which shows the line, and that may hold a key.
            raise self.fail(what, error.problem_mark or error.context_mark, fix) from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position)
            column = error.position - text.rfind("\n", 0, error.position) - 1
            what = f"character U+{int(error.character):04X} is not allowed"
            raise self.fail(what, yaml.Mark(self.source, 0, line, column, None, 0)) from error
        return None if node is None else self.build(node, ())

    def build(self, node: yaml.Node, loc: Loc) -> Any:
        self.count += 1
        if self.count > _MAX_VALUES or any(node is parent for parent in self.open):
            raise self.fail("aliases expand without end", node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        self.check_tag(node, ("map", "seq"))
        self.open.append(node)
        value = self.mapping(node, loc) if isinstance(node, yaml.MappingNode) else self.sequence(node, loc)
        self.open.pop()
        return value

    def sequence(self, node: yaml.Node, loc: Loc) -> list[Any]:
        for index, item in enumerate(node.value):
            self.marks[(*loc, index)] = _place(item)
        return [self.build(item, (*loc, index)) for index, item in enumerate(node.value)]

    def mapping(self, node: yaml.Node, loc: Loc) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for key_node, item in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.fail("a key must be plain text", key_node.start_mark)
            self.scalar(key_node)  # refuses tags and broken text
            key = key_node.value
            if key in value:
                first = self.marks[(*loc, key)]
                raise self.fail(
                    f"{join_path((*loc, key))}: key repeated, first on line {first[0]}", key_node.start_mark
                )
            self.marks[(*loc, key)] = _place(key_node)
            value[key] = self.build(item, (*loc, key))
        return value

    def check_tag(self, node: yaml.Node, allowed: Sequence[str]) -> str:
        name = node.tag.removeprefix(TAG_PREFIX)
        if node.tag == name or name not in allowed:
            tag = node.tag if node.tag == name else f"!!{name}"
            raise self.fail(f"tag {tag} is not allowed", node.start_mark, "write the value without a tag")
        return name

    def scalar(self, node: yaml.ScalarNode) -> Any:
        name, text = self.check_tag(node, (*SCALARS, "str")), node.value
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise self.fail("half of a surrogate pair is not text", node.start_mark)
        if name == "str":
            return text
        if not re.fullmatch(SCALARS[name][0], text):
            raise self.fail(f"{shown(text)} is not of type {name}", node.start_mark)
        if name == "int":
            return int(text.replace("_", ""), 0)
        if name == "float":
            return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
        return text.lower() == "true" if name == "bool" else None


def _place(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def apply_overrides(document: Document, overrides: Sequence[str]) -> Document:
    """A copy of `document` with `a.b=c` and `a.list.0=c` applied in order; the right side is YAML (empty = null).

    Missing mappings on the way are created; list items must exist.

    Raises:
        ConfigError: bad syntax, or a path through something that is neither a mapping nor a list.
    """
    root, marks = deepcopy(document.value), dict(document.marks)
    for text in overrides:
        where = f"override {shortened(text)}"
        name, equals, right = text.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError("expected key.path=value", where=where, fix="for example: seed=7 or stop.max_rounds=3")
        value, loc = _Reader(document.source, {}, where).read(right), ()
        holder: Any = root
        for key in keys:
            step = _step(holder, key, loc, where)
            parent, loc = holder, (*loc, step)
            if len(loc) == len(keys):
                parent[step] = value
                marks = {path: mark for path, mark in marks.items() if path[: len(loc)] != loc}
                marks[loc] = where
            elif isinstance(parent, dict) and parent.get(step) is None:
                parent[step] = {}
                marks[loc] = where
            holder = parent[step]
    return Document(root, document.source, marks)


def _step(holder: Any, key: str, loc: Loc, where: str) -> str | int:
    if isinstance(holder, dict):
        return key
    if not isinstance(holder, list):
        raise ConfigError(f"{join_path(loc)} is {shown(holder)}, it has no key '{shortened(key)}'", where=where)
    if key.isascii() and key.isdigit() and int(key) < len(holder):
        return int(key)
    raise ConfigError(f"{join_path(loc)} is a list of {len(holder)}, it has no item '{shortened(key)}'", where=where)


def join_path(path: Sequence[str | int]) -> str:
    """`("a", 0, "b")` as `a.0.b`."""
    return ".".join(str(part) for part in path)


def shortened(text: str, limit: int = _SHOWN_CHARS) -> str:
    """At most `limit` characters of a text, for messages."""
    # A key pasted by mistake must not reach logs, whatever it looks like.
    text = re.sub(r"\b(sk-|hf_)[\w-]{6,}", r"\1***", text)
    text = re.sub(r"(api_key\w*\W+).*", r"\1***", text, flags=re.DOTALL)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shown(value: Any) -> str:
    """A value as messages quote it: text in quotes, all else as JSON, shortened."""
    return shortened(repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
