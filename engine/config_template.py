"""Configurations written out: the resolved one, a commented template, a JSON schema.

Generic over any pydantic v2 model. What is written here, engine/yaml_document.py reads back to the same values.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from engine.config_loader import is_model, literal_tags, model_keys, union_members, validate
from engine.yaml_document import TAG_PREFIX, Document, resolve_scalars, shortened


class _Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or 1.2 would take for something else; never writes aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    breaks = re.search("[\x85\u2028\u2029\ufeff]", text)  # read back as spaces unless they are escaped
    return dumper.represent_scalar(TAG_PREFIX + "str", text, style='"' if breaks else None)


_Dumper.add_representer(str, _represent_text)
resolve_scalars(_Dumper)


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
    for key, info in sorted(model_keys(model_cls).items(), key=lambda item: not item[1].is_required()):
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
    models = [member for member in union_members(annotation) if is_model(member)]
    if value is not None and not isinstance(value, dict):
        return None
    given = value or {}
    for member in models:
        literal = [key for key in model_keys(member) if key in given and literal_tags(member, key)]
        if all(str(given[key]) in literal_tags(member, key) for key in literal) and set(given) <= set(
            model_keys(member)
        ):
            return member
    return models[0] if models else None


def _defaults(model_cls: type[BaseModel]) -> dict[str, Any]:
    found = {key: info.get_default(call_default_factory=True) for key, info in model_keys(model_cls).items()}
    return {key: None if value is PydanticUndefined else value for key, value in found.items()}


def _comment(info: Any, section: type[BaseModel] | None) -> list[str]:
    text, members = " ".join((info.description or "").split()), union_members(info.annotation)
    choices = [str(value) for member in members if get_origin(member) is Literal for value in get_args(member)]
    facts = [f"one of: {', '.join(choices)}"] if len(choices) > 1 else []
    for key in model_keys(section) if section and len(members) > 1 else ():
        if all(literal_tags(member, key) for member in members):
            facts.append(f"one of {key}: {', '.join(tag for member in members for tag in literal_tags(member, key))}")
    default = info.get_default(call_default_factory=True)
    if info.is_required():
        facts.append("required")
    elif not (section or len(choices) == 1 or (default is None and "default" in text)):
        facts.append(f"default: {_show_default(default)}")
    text = f"{text} ({'; '.join(facts)})" if facts else text
    return [f"# {line}" for line in textwrap.wrap(text.strip(), 96, break_long_words=False)]


def _show_default(value: Any) -> str:
    value = to_jsonable_python(value)
    return shortened(value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False))


def json_schema(model_cls: type[BaseModel]) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the model, for editors."""
    schema = model_cls.model_json_schema(by_alias=True)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:iterselect:{model_cls.__name__}"}
    return {**head, "title": model_cls.__name__, **{key: value for key, value in schema.items() if key != "title"}}
