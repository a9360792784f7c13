"""JSON schemas of replies, one for each parser whose replies are JSON. What replies mean is not known here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

YES_NO, OVERALL = ("yes", "no"), "overall"
EXAMPLE_KEYS = ("instruction", "response")


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    """An object with exactly these keys."""
    keys = list(properties)
    return {"type": "object", "properties": dict(properties), "required": keys, "additionalProperties": False}


_LISTS = {"tags": "string", "ids": "integer"}  # parsers of replies that are a list, and what is in it
_NODE = _object({"label": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}})


def reply_schema(
    parser: str,
    labels: Sequence[str],
    scale: tuple[float, float] | None,
    criteria: Sequence[str],
    rules: Sequence[str],
) -> dict[str, Any] | None:
    """The schema for `response_format`; None when the reply is not JSON.

    Args:
        parser: one of `engine.judging.prompts.PARSERS`.
        labels, scale, criteria, rules: of the prompt; the names of the rules.
    """
    low, high = scale or (0.0, 0.0)
    number = {"type": "number", "minimum": low, "maximum": high}
    if parser == "verdict":
        return _object({"verdict": {"type": "string", "enum": list(labels)}})
    if parser == "rating":
        return _object({"score": number})
    if parser == "criteria":
        return _object(dict.fromkeys(criteria, number))
    if parser == "checklist":
        return _object({name: {"type": "string", "enum": list(YES_NO)} for name in (*rules, OVERALL)})
    if parser in _LISTS:
        return _object({parser: {"type": "array", "items": {"type": _LISTS[parser]}}})
    if parser == "example":
        return _object({key: {"type": "string"} for key in EXAMPLE_KEYS})
    if parser == "tree":
        return {**_object({"tree": {"$ref": "#/$defs/node"}}), "$defs": {"node": _NODE}}
    return None
