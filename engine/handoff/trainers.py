"""Which training rows each trainer reads as they are, and what it would make of the others.

A trainer that meets a row it does not understand rarely stops: LLaMA-Factory drops it, TRL prints a role name that the
chat template does not know, Axolotl adds an empty system turn. So every row is held against the rules of its loader
here, before a config is written. Rules as read in the sources of

- TRL 1.16: trl/trainer/sft_trainer.py (tokenize_fn), trl/data_utils.py (is_conversational)
- LLaMA-Factory: src/llamafactory/data/converter.py (Alpaca-, Sharegpt- and OpenAIDatasetConverter), loader.py
- Axolotl: src/axolotl/prompt_strategies/chat_template.py, alpaca_w_system.py, src/axolotl/utils/data/shared.py

Nothing here reads files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from engine.data.formats import Format

TRL, LLAMAFACTORY, AXOLOTL = "trl", "llamafactory", "axolotl"
Row = Mapping[str, Any]

# The copy that a trainer is given when it cannot read data/ as it is, and how it reads it. Both hold any row.
COPIES = {TRL: ("messages", "messages"), LLAMAFACTORY: (LLAMAFACTORY, "sharegpt"), AXOLOTL: ("messages", "messages")}

_CHAT_ROLES = {"system", "user", "assistant", "tool"}
_LLAMAFACTORY_SPEAKERS = (("human", "observation"), ("gpt", "function_call"))


def reading(trainer: str, fmt: Format, row: Row) -> str:
    """How a trainer reads a row of a format: the rows of one data set must all be read in the same way.

    Args:
        trainer: TRL, LLAMAFACTORY or AXOLOTL.
        fmt: name and columns of the rows.
        row: as it is written, from `training_row`.

    Returns:
        "" when the trainer cannot read it or would change it.
    """
    if not fmt.native:
        return ""
    reader = _READERS.get((trainer, fmt.name))
    return reader(row) if reader else ""


def _trl_messages(row: Row) -> str:
    return "messages" if _is_chat(row["messages"]) and _tools_parse(row.get("tools")) else ""


def _trl_pair(row: Row) -> str:
    prompt, completion, tools = row["prompt"], row["completion"], row.get("tools")
    if isinstance(prompt, str) and isinstance(completion, str):
        return "" if tools else "text"  # a chat template would be needed to show the tools
    return "messages" if _is_chat(prompt) and _is_chat(completion) and _tools_parse(tools) else ""


def _llamafactory_alpaca(row: Row) -> str:
    texts = (row["instruction"], row["output"])
    optional = (row.get("input"), row.get("system"))
    fits = all(isinstance(text, str) for text in texts) and all(isinstance(text, str | None) for text in optional)
    return "alpaca" if fits else ""


def _llamafactory_sharegpt(row: Row) -> str:
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(_is_pair(turn, "from", "value") for turn in turns):
        return ""
    turns = turns[1:] if turns and turns[0]["from"] == "system" else turns
    in_order = all(turn["from"] in _LLAMAFACTORY_SPEAKERS[k % 2] for k, turn in enumerate(turns))
    texts = (row.get("system"), row.get("tools"))
    fits = in_order and len(turns) % 2 == 0 and all(isinstance(text, str | None) for text in texts)
    return "sharegpt" if fits else ""


def _llamafactory_messages(row: Row) -> str:
    """Read through role tags by the ShareGPT converter, which knows nothing of tool calls."""
    messages = row["messages"]
    if row.get("tools") or not isinstance(messages, list):
        return ""
    if not all(_is_pair(message, "role", "content") for message in messages):
        return ""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    in_order = all(turn["role"] == ("user", "assistant")[k % 2] for k, turn in enumerate(turns))
    return "messages" if in_order and len(turns) % 2 == 0 else ""


def _axolotl_messages(row: Row) -> str:
    messages, tools = row["messages"], row.get("tools")
    if not _is_chat(messages) or not isinstance(tools, list | None):
        return ""
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    arguments = [(call.get("function") or {}).get("arguments") for call in calls]
    return "messages" if all(not isinstance(item, str) or _is_json(item) for item in arguments) else ""


def _axolotl_sharegpt(row: Row) -> str:
    turns = row["conversations"]
    if row.get("tools") is not None or row.get("system") == "" or not isinstance(turns, list):
        return ""
    known = {"human", "gpt", "user", "assistant", "system"}
    return "sharegpt" if all(_is_pair(turn, "from", "value") and turn["from"] in known for turn in turns) else ""


def _axolotl_alpaca(row: Row) -> str:
    """`type: alpaca` knows no system prompt and no earlier turns."""
    return "" if row.get("system") or row.get("history") else _llamafactory_alpaca(row)


_READERS: dict[tuple[str, str], Callable[[Row], str]] = {
    (TRL, "messages"): _trl_messages,
    (TRL, "prompt-completion"): _trl_pair,
    (LLAMAFACTORY, "alpaca"): _llamafactory_alpaca,
    (LLAMAFACTORY, "sharegpt"): _llamafactory_sharegpt,
    (LLAMAFACTORY, "messages"): _llamafactory_messages,
    (AXOLOTL, "messages"): _axolotl_messages,
    (AXOLOTL, "sharegpt"): _axolotl_sharegpt,
    (AXOLOTL, "alpaca"): _axolotl_alpaca,
}


def _is_pair(item: Any, who: str, what: str) -> bool:
    """Whether a turn has these two texts and nothing else."""
    return (
        isinstance(item, dict) and item.keys() == {who, what} and all(isinstance(text, str) for text in item.values())
    )


def _is_chat(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(
            isinstance(message, dict) and message.get("role") in _CHAT_ROLES and "content" in message
            for message in messages
        )
    )


def _tools_parse(tools: Any) -> bool:
    """TRL parses tools given as text, and an empty text is no JSON."""
    return not isinstance(tools, str) or _is_json(tools)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
