"""Configuration files in and out: YAML with line numbers, `a.b=c` overrides, every problem in one plain message.

Generic over any pydantic v2 model; it knows no field of the engine's own configuration (engine/config.py does) and
reads nothing but the file it is given. Scalars follow the YAML 1.2 core schema, where PyYAML's own loader follows
1.1: `1e-5` is a number, `no`, `on`, `1:30` and `2024-01-01` are text, and so is `007`. Keys are always text. Aliases
work; merge keys (`<<`) are not part of 1.2 and count as an unknown key.
"""

from __future__ import annotations

import difflib
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined, to_jsonable_python

from engine.errors import ConfigError, IterselectError

Loc = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)

_MAX_VALUES = 100_000  # aliases can expand a small file without end
_SHOWN_CHARS = 60
_PREFIX = "tag:yaml.org,2002:"
_SCALARS = {  # YAML 1.2 core schema: type -> (pattern, first characters)
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))"
        r"|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
}
_PLAIN = {  # pydantic's error type -> our wording, where pydantic's own is not plain
    "extra_forbidden": "unknown key",
    "missing": "is required",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "path_type": "must be a path",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "set_type": "must be a list",
    "frozen_set_type": "must be a list",
    "dict_type": "must be a mapping (key: value)",
    "model_type": "must be a mapping (key: value)",
    "model_attributes_type": "must be a mapping (key: value)",
}


_PHRASES = {"Input should be": "must be", "greater than or equal to": "at least", "less than or equal to": "at most"}


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars by `_SCALARS` only."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or 1.2 would take for something else; never writes aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    breaks = re.search("[\x85\u2028\u2029\ufeff]", text)  # read back as spaces unless they are escaped
    return dumper.represent_scalar(_PREFIX + "str", text, style='"' if breaks else None)


_Dumper.add_representer(str, _represent_text)
_Loader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in _SCALARS.items():
    for _cls in (_Loader, _Dumper):
        _cls.add_implicit_resolver(_PREFIX + _name, re.compile(f"^(?:{_pattern})$"), list(_first))


# ---------------------------------------------------------------------------------------------------- reading


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
        raise ConfigError(f"must be a mapping (key: value), not {_show(value)}", where=f"{source}:1:1")
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
            raise self.fail(what, error.problem_mark or error.context_mark, fix) from error
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
                raise self.fail(f"{_join((*loc, key))}: key repeated, first on line {first[0]}", key_node.start_mark)
            self.marks[(*loc, key)] = _place(key_node)
            value[key] = self.build(item, (*loc, key))
        return value

    def check_tag(self, node: yaml.Node, allowed: Sequence[str]) -> str:
        name = node.tag.removeprefix(_PREFIX)
        if node.tag == name or name not in allowed:
            shown = node.tag if node.tag == name else f"!!{name}"
            raise self.fail(f"tag {shown} is not allowed", node.start_mark, "write the value without a tag")
        return name

    def scalar(self, node: yaml.ScalarNode) -> Any:
        name, text = self.check_tag(node, (*_SCALARS, "str")), node.value
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise self.fail("half of a surrogate pair is not text", node.start_mark)
        if name == "str":
            return text
        if not re.fullmatch(_SCALARS[name][0], text):
            raise self.fail(f"{_show(text)} is not of type {name}", node.start_mark)
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
        where = f"override {_short(text)}"
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
        raise ConfigError(f"{_join(loc)} is {_show(holder)}, it has no key '{_short(key)}'", where=where)
    if key.isascii() and key.isdigit() and int(key) < len(holder):
        return int(key)
    raise ConfigError(f"{_join(loc)} is a list of {len(holder)}, it has no item '{_short(key)}'", where=where)


# ------------------------------------------------------------------------------------------------- validation


def validate(model_cls: type[Model], document: Document) -> Model:
    """Build the model, or raise one ConfigError that lists every problem in the order of the file.

    Raises:
        ConfigError: one line per problem, `file:line:col: path.to.key: what; did you mean 'x'?`.
    """
    try:
        return model_cls.model_validate(document.value)
    except ValidationError as error:
        found: dict[Loc, list[_Problem]] = {}
        for details in error.errors(include_url=False):
            problem = _problem(model_cls, details)
            found.setdefault(problem.path, []).append(problem)
    lines = []
    for path, problems in found.items():
        from_file = not document.where(path).startswith("override ")
        text = f"{_join(path)}: {_merge(problems)}" if path else _merge(problems)
        lines.append((not from_file, document.mark(path), document.where(path), text))
    lines.sort(key=lambda line: line[:2])
    if len(lines) == 1:
        raise ConfigError(lines[0][3], where=lines[0][2])
    listing = "\n".join(f"{where}: {text}" for _, _, where, text in lines)
    raise ConfigError(f"{len(lines)} problems in the configuration\n{listing}")


@dataclass(frozen=True)
class _Problem:
    path: Loc
    what: str
    value: str = ""  # the offending value as shown, "" when it would not help
    hint: str = ""


