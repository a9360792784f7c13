"""Reading a model's reply that is not one number or word: a list of tags, a list of numbers, a tree, an example.

As engine/judging/verdicts.py it never guesses: a reply that is not wholly what was asked for is None, and the caller
asks again. JSON may stand alone, in a fence or in prose. It knows nothing of prompts or models.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from engine.judging.reply_schemas import EXAMPLE_KEYS
from engine.judging.verdicts import after_thinking

LONGEST_TAG = 100  # characters
_OPENING = re.compile(r"[\[{]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def is_tag(value: Any) -> bool:
    """A short line of storable text with something in it."""
    if not isinstance(value, str) or not 0 < len(value.strip()) <= len(value) <= LONGEST_TAG:
        return False
    return value.isprintable() and not _LONE_SURROGATE.search(value)


def parse_tags(text: str) -> list[str] | None:
    """The distinct tags that a reply gives, in its order.

    Forms: {"tags": [...]} or a list alone, of texts or of objects with a "tag" (and an explanation). None for an empty
    list, a tag that is no short text, or two lists.
    """
    found = _said(text, "tags")
    if not isinstance(found, list):
        return None
    tags = [one.get("tag") if isinstance(one, dict) else one for one in found]
    texts = [tag.strip() for tag in tags if isinstance(tag, str) and is_tag(tag)]
    return list(dict.fromkeys(texts)) if len(texts) == len(tags) > 0 else None


def parse_choice(text: str, size: int, wanted: int) -> list[int] | None:
    """The numbers that a reply chooses, counted from 1, in its order.

    Forms: {"ids": [...]} or a list alone. None unless they are exactly `wanted` distinct whole numbers from 1 to
    `size`.
    """
    found = _said(text, "ids")
    if not isinstance(found, list) or not all(type(one) is int and 1 <= one <= size for one in found):
        return None
    return found if len(found) == len(set(found)) == wanted else None


def tree_nodes(text: str) -> int | None:
    """Number of nodes of the tree that a reply gives.

    A node is {"label": "...", "children": [nodes]}; a leaf may do without children. None when any node is not such an
    object, or there are two trees.
    """
    waiting, count = [_said(text, "tree")], 0
    while waiting:
        node = waiting.pop()
        if not isinstance(node, dict):
            return None
        label, children = node.get("label"), node.get("children", [])
        if not isinstance(label, str) or not label.strip() or not isinstance(children, list):
            return None
        waiting += children
        count += 1
    return count


class Example(NamedTuple):
    """A task and its response."""

    instruction: str
    response: str


def parse_example(text: str) -> Example | None:
    """The one example that a reply gives.

    Form: {"instruction": "...", "response": "..."}. None when it has other keys, or one of the two is empty or no
    storable text.
    """
    found = _said(text, "example")
    if not isinstance(found, dict) or found.keys() != {*EXAMPLE_KEYS}:
        return None
    texts = [found[key].strip() if isinstance(found[key], str) else "" for key in EXAMPLE_KEYS]
    sound = all(one and "\0" not in one and not _LONE_SURROGATE.search(one) for one in texts)
    return Example(*texts) if sound else None


def _said(text: str, key: str) -> Any:
    """The value of a key in the objects of a reply, or else its lists or objects themselves; None when they differ.

    A value that breaks off, or has a key twice, makes the whole reply unreadable: what is inside of it is a part.
    """
    reply = after_thinking(text)[0]
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    values, at = [], _OPENING.search(reply)
    while at is not None:
        try:
            value, end = decoder.raw_decode(reply, at.start())
        except (ValueError, RecursionError):
            return None
        values.append(value)
        at = _OPENING.search(reply, end)
    found = [value[key] for value in values if isinstance(value, dict) and key in value] or values
    return found[0] if found and all(one == found[0] for one in found) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object.

    Raises:
        ValueError: a key occurs twice, and nobody can say which is meant.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found
