"""Reading replies that answer several questions at once: a yes or no for each rule, a score for each criterion.

Only a JSON object that has every key, each with an answer of the form that was asked for, can be read; words around it
do not count. (The published check of WaveCoder, arXiv 2312.14187, takes any text with "no" in it for a no.) Two objects
that say different things say nothing. It knows nothing of prompts or models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from engine.judging.verdicts import after_thinking

T = TypeVar("T")
ANSWERS = {"yes": True, "no": False, "true": True, "false": False}


@dataclass(frozen=True)
class Checked:
    """What a reply says of a list of rules.

    Attributes:
        overall: whether the row passes, as the reply says it.
        failed: names of the rules that it does not meet, in their order.
    """

    overall: bool
    failed: tuple[str, ...]


def parse_checklist(text: str, rules: Sequence[str], overall: str) -> Checked | None:
    """The answers to all rules and to the overall question, which decides; None when one is missing or unclear.

    Args:
        text: the reply.
        rules: their names, keys of the JSON object.
        overall: key of the overall answer.
    """
    said = _agreed(text, [*rules, overall], _yes_or_no)
    if said is None:
        return None
    return Checked(said[overall], tuple(name for name in rules if not said[name]))


def parse_criteria(text: str, criteria: Sequence[str], scale: tuple[float, float]) -> dict[str, float] | None:
    """The score of every criterion; None when one is missing or outside of the scale."""

    def number(value: Any) -> float | None:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and scale[0] <= value <= scale[1]
        return float(value) if fits else None

    return _agreed(text, criteria, number)


def _yes_or_no(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    return ANSWERS.get(value.strip().casefold().rstrip(".")) if isinstance(value, str) else None


def _agreed(text: str, keys: Sequence[str], read: Callable[[Any], T | None]) -> dict[str, T] | None:
    """The one thing that all objects with these keys say."""
    found: list[dict[str, T] | None] = []
    for value in _objects(after_thinking(text)[0]):
        if any(key in value for key in keys):
            answers = {key: read(value.get(key)) for key in keys}
            whole = {key: answer for key, answer in answers.items() if answer is not None}
            found.append(whole if len(whole) == len(keys) else None)
    return found[0] if found and all(one == found[0] for one in found) else None


def _objects(reply: str) -> Iterator[Mapping[str, Any]]:
    """The JSON objects of a text that stand in no other; a repeated key makes an object empty of meaning."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=lambda _: math.nan)
    start = reply.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(reply, start)
        except (json.JSONDecodeError, RecursionError):
            end = start + 1
        else:
            yield value
        start = reply.find("{", end)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    return {name: None if names.count(name) > 1 else value for name, value in pairs}
