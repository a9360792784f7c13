"""What the scripted server answers when it is asked for tags, a tree, a choice or a new example: all from the words of
the blocks.

A text with the word "mumble" gets no readable reply, one with "mutter" gets one when it is asked again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

KINDS = {"query": "tags", "instruction": "tree", "instructions": "choice", "task": "rewrite"}
QUALITY = re.compile(r"quality=(\d+)")


def kind_of(fields: Mapping[str, Any]) -> str | None:
    """Which of the four is asked for, None for anything else."""
    return next((kind for name, kind in KINDS.items() if name in fields), None)


def tags_of(text: str) -> list[str]:
    """The distinct words of four letters and more, as they are written, at most six."""
    return list(dict.fromkeys(re.findall(r"[^\W\d_]{4,}", text)))[:6] or ["short query"]


def nodes_of(text: str) -> int:
    """One for each word."""
    return max(1, len(re.findall(r"\w+", text)))


def tree_of(text: str) -> dict[str, Any]:
    """The first word, with all the others as its children."""
    first, *others = re.findall(r"\w+", text) or ["nothing"]
    return {"label": first, "children": [{"label": word, "children": []} for word in others]}


def choice_of(texts: list[str], count: int) -> list[int]:
    """The numbers, from 1, of those with the highest `quality=`, equal ones in the order of the list."""
    marks = [QUALITY.search(text) for text in texts]
    points = [int(mark[1]) if mark else 0 for mark in marks]
    return [at + 1 for at in sorted(range(len(texts)), key=lambda at: (-points[at], at))[:count]]


def example_of(text: str) -> dict[str, str]:
    """The task with one more requirement, and a response that names its words."""
    words = ", ".join(dict.fromkeys(re.findall(r"\w+", text)))
    return {"instruction": f"{text.strip()} Give a second case.", "response": f"Both cases follow from: {words}."}


def listed(fields: Mapping[str, Any], again: bool) -> str:
    """The reply; `again`: the request quotes a reply that could not be read."""
    kind = kind_of(fields)
    said = json.dumps(fields)
    if "mumble" in said or ("mutter" in said and not again):
        ids = [1] * fields.get("count", 1) if "twice" in said else [0, *range(2, fields.get("count", 1) + 1)]
        return json.dumps({"ids": ids}) if kind == "choice" else "I would rather not say. {"
    if kind == "tags":
        return json.dumps({"tags": tags_of(fields["query"])})
    if kind == "rewrite":
        return json.dumps(example_of(fields["task"]))
    if kind == "tree":
        return json.dumps({"tree": tree_of(fields["instruction"])})
    texts = [one["text"] for one in fields["instructions"]]
    return json.dumps({"ids": choice_of(texts, fields["count"])})