def _problem(model_cls: type[BaseModel], details: ErrorDetails) -> _Problem:
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    path, owner = _document_path(model_cls, details["loc"])
    what = _PLAIN.get(kind) or re.sub("|".join(_PHRASES), lambda found: _PHRASES[found[0]], details["msg"])
    if kind == "extra_forbidden":
        return _Problem(path, what, hint=_key_hint(model_cls, owner, str(path[-1])))
    if kind == "missing":
        about = _keys(owner)[str(path[-1])].description if owner and path[-1] in _keys(owner) else ""
        return _Problem(path, f"is required ({_short(' '.join(about.split()), 90)})" if about else what)
    if kind == "union_tag_not_found":
        key = context["discriminator"].strip("'")
        info = _keys(owner).get(str(path[-1])) if owner else None
        tags = [tag for member in _members(info.annotation) for tag in _tags(member, key)] if info else []
        return _Problem((*path, key), f"is required{': ' if tags else ''}{', '.join(tags)}")
    if kind == "union_tag_invalid":
        path, value = (*path, context["discriminator"].strip("'")), context["tag"]
        what = f"must be one of {context['expected_tags']}"
    if kind in ("union_tag_invalid", "literal_error", "enum"):
        allowed = re.findall(r"'([^']*)'", context.get("expected") or context["expected_tags"])
        return _Problem(path, what, _show(value), _did_you_mean(value, allowed))
    if kind in ("value_error", "assertion_error"):
        cause = context["error"]
        known = isinstance(cause, IterselectError)
        return _Problem(path, cause.what if known else str(cause), hint=cause.fix if known else "")
    quote = "put it in quotes" if kind == "string_type" and isinstance(value, bool | int | float) else ""
    return _Problem(path, what, _show(value), quote)


def _merge(problems: list[_Problem]) -> str:
    """One text for the problems of one key; the members of a union (`int | 'auto'`) each report their own."""
    whats = list(dict.fromkeys(problem.what for problem in problems))
    if all(what.startswith("must be ") for what in whats):
        whats = ["must be " + " or ".join(what.removeprefix("must be ") for what in whats)]
    text = "; ".join(whats)
    value = next((problem.value for problem in problems if problem.value), "")
    if value:
        text += f", not {value}" if text.startswith("must be ") else f" (got {value})"
    hint = next((problem.hint for problem in problems if problem.hint), "")
    return f"{text}; {hint}" if hint else text


def _key_hint(model_cls: type[BaseModel], owner: type[BaseModel] | None, key: str) -> str:
    known = list(_keys(owner)) if owner else []
    elsewhere = next((path for path in _paths(model_cls, ()) if path[-1] == key), None)
    near = _did_you_mean(key, known)
    if near or not elsewhere:
        return near or f"known keys: {_short(', '.join(known), 160)}"
    return f"did you mean '{_join(elsewhere)}'?"


def _did_you_mean(given: Any, options: Sequence[str]) -> str:
    if not isinstance(given, str):
        return ""
    lower = {option.lower(): option for option in options}
    near = difflib.get_close_matches(given.lower(), lower, n=1)
    return f"did you mean '{lower[near[0]]}'?" if near else ""


def _join(path: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in path)


