"""One source row to one conversation: roles, tools and texts in one shape, or the reason why not.

The shape is a list of chat messages {"role": system|user|assistant|tool, "content", optional "tool_calls",
"tool_call_id", "name", "reasoning_content", "thinking"}. Role names of ShareGPT and FastChat, LLaMA-Factory's
`function_call` and `observation` turns, OpenAI `tool_calls` and content parts are mapped to it (reference/ux.md 1.1 to
1.3). Nothing here knows files or Arrow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.data.formats import Format
from engine.data.rows import DECODER, BadRow, bad_row, check_depth, kind_of

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}
_EXTRAS = ("tool_call_id", "name", "reasoning_content", "thinking")

Message = dict[str, Any]


class Conversation(NamedTuple):
    """A usable row. `prompt`: all before the last assistant message as text; `turns`: number of user messages."""

    system: str
    prompt: str
    response: str
    turns: int
    messages: list[Message]
    tools: list[Any] | None


def to_conversation(value: Mapping[str, Any], fmt: Format) -> Conversation | BadRow:
    """Reads one row in the given format.

    Returns:
        The conversation, or a BadRow (as a value) with one of no_response, empty_response, empty_prompt,
        wrong_role_order, wrong_type, missing_column.
    """
    try:
        if "messages" in fmt.columns:
            messages = _chat_messages(value, fmt)
        elif fmt.name == "alpaca":
            messages = _alpaca_messages(value, fmt)
        else:
            messages = _pair_messages(value, fmt)
        messages = _with_system(messages, _text(value, fmt.columns.get("system")))
        tools = _tools(value.get(fmt.columns["tools"])) if "tools" in fmt.columns else None
        return _conversation(messages, tools)
    except BadRow as bad:
        return bad


def _chat_messages(value: Mapping[str, Any], fmt: Format) -> list[Message]:
    items = _column(value, fmt.columns["messages"])
    if isinstance(items, str):
        items = _parsed(items, fmt.columns["messages"])
    return _messages(items, fmt.columns["messages"])


def _alpaca_messages(value: Mapping[str, Any], fmt: Format) -> list[Message]:
    _column(value, fmt.columns["prompt"])
    _column(value, fmt.columns["response"])
    instruction, query = _text(value, fmt.columns["prompt"]), _text(value, fmt.columns.get("query"))
    prompt = f"{instruction}\n{query}" if instruction and query else instruction or query
    asked = {"role": "user", "content": prompt}, {"role": "assistant", "content": _text(value, fmt.columns["response"])}
    return [*_history(value, fmt.columns["history"]), *asked] if "history" in fmt.columns else list(asked)


def _history(value: Mapping[str, Any], column: str) -> list[Message]:
    history = value.get(column)
    if not isinstance(history, (list, type(None))):
        raise BadRow("wrong_type", f"column {column} holds {kind_of(history)}, not a list of turns")
    messages: list[Message] = []
    for pair in history or []:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise BadRow("wrong_type", f"column {column} is not a list of [user, assistant] texts")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return messages


def _pair_messages(value: Mapping[str, Any], fmt: Format) -> list[Message]:
    messages: list[Message] = []
    for key, role in (("prompt", "user"), ("response", "assistant")):
        column = fmt.columns[key]
        item = _column(value, column)
        messages += (
            _messages(item, column) if isinstance(item, list) else [{"role": role, "content": _text(value, column)}]
        )
    return messages


def _column(value: Mapping[str, Any], column: str) -> Any:
    if column not in value:
        raise BadRow("missing_column", f"the row has no column {column}")
    return value[column]


def _text(value: Mapping[str, Any], column: str | None) -> str:
    item = value.get(column) if column else None
    if item is None:
        return ""
    if not isinstance(item, str):
        raise BadRow("wrong_type", f"column {column} holds {kind_of(item)}, not text")
    return item


def _parsed(text: str, what: str) -> Any:
    try:
        value = DECODER.decode(text)
        check_depth(value)
    except (BadRow, ValueError, RecursionError) as error:
        raise BadRow("wrong_type", f"{what} is text but not JSON: {bad_row(error).detail}") from error
    return value


def _messages(items: Any, column: str) -> list[Message]:
    if not isinstance(items, list):
        raise BadRow("wrong_type", f"column {column} holds {kind_of(items)}, not a list of messages")
    return [_message(item, f"{column}[{k}]") for k, item in enumerate(items)]


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, dict):
        raise BadRow("wrong_type", f"{place} is {kind_of(item)}, not a message")
    said, content = item.get("role"), item.get("content")
    if said is None:
        said, content = item.get("from"), item.get("value")
    role = _ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise BadRow("wrong_type", f"{place} has the unknown role {said!r}"[:200])
    if said == "function_call":
        calls = _parsed(content, place) if isinstance(content, str) else content
        return {"role": role, "content": "", "tool_calls": _calls(calls, place)}
    message: Message = {"role": role, "content": _content(content, role, place)}
    calls = item.get("tool_calls") or item.get("function_call")
    if calls:
        message["tool_calls"] = _calls(calls, place)
    elif message["content"] is None:
        message["content"] = ""
    for key in _EXTRAS:
        if isinstance(item.get(key), str) and item[key]:
            message[key] = item[key]
    return message


def _content(content: Any, role: str, place: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        texts = [part.get("text") for part in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(texts)
    if role == "tool":  # a result given as an object instead of its text
        return json.dumps(content, ensure_ascii=False)
    raise BadRow("wrong_type", f"{place} has content that is neither text nor text parts")


def _calls(calls: Any, place: str) -> list[Message]:
    """OpenAI form of one call or a list of calls; arguments given as JSON text become objects."""
    result = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function") or call if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow("wrong_type", f"{place} has a tool call without a function name")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = _arguments(arguments)
        made: Message = {"id": call["id"]} if isinstance(call.get("id"), str) and call["id"] else {}
        made["type"] = "function"
        made["function"] = {"name": function["name"], "arguments": {} if arguments is None else arguments}
        result.append(made)
    return result


def _arguments(text: str) -> Any:
    """The object behind JSON text; text that is no JSON object stays as the model wrote it."""
    try:
        value = _parsed(text, "arguments")
    except BadRow:
        return text
    return value if isinstance(value, dict) else text


def _tools(tools: Any) -> list[Any] | None:
    if isinstance(tools, str) and tools.strip():
        tools = _parsed(tools, "tools")
    if not tools or (isinstance(tools, str) and not tools.strip()):
        return None
    if isinstance(tools, dict):
        tools = [tools]
    if not isinstance(tools, list):
        raise BadRow("wrong_type", f"tools is {kind_of(tools)}, not a list")
    return tools


def _with_system(messages: list[Message], system: str) -> list[Message]:
    if not system.strip():
        return messages
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"] != system:
            raise BadRow("wrong_role_order", "a system column and a different system message")
        return messages
    return [{"role": "system", "content": system}, *messages]


def _conversation(messages: list[Message], tools: list[Any] | None) -> Conversation:
    if not messages or messages[-1]["role"] != "assistant":
        last = f"the last message is from {messages[-1]['role']}" if messages else "there are no messages"
        raise BadRow("no_response", last)
    system = messages[0]["content"] or "" if messages[0]["role"] == "system" else ""
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    _check_order(turns)
    prompt, response = prompt_and_response(turns)
    users = [message["role"] for message in turns].count("user")  # the last one is an answer
    return Conversation(system, prompt, response, users, messages, tools)


def prompt_and_response(messages: list[Message]) -> tuple[str, str]:
    """The last message as text, and all before it: one message as it is, several as a line of role and text each."""
    last = _spoken(messages[-1])
    if len(messages) == 2:
        return messages[0]["content"], last
    return "\n".join(f"{message['role']}: {_spoken(message)}" for message in messages[:-1]), last


def split_turns(messages: list[Message]) -> list[tuple[str, str]]:
    """(prompt, response) of every turn: a user message, what follows up to the answer, and the answer.

    Args:
        messages: a row's `messages`, parsed; a system message belongs to no turn.
    """
    starts = [k for k, message in enumerate(messages) if message["role"] == "user"]
    return [
        prompt_and_response(messages[start:end])
        for start, end in zip(starts, [*starts[1:], len(messages)], strict=True)
    ]


# Who may speak after whom; "call" is an assistant message with tool calls.
_NEXT = {"start": ("user",), "user": ("assistant", "call"), "assistant": ("user",), "call": ("tool",)}
_NEXT["tool"] = ("tool", "assistant", "call")


def _check_order(turns: list[Message]) -> None:
    before = "start"
    for k, message in enumerate(turns):
        now = "call" if "tool_calls" in message else message["role"]
        if now not in _NEXT[before]:
            raise BadRow("wrong_role_order", f"turn {k + 1} is from {message['role']} after {before}")
        if now in ("user", "assistant") and not (message["content"] and message["content"].strip()):
            reason = "empty_prompt" if now == "user" else "empty_response"
            raise BadRow(reason, f"turn {k + 1} of {now} is empty")
        before = now


def _spoken(message: Message) -> str:
    """The text of a message; tool calls follow as one line of JSON each."""
    content = message["content"] or ""
    if "tool_calls" not in message:
        return content
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message["tool_calls"]]
    return "\n".join([content, *calls] if content else calls)
