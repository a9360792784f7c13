"""Detection of formats and the meaning of rows in each."""

from __future__ import annotations

from typing import Any

import pytest

from engine.data.conversations import Conversation, to_conversation
from engine.data.formats import Format, common_format, detect, training_columns
from engine.data.rows import BadRow
from engine.errors import ConfigError, DataError

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def convert(value: dict[str, Any], columns: dict[str, str] | None = None) -> Conversation:
    found = to_conversation(value, detect([value], columns))
    assert isinstance(found, Conversation), found
    return found


@pytest.mark.parametrize(
    ("row", "columns", "phrase", "native"),
    [
        ({"messages": [Q, A], "prompt": "x", "completion": "y"}, {}, "messages (messages.role/content)", True),
        ({"messages": [Q, A], "tools": []}, {}, "messages (messages.role/content, tools)", True),
        ({"messages": [Q, A], "system": "s"}, {}, "messages (messages.role/content, system)", False),
        ({"conversations": [{"from": "human", "value": "q"}]}, {}, "sharegpt (conversations.from/value)", True),
        ({"conversations": [Q, A]}, {}, "messages (conversations.role/content)", False),
        ({"messages": '[{"from": "human", "value": "q"}]'}, {}, "sharegpt (messages.from/value)", False),
        ({"instruction": "q", "input": "", "output": "a"}, {}, "alpaca (instruction, input, output)", True),
        ({"instruction": "q", "context": "", "response": "a"}, {}, "alpaca (instruction, context, response)", False),
        (
            {"instruction": "q", "output": "a", "response": "b"},
            {"response": "response"},
            "alpaca (instruction, response)",
            False,
        ),
        (
            {"prompt": "q", "completion": "a", "question": 1, "answer": 2},
            {},
            "prompt-completion (prompt, completion)",
            True,
        ),
        ({"question": "q", "answer": "a"}, {}, "prompt-completion (question, answer)", False),
        (
            {"question": "q", "response": "a", "system_prompt": "s"},
            {},
            "prompt-completion (question, response, system_prompt)",
            False,
        ),
        ({"q": "q", "a": "a", "messages": [Q, A]}, {"prompt": "q", "response": "a"}, "prompt-completion (q, a)", False),
        ({"q": "q", "x": "", "a": "a"}, {"prompt": "q", "query": "x", "response": "a"}, "alpaca (q, x, a)", False),
        (
            {"chat": [Q, A], "instruction": "q", "output": "a"},
            {"messages": "chat"},
            "messages (chat.role/content)",
            False,
        ),
        ({"instruction": "q", "output": "a", "set": "s"}, {"source": "set"}, "alpaca (instruction, output)", True),
    ],
)
def test_detect(row: dict[str, Any], columns: dict[str, str], phrase: str, native: bool) -> None:
    found = detect([row] * 3, columns)
    assert found.describe() == phrase
    assert found.native == native
    assert training_columns(found) == list(found.columns.values())


def test_detect_tolerates_a_minority_of_odd_rows() -> None:
    good = {"instruction": "q", "output": "a"}
    assert detect([{"x": 1}, good, good, {"instruction": None}]).name == "alpaca"
    with pytest.raises(DataError):
        detect([{"x": 1}, {"x": 1}, good])


def test_format_override() -> None:
    row = {"messages": [Q, A], "prompt": "q", "completion": "a"}
    assert detect([row], name="prompt-completion").name == "prompt-completion"
    with pytest.raises(DataError, match="E405") as caught:
        detect([row], name="alpaca")
    assert "alpaca" in caught.value.why


@pytest.mark.parametrize(
    ("row", "columns", "why"),
    [
        ({"text": "x"}, {}, "plain text"),
        ({"chosen": "x", "rejected": "y"}, {}, "preference pairs"),
        ({"id": 1, "prompt": "x"}, {}, "columns: id, prompt"),
        ({"conversations": "x"}, {}, "columns: conversations"),
        ({"prompt": "x", "completion": "y"}, {"response": "z"}, "'z' is not in the data"),
        ({"prompt": "x", "completion": "y"}, {"system": "z"}, "'z' is not in the data"),
    ],
)
def test_unknown_format_says_why(row: dict[str, Any], columns: dict[str, str], why: str) -> None:
    with pytest.raises(DataError, match="E405") as caught:
        detect([row], columns)
    assert why in caught.value.why and caught.value.fix


def test_bad_mapping_key() -> None:
    with pytest.raises(ConfigError, match="E230"):
        detect([{}], {"promt": "x"})
    with pytest.raises(ConfigError, match="E230"):
        detect([{}], name="chatml")


def test_common_format() -> None:
    one, two = Format("messages", {"messages": "messages"}), Format("messages", {"messages": "chat"})
    assert common_format([one, one]) == one
    assert common_format([one, two]) is None


def test_alpaca() -> None:
    found = convert({"instruction": "q", "input": "in", "output": "a", "system": "s", "history": [["h1", "h2"]]})
    assert found.messages == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "h1"},
        {"role": "assistant", "content": "h2"},
        {"role": "user", "content": "q\nin"},
        {"role": "assistant", "content": "a"},
    ]
    assert found[:4] == ("s", "user: h1\nassistant: h2\nuser: q\nin", "a", 2)
    assert convert({"instruction": "q", "input": None, "output": "a", "history": None}).prompt == "q"
    assert convert({"instruction": "", "input": "in", "output": "a"}).prompt == "in"


