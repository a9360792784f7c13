"""Rows for LLaMA-Factory when it cannot read data/: the turns its own reader of `messages` would make, as plain text.

LLaMA-Factory's pyproject.toml, as read, allows no `datasets` newer than 4.0.0; the JSON columns that tool calls need in
`messages` came with 4.7. And its `openai` reader adds a system prompt of its own in some versions. So the reading is
done here, by the rules of OpenAIDatasetConverter (src/llamafactory/data/converter.py), and written in its ShareGPT
columns: calls become a `function_call` turn, results that follow one another are joined, and what that reader drops
(ids of calls, names, reasoning, text beside a call) is not there.
"""

from __future__ import annotations

from typing import Any

from engine.data.rows import encode

_SPEAKERS = {"user": "human", "assistant": "gpt", "tool": "observation"}
_NEXT_RESULT = "\n</tool_response>\n<tool_response>\n"


def llamafactory_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of format `messages` as `conversations`, `system` and `tools`, all of them text."""
    messages = row["messages"]
    system = messages[0]["content"] or "" if messages[0]["role"] == "system" else ""
    turns: list[dict[str, str]] = []
    for message in messages[1:] if messages[0]["role"] == "system" else messages:
        calls = message.get("tool_calls")
        if calls:
            turns.append({"from": "function_call", "value": encode([call["function"] for call in calls])})
        elif message["role"] == "tool" and turns[-1]["from"] == "observation":
            turns[-1]["value"] += _NEXT_RESULT + message["content"]
        else:
            turns.append({"from": _SPEAKERS[message["role"]], "value": message["content"]})
    return {"conversations": turns, "system": system, "tools": encode(row["tools"]) if row.get("tools") else ""}
