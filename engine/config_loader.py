"""A document and a pydantic v2 model in, the model or every problem in one plain message out.

Generic over any model; it knows no field of the engine's own configuration (engine/config.py does) and no YAML
(engine/yaml_document.py does). The second half answers what keys, union members and tags a model has.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from engine.errors import ConfigError, IterselectError
from engine.yaml_document import Document, Loc, join_path, shortened, shown

Model = TypeVar("Model", bound=BaseModel)

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
        text = f"{join_path(path)}: {_merge(problems)}" if path else _merge(problems)
        lines.append((not from_file, document.mark(path), without_key(document.where(path)), text))
    lines.sort(key=lambda line: line[:2])
    if len(lines) == 1:
        raise ConfigError(lines[0][3], where=lines[0][2])
    listing = "\n".join(f"{where}: {text}" for _, _, where, text in lines)
    raise ConfigError(f"{len(lines)} problems in the configuration\n{listing}")


def without_key(text: str) -> str:
    """A text for messages up to where it shows what may be a key, pasted in place of its variable's name."""
    return re.sub(r"(api_key\w*\W+).*", r"\1***", text, flags=re.DOTALL)


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
        about = model_keys(owner)[str(path[-1])].description if owner and path[-1] in model_keys(owner) else ""
        return _Problem(path, f"is required ({shortened(' '.join(about.split()), 90)})" if about else what)
    if kind == "union_tag_not_found":
        key = context["discriminator"].strip("'")
        info = model_keys(owner).get(str(path[-1])) if owner else None
        tags = [tag for member in union_members(info.annotation) for tag in literal_tags(member, key)] if info else []
        return _Problem((*path, key), f"is required{': ' if tags else ''}{', '.join(tags)}")
    if kind == "union_tag_invalid":
        path, value = (*path, context["discriminator"].strip("'")), context["tag"]
        what = f"must be one of {context['expected_tags']}"
    if kind in ("union_tag_invalid", "literal_error", "enum"):
        allowed = re.findall(r"'([^']*)'", context.get("expected") or context["expected_tags"])
        return _Problem(path, what, shown(value), _did_you_mean(value, allowed))
    if kind in ("value_error", "assertion_error"):
        cause = context["error"]
        known = isinstance(cause, IterselectError)
        return _Problem(path, cause.what if known else str(cause), hint=cause.fix if known else "")
    quote = "put it in quotes" if kind == "string_type" and isinstance(value, bool | int | float) else ""
    secret = any("api_key" in str(key) for key in path)
    return _Problem(path, what, "" if secret else without_key(shown(value)), quote)


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
    known = list(model_keys(owner)) if owner else []
    elsewhere = next((path for path in _paths(model_cls, ()) if path[-1] == key), None)
    near = _did_you_mean(key, known)
    if near or not elsewhere:
        return near or f"known keys: {shortened(', '.join(known), 160)}"
    return f"did you mean '{join_path(elsewhere)}'?"


def _did_you_mean(given: Any, options: Sequence[str]) -> str:
    if not isinstance(given, str):
        return ""
    lower = {option.lower(): option for option in options}
    near = difflib.get_close_matches(given.lower(), lower, n=1)
    return f"did you mean '{lower[near[0]]}'?" if near else ""


# ------------------------------------------------------------------------------- the shape of a pydantic model


def bare_type(annotation: Any) -> Any:
    """Without Annotated, named aliases and `| None`, none of which pydantic shows in a `loc`."""
    while True:
        members = [member for member in get_args(annotation) if member is not types.NoneType]
        if get_origin(annotation) is Annotated or hasattr(annotation, "__value__"):
            annotation = annotation.__origin__ if get_origin(annotation) is Annotated else annotation.__value__
        elif get_origin(annotation) in (Union, types.UnionType) and len(members) == 1:
            annotation = members[0]
        else:
            return annotation


def is_model(annotation: Any) -> typing.TypeGuard[type[BaseModel]]:
    """Whether an annotation is a pydantic model class."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def union_members(annotation: Any) -> list[Any]:
    """The members of a union, or the annotation alone."""
    annotation = bare_type(annotation)
    if get_origin(annotation) not in (Union, types.UnionType):
        return [annotation]
    return [deep for member in get_args(annotation) if member is not types.NoneType for deep in union_members(member)]


def model_keys(model_cls: type[BaseModel]) -> dict[str, Any]:
    """YAML key -> FieldInfo."""
    return {info.alias or name: info for name, info in model_cls.model_fields.items()}


def literal_tags(member: Any, key: str = "") -> list[str]:
    """The literal values by which a union member is told from the others; of any literal field without `key`."""
    infos = [info for name, info in model_keys(member).items() if key in ("", name)] if is_model(member) else []
    literals = [
        get_args(bare_type(info.annotation)) for info in infos if get_origin(bare_type(info.annotation)) is Literal
    ]
    return [str(value.value if isinstance(value, Enum) else value) for values in literals for value in values]


def _document_path(annotation: Any, loc: Loc, path: Loc = ()) -> tuple[Loc, type[BaseModel] | None]:
    """Pydantic's `loc` without what is no key of the document (union labels, `[key]`), and the last key's model."""
    annotation = bare_type(annotation)
    if not loc:
        return path, None
    head, rest = loc[0], loc[1:]
    members = union_members(annotation)
    if len(members) > 1:
        return _document_path(_labelled(members, str(head)), rest, path)
    if is_model(annotation):
        info = model_keys(annotation).get(str(head))
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
        if label in literal_tags(member) or (name and re.search(rf"\b{re.escape(name)}\b", label)):
            return member
    return Any


def _paths(model_cls: type[BaseModel], path: Loc, seen: tuple[type, ...] = ()) -> Iterator[Loc]:
    """Every key path of the model tree, shallow first."""
    nested = []
    for key, info in model_keys(model_cls).items():
        yield (*path, key)
        nested += [(member, (*path, key)) for member in union_members(info.annotation) if is_model(member)]
    for member, deeper in nested:
        if member not in seen:
            yield from _paths(member, deeper, (*seen, model_cls))