def test_sharegpt_with_tools() -> None:
    turns = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "42"},
        {"from": "gpt", "value": "a"},
    ]
    found = convert({"conversations": turns, "tools": '[{"name": "f"}]'})
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert found.messages[2] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert [message["role"] for message in found.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert found.tools == [{"name": "f"}] and found.system == "s" and found.turns == 1
    assert found.prompt == 'user: q\nassistant: {"name": "f", "arguments": {"x": 1}}\ntool: 42'


def test_row_system_column_joins_the_messages() -> None:
    chat = [{"from": "user", "value": "q"}, {"from": "chatgpt", "value": "a"}]
    assert convert({"conversations": chat, "system": "s"}).messages[0] == {"role": "system", "content": "s"}
    assert convert({"conversations": chat, "system": "", "tools": " "}).messages == [Q, A]


def test_openai_messages() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"b": 1, "a": 2}'}}
    messages = [
        {"role": "developer", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "!"}], "name": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": {"ok": True}},
        {"role": "assistant", "content": "a", "tool_calls": None, "reasoning_content": "because"},
    ]
    found = convert({"messages": messages, "tools": {"name": "f"}})
    assert found.messages[0] == {"role": "system", "content": "s"}
    assert found.messages[1] == {"role": "user", "content": "q!"}
    assert found.messages[2]["content"] is None
    assert found.messages[2]["tool_calls"][0]["function"]["arguments"] == {"b": 1, "a": 2}
    assert list(found.messages[2]["tool_calls"][0]["function"]["arguments"]) == ["b", "a"]
    assert found.messages[3] == {"role": "tool", "content": '{"ok": true}', "tool_call_id": "c1"}
    assert found.messages[4] == {"role": "assistant", "content": "a", "reasoning_content": "because"}
    assert found.tools == [{"name": "f"}]


def test_a_call_may_be_the_response() -> None:
    call = {"name": "f", "arguments": {}}
    found = convert({"messages": [Q, {"role": "assistant", "content": None, "tool_calls": [call]}]})
    assert found.response == '{"name": "f", "arguments": {}}' and found.prompt == "q"


def test_prompt_completion() -> None:
    assert convert({"prompt": "q", "completion": "a"}).messages == [Q, A]
    assert convert({"prompt": [Q], "completion": [A]}).messages == [Q, A]
    assert convert({"prompt": [Q, A, Q], "completion": [A]}).turns == 2
    assert convert({"prompt": "q", "completion": [A], "system": "s"}).system == "s"


def test_same_conversation_from_every_format() -> None:
    rows = [
        {"messages": [Q, A]},
        {"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "input": "", "output": "a"},
        {"prompt": "q", "completion": "a"},
        {"question": "q", "answer": "a"},
    ]
    assert all(convert(row) == convert(rows[0]) for row in rows)


CHAT, ALPACA = (
    Format("messages", {"messages": "messages"}),
    Format("alpaca", {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}),
)


@pytest.mark.parametrize(
    ("row", "fmt", "reason"),
    [
        ({"messages": []}, CHAT, "no_response"),
        ({"messages": [Q]}, CHAT, "no_response"),
        ({"messages": [Q, A, Q]}, CHAT, "no_response"),
        ({"messages": [Q, {"role": "assistant", "content": " \n"}]}, CHAT, "empty_response"),
        ({"messages": [Q, {"role": "assistant", "content": None}]}, CHAT, "empty_response"),
        ({"messages": [{"role": "user", "content": ""}, A]}, CHAT, "empty_prompt"),
        ({"messages": [A]}, CHAT, "wrong_role_order"),
        ({"messages": [Q, Q, A]}, CHAT, "wrong_role_order"),
        ({"messages": [Q, {"role": "tool", "content": "x"}, A]}, CHAT, "wrong_role_order"),
        ({"messages": [Q, {"role": "system", "content": "x"}, Q, A]}, CHAT, "wrong_role_order"),
        ({"messages": [Q, {"role": "assistant", "tool_calls": [{"name": "f"}]}, A]}, CHAT, "wrong_role_order"),
        ({"messages": [Q, {"role": "assistant", "tool_calls": [{"id": "f"}]}, A]}, CHAT, "wrong_type"),
        ({"messages": [{"role": "alien", "content": "x"}, A]}, CHAT, "wrong_type"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, A]}, CHAT, "wrong_type"),
        ({"messages": [{"role": "user", "content": 3}, A]}, CHAT, "wrong_type"),
        ({"messages": ["x"]}, CHAT, "wrong_type"),
        ({"messages": None}, CHAT, "wrong_type"),
        ({"messages": "[" * 100_000}, CHAT, "wrong_type"),
        ({}, CHAT, "missing_column"),
        ({"instruction": "q"}, ALPACA, "missing_column"),
        ({"instruction": "q", "output": ""}, ALPACA, "empty_response"),
        ({"instruction": "q", "output": None}, ALPACA, "empty_response"),
        ({"instruction": " ", "output": "a"}, ALPACA, "empty_prompt"),
        ({"instruction": "q", "output": ["a", "b"]}, ALPACA, "wrong_type"),
        ({"instruction": 3, "output": "a"}, ALPACA, "wrong_type"),
        ({"instruction": "q", "output": "a", "history": [["only one"]]}, ALPACA, "wrong_type"),
        ({"instruction": "q", "output": "a", "history": "text"}, ALPACA, "wrong_type"),
        ({"instruction": "q", "output": "a", "history": 7}, ALPACA, "wrong_type"),
    ],
)
def test_reject_reasons(row: dict[str, Any], fmt: Format, reason: str) -> None:
    found = to_conversation(row, fmt)
    assert isinstance(found, BadRow)
    assert found.reason == reason and found.detail