def _short(text: str, limit: int = _SHOWN_CHARS) -> str:
    text = re.sub(r"\b(sk-|hf_)[\w-]{6,}", r"\1***", text)  # a key pasted by mistake must not reach logs
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _show(value: Any) -> str:
    return _short(repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


# ------------------------------------------------------------------------------- the shape of a pydantic model


def _bare(annotation: Any) -> Any:
    """Without Annotated, named aliases and `| None`, none of which pydantic shows in a `loc`."""
    while True:
        members = [member for member in get_args(annotation) if member is not types.NoneType]
        if get_origin(annotation) is Annotated or hasattr(annotation, "__value__"):
            annotation = annotation.__origin__ if get_origin(annotation) is Annotated else annotation.__value__
        elif get_origin(annotation) in (Union, types.UnionType) and len(members) == 1:
            annotation = members[0]
        else:
            return annotation


def _is_model(annotation: Any) -> typing.TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _members(annotation: Any) -> list[Any]:
    """The members of a union, or the annotation alone."""
    annotation = _bare(annotation)
    if get_origin(annotation) not in (Union, types.UnionType):
        return [annotation]
    return [deep for member in get_args(annotation) if member is not types.NoneType for deep in _members(member)]


def _keys(model_cls: type[BaseModel]) -> dict[str, Any]:
    """YAML key -> FieldInfo."""
    return {info.alias or name: info for name, info in model_cls.model_fields.items()}


def _tags(member: Any, key: str = "") -> list[str]:
    """The literal values by which a union member is told from the others; of any literal field without `key`."""
    infos = [info for name, info in _keys(member).items() if key in ("", name)] if _is_model(member) else []
    literals = [get_args(_bare(info.annotation)) for info in infos if get_origin(_bare(info.annotation)) is Literal]
    return [str(value.value if isinstance(value, Enum) else value) for values in literals for value in values]


def _document_path(annotation: Any, loc: Loc, path: Loc = ()) -> tuple[Loc, type[BaseModel] | None]:
    """Pydantic's `loc` without what is no key of the document (union labels, `[key]`), and the last key's model."""
    annotation = _bare(annotation)
    if not loc:
        return path, None
    head, rest = loc[0], loc[1:]
    members = _members(annotation)
    if len(members) > 1:
        return _document_path(_labelled(members, str(head)), rest, path)
    if _is_model(annotation):
        info = _keys(annotation).get(str(head))
        deeper = _document_path(info.annotation, rest, (*path, head)) if info and rest else None
        return deeper or ((*path, head), annotation)
    args = get_args(annotation)
    if isinstance(head, int):
        item = args[head] if get_origin(annotation) is tuple and Ellipsis not in args else (*args, Any)[0]
        return _document_path(item, rest, (*path, head))
    if isinstance(origin := get_origin(annotation) or annotation, type) and issubclass(origin, Mapping):
        return _document_path(args[1] if args else Any, rest, (*path, head))
    return path, None


def _labelled(members: list[Any], label: str) -> Any:
    for member in members:
        name = getattr(member, "__name__", "")
        if label in _tags(member) or (name and re.search(rf"\b{re.escape(name)}\b", label)):
            return member
    return Any


def _paths(model_cls: type[BaseModel], path: Loc, seen: tuple[type, ...] = ()) -> Iterator[Loc]:
    """Every key path of the model tree, shallow first."""
    nested = []
    for key, info in _keys(model_cls).items():
        yield (*path, key)
        nested += [(member, (*path, key)) for member in _members(info.annotation) if _is_model(member)]
    for member, deeper in nested:
        if member not in seen:
            yield from _paths(member, deeper, (*seen, model_cls))


# ---------------------------------------------------------------------------------------------------- writing


def dump_yaml(model: BaseModel) -> str:
    """The fully resolved configuration; `load_yaml` of it validates to an equal model."""
    return _yaml(model.model_dump(mode="json", by_alias=True))


def _yaml(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def commented_yaml(model_cls: type[BaseModel], values: Mapping[str, Any]) -> str:
    """A template with each field's description above it; `load_yaml` of it validates to the same as `values`.

    Required fields come first. Optional fields that `values` lacks are commented out as `#key: default`; removing
    the `#` (of every line of a section) switches them on.

    Raises:
        ConfigError: `values` do not make a valid model.
    """
    validate(model_cls, Document(dict(values), "template"))
    return "\n".join(_template(model_cls, values)) + "\n"


def _template(model_cls: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for key, info in sorted(_keys(model_cls).items(), key=lambda item: not item[1].is_required()):
        default = info.get_default(call_default_factory=True)
        value = to_jsonable_python(values.get(key, None if default is PydanticUndefined else default))
        section = _section(info.annotation, value)
        body = _yaml({key: value}).splitlines()
        if section and (value is not None or key not in values):
            inner = _template(section, value or to_jsonable_python(_defaults(section)))
            body = [f"{key}:", *(f"  {line}" if line else "" for line in inner)]
        lines += _comment(info, section) + (body if key in values else [f"#{line}" for line in body])
        if section:
            lines.append("")
    return lines[:-1] if lines and not lines[-1] else lines


def _section(annotation: Any, value: Any) -> type[BaseModel] | None:
    """The model that describes a mapping value, the union member whose literal fields agree with it."""
    models = [member for member in _members(annotation) if _is_model(member)]
    if value is not None and not isinstance(value, dict):
        return None
    given = value or {}
    for member in models:
        literal = [key for key in _keys(member) if key in given and _tags(member, key)]
        if all(str(given[key]) in _tags(member, key) for key in literal) and set(given) <= set(_keys(member)):
            return member
    return models[0] if models else None


def _defaults(model_cls: type[BaseModel]) -> dict[str, Any]:
    found = {key: info.get_default(call_default_factory=True) for key, info in _keys(model_cls).items()}
    return {key: None if value is PydanticUndefined else value for key, value in found.items()}


def _comment(info: Any, section: type[BaseModel] | None) -> list[str]:
    text, members = " ".join((info.description or "").split()), _members(info.annotation)
    choices = [str(value) for member in members if get_origin(member) is Literal for value in get_args(member)]
    facts = [f"one of: {', '.join(choices)}"] if len(choices) > 1 else []
    for key in _keys(section) if section and len(members) > 1 else ():
        if all(_tags(member, key) for member in members):
            facts.append(f"one of {key}: {', '.join(tag for member in members for tag in _tags(member, key))}")
    default = info.get_default(call_default_factory=True)
    if info.is_required():
        facts.append("required")
    elif not (section or len(choices) == 1 or (default is None and "default" in text)):
        facts.append(f"default: {_show_default(default)}")
    text = f"{text} ({'; '.join(facts)})" if facts else text
    return [f"# {line}" for line in textwrap.wrap(text.strip(), 96, break_long_words=False)]


def _show_default(value: Any) -> str:
    value = to_jsonable_python(value)
    return _short(value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False))


def json_schema(model_cls: type[BaseModel]) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the model, for editors."""
    schema = model_cls.model_json_schema(by_alias=True)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:iterselect:{model_cls.__name__}"}
    return {**head, "title": model_cls.__name__, **{key: value for key, value in schema.items() if key != "title"}}
