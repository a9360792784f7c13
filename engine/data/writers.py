"""Training rows in the format a trainer reads, and their bytes.

Column names are those of reference/ux.md 1.1. A row that a format cannot hold without loss is an error, never a changed
row. Rows are rebuilt from the source record, not from the canonical messages, so keys keep the order the author gave
them (chat templates print tool schemas in that order). Which rows are written, and where, is not decided here.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from engine.data.conversations import Conversation, Message, to_conversation
from engine.data.formats import Format, training_columns
from engine.data.rows import BadRow, encode
from engine.errors import ConfigError, DataError, StepError

OUTPUT_FORMATS = ("source", "messages", "alpaca", "sharegpt", "prompt-completion")


def training_row(record_json: str, source: Format, output: str, row_id: str = "") -> dict[str, Any]:
    """One row as a trainer reads it.

    Args:
        record_json: the source row, column `record` of the pool.
        source: the format of the file it came from (`Ingest.formats`).
        output: one of OUTPUT_FORMATS. "source" keeps the training columns of the source row, names and values
            untouched; all other columns stay in the pool (reference/ux.md 1.3, trap 1).
        row_id: named in errors.

    Raises:
        ConfigError: E231 unknown `output`.
        DataError: E420 the output format cannot hold this row without loss.
        StepError: E113 the record is no usable row of `source`.
    """
    value = json.loads(record_json)
    if output == "source":
        return {name: value.get(name) for name in training_columns(source)}
    if output not in OUTPUT_FORMATS:
        raise ConfigError(
            f"unknown output format {output!r}", fix=f"use one of {', '.join(OUTPUT_FORMATS)}", code="E231"
        )
    found = to_conversation(value, source)
    if isinstance(found, BadRow):
        raise StepError("a row of the pool cannot be read again", where=row_id, why=found.detail, code="E113")
    if output == "messages":
        return {"messages": found.messages, "tools": found.tools} if found.tools else {"messages": found.messages}
    if output == "prompt-completion":
        row = {"prompt": found.messages[:-1], "completion": found.messages[-1:]}
        return row | {"tools": found.tools} if found.tools else row
    if output == "alpaca":
        return _alpaca(found, value, source, row_id)
    return _sharegpt(found, row_id)


def output_format(source: Format, output: str, with_tools: bool) -> Format:
    """The format of the rows that `training_row` writes; `with_tools`: whether any row has tools."""
    if output == "source":
        return source
    if output == "alpaca":
        names = {"prompt": "instruction", "query": "input", "response": "output"}
        return Format("alpaca", names | {"system": "system", "history": "history"})
    if output == "sharegpt":
        return Format("sharegpt", {"messages": "conversations", "system": "system", "tools": "tools"})
    tools = {"tools": "tools"} if with_tools else {}
    if output == "messages":
        return Format("messages", {"messages": "messages"} | tools)
    return Format("prompt-completion", {"prompt": "prompt", "response": "completion"} | tools)


def _alpaca(found: Conversation, value: dict[str, Any], source: Format, row_id: str) -> dict[str, Any]:
    turns = _turns(found)
    if found.tools or any(message.keys() - {"role", "content"} or message["role"] == "tool" for message in turns):
        raise _lossy("alpaca", "tools, names or reasoning", row_id)
    instruction, query = turns[-2]["content"], ""
    if source.name == "alpaca":
        instruction, query = (value.get(source.columns.get(key, "")) or "" for key in ("prompt", "query"))
    texts = [message["content"] for message in turns[:-2]]
    return {
        "instruction": instruction,
        "input": query,
        "output": turns[-1]["content"],
        "system": found.system,
        "history": [list(pair) for pair in zip(texts[::2], texts[1::2], strict=True)],
    }


def _sharegpt(found: Conversation, row_id: str) -> dict[str, Any]:
    conversations = [_sharegpt_turn(message, row_id) for message in _turns(found)]
    speakers = [turn["from"] for turn in conversations]
    if ("observation", "observation") in pairwise(speakers):
        raise _lossy("sharegpt", "several tool results in a row", row_id)
    return {"conversations": conversations, "system": found.system, "tools": encode(found.tools) if found.tools else ""}


def _sharegpt_turn(message: Message, row_id: str) -> dict[str, str]:
    if message.keys() - {"role", "content", "tool_calls"}:
        raise _lossy("sharegpt", "names, call ids or reasoning", row_id)
    calls = message.get("tool_calls")
    if not calls:
        return {
            "from": {"user": "human", "assistant": "gpt", "tool": "observation"}[message["role"]],
            "value": message["content"],
        }
    if message["content"] or any("id" in call for call in calls):
        raise _lossy("sharegpt", "call ids, or text beside a tool call", row_id)
    functions = [call["function"] for call in calls]
    return {"from": "function_call", "value": encode(functions[0] if len(functions) == 1 else functions)}


def _turns(found: Conversation) -> list[Message]:
    return found.messages[1:] if found.messages[0]["role"] == "system" else found.messages


def _lossy(output: str, what: str, row_id: str) -> DataError:
    return DataError(
        f"format {output!r} cannot hold this row without loss",
        where=f"row {row_id}" if row_id else "",
        why=f"it has {what}",
        fix="write the selection as messages",
        code="E420",
    )


def jsonl_bytes(rows: list[dict[str, Any]]) -> bytes:
    """The rows as JSON Lines in UTF-8."""
    return "".join(encode(row) + "\n" for row in rows).encode()
