"""Small pools with everything a trainer may stumble over, a finished run over each, and the rows as chat messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.cli import run_cli
from engine.data.conversations import Conversation, to_conversation
from engine.data.formats import Format, detect
from engine.schema import canonical_json, conversation_id
from tests.conftest import write_jsonl

Row = dict[str, Any]


def call(name: str, arguments: dict[str, Any], **extra: str) -> Row:
    return {**extra, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool(name: str, parameter: str) -> Row:
    return {"type": "function", "function": {"name": name, "parameters": {"z": 1, parameter: {"type": "string"}}}}


def chat(k: int, system: bool = False, turns: int = 1) -> list[Row]:
    start = [{"role": "system", "content": f"Système {k} 你好"}] if system else []
    pairs = [
        [{"role": "user", "content": f"q{k}.{t}\n<b>|"}, {"role": "assistant", "content": f'a{k}.{t} "é" ' + "x" * k}]
        for t in range(turns)
    ]
    return [*start, *(message for pair in pairs for message in pair)]


def tool_chat(k: int, calls: list[Row], results: int = 1) -> list[Row]:
    asked, answered = chat(k)
    spoken = {"role": "assistant", "content": "", "tool_calls": calls}
    return [asked, spoken, *({"role": "tool", "content": f"r{k}.{r}"} for r in range(results)), answered]


# multi-turn rows, rows with a system prompt, and tool calls whose arguments have different keys and types
PLAIN = [{"messages": chat(k, system=k % 2 == 0, turns=1 + k % 3)} for k in range(8)]
TOOLS = [
    {"messages": tool_chat(20, [call("f", {"b": 1, "a": [1, None]})]), "tools": [tool("f", "b")]},
    {"messages": tool_chat(21, [call("g", {"x": "1"})]), "tools": [tool("g", "x")]},
]
DEEP_TOOLS = [
    *TOOLS,
    {"messages": tool_chat(22, [call("f", {}, id="1"), call("g", {"x": {}}, id="2")], 2), "tools": [tool("f", "c")]},
]
SHORT_TOOLS = {
    "messages": [*TOOLS[0]["messages"][:3], {"role": "assistant", "content": "."}],
    "tools": TOOLS[0]["tools"],
}
ALPACA = [
    {"instruction": f"do {k} 你好", "input": "" if k % 2 else f"with {k}", "output": f'done {k} "é"'} for k in range(8)
]
SHAREGPT = [
    {"conversations": [{"from": ("human", "gpt")[t % 2], "value": f"turn {k}.{t} é"} for t in range(2 + 2 * (k % 2))]}
    for k in range(8)
]
PAIRS = [{"prompt": f"Question {k} 你好\n", "completion": f"Answer {k}."} for k in range(8)]
# name -> rows of the input, output.format
CASES: dict[str, tuple[list[Row], str]] = {
    "messages with tools, as they came": ([*PLAIN, *DEEP_TOOLS], "source"),
    "messages": ([*PLAIN, *DEEP_TOOLS], "messages"),
    "plain messages": (PLAIN, "messages"),
    "prompt-completion": ([*PLAIN, *DEEP_TOOLS], "prompt-completion"),
    "alpaca": (PLAIN, "alpaca"),
    "sharegpt": ([*PLAIN, *TOOLS], "sharegpt"),
    "alpaca, as it came": (ALPACA, "source"),
    "sharegpt, as it came": (SHAREGPT, "source"),
    "text pairs, as they came": (PAIRS, "source"),
    "alpaca beside a row with tools": ([*PLAIN, SHORT_TOOLS], "alpaca"),
}


def make_run(folder: Path, case: str, *overrides: str) -> Path:
    """A finished run that selects most rows of a case by their length."""
    rows, output = CASES[case]
    pool = write_jsonl(folder / "pool.jsonl", rows)
    out = folder / "out"
    line = ["run", "longest", str(pool), f"out={out}", "budget=0.7", f"output.format={output}", *overrides]
    assert run_cli([*line, "--local", "--quiet"]) == 0
    return out


def conversations(case: str) -> dict[str, Conversation]:
    """Id -> conversation of every row of a case, read from the source."""
    rows, _ = CASES[case]
    fmt: Format = detect(rows)
    found = [to_conversation(row, fmt) for row in rows]
    assert all(isinstance(one, Conversation) for one in found)
    return {identity(one): one for one in found if isinstance(one, Conversation)}


def identity(found: Conversation) -> str:
    tools = canonical_json(found.tools) if found.tools else ""
    return conversation_id(canonical_json(found.messages), tools)


def chosen(case: str, ids: Path) -> list[Conversation]:
    """The conversations of an ids file, in the order of the source, as data files are."""
    wanted = set(ids.read_text().split())
    return [one for key, one in conversations(case).items() if key in wanted]


def text(value: Any) -> str:
    """JSON with the keys in their order: equal texts are equal byte for byte."""
    return json.dumps(value, ensure_ascii=False)
