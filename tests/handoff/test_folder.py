"""handoff/ of real runs in every output format: what each trainer makes of it is the source, and the baselines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from engine.baselines import SAME_CHARS, SAME_ROWS, SETS
from engine.cli import run_cli
from engine.data.conversations import Conversation
from engine.data.formats import Format
from engine.handoff.llamafactory import llamafactory_row
from engine.handoff.trainers import AXOLOTL, LLAMAFACTORY, TRL, reading
from engine.schema import canonical_json, id_words, seeded_hash
from tests.handoff import loaders
from tests.handoff.pools import CASES, PAIRS, SHAREGPT, TOOLS, chosen, conversations, make_run, text

WITH_TOOLS = "messages with tools, as they came"


@pytest.fixture(scope="module", params=list(CASES))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A finished run of each case, moved after it ended: nothing in it may depend on where it was made."""
    folder = tmp_path_factory.mktemp("run")
    out = make_run(folder, request.param)
    moved = folder / "elsewhere" / "out"
    shutil.copytree(out, moved)
    shutil.rmtree(out)
    return request.param, moved


def places(out: Path) -> dict[str, tuple[Path, Path]]:
    """Set -> its configs' folder, its ids."""
    found = {name: (out / "handoff" / name, out / "handoff" / name / "ids.txt") for name in SETS[1:]}
    return {"selected": (out / "handoff", out / "ids.txt"), **found}


def as_llamafactory(found: Conversation) -> dict[str, Any]:
    """What LLaMA-Factory's own reader of OpenAI messages makes of a conversation."""
    turns: list[dict[str, str]] = []
    for message in found.messages[1:] if found.system else found.messages:
        role, content = message["role"], message["content"]
        if message.get("tool_calls"):
            role, content = "function", text([one["function"] for one in message["tool_calls"]])
        if role == "tool" and turns[-1]["role"] == "observation":
            turns[-1]["content"] += f"\n</tool_response>\n<tool_response>\n{content}"
            continue
        turns.append({"role": {"tool": "observation"}.get(role, role), "content": content})
    return {"system": found.system, "tools": text(found.tools) if found.tools else "", "turns": turns}


def opened(row: dict[str, Any]) -> Any:
    """With the JSON of tools and calls read, in the order of its keys; one call alone is a list of one."""

    def said(turn: dict[str, str]) -> str:
        if turn["role"] != "function":
            return turn["content"]
        calls = json.loads(turn["content"])
        return text(calls if isinstance(calls, list) else [calls])

    return (
        row["system"],
        text(json.loads(row["tools"] or "null")),
        [(turn["role"], said(turn)) for turn in row["turns"]],
    )


def test_llamafactory_reads_the_source(run: tuple[str, Path], tmp_path: Path) -> None:
    case, out = run
    for folder, ids in places(out).values():
        rows = loaders.llamafactory(folder / "llamafactory_sft.yaml", out, tmp_path)
        assert [opened(row) for row in rows] == [opened(as_llamafactory(one)) for one in chosen(case, ids)]


def test_axolotl_reads_the_source(run: tuple[str, Path], tmp_path: Path) -> None:
    case, out = run
    for folder, ids in places(out).values():
        rows = loaders.axolotl(folder / "axolotl_sft.yaml", out, tmp_path)
        expected = chosen(case, ids)
        if "turns" in rows[0]:
            assert rows == [as_llamafactory(one) for one in expected]
            continue
        assert [row["tools"] for row in rows] == [one.tools for one in expected]
        assert [text(row["tools"]) for row in rows] == [text(one.tools) for one in expected]
        assert [row["messages"] for row in rows] == [one.messages for one in expected]


def test_load_dataset_gives_the_training_rows(run: tuple[str, Path], tmp_path: Path) -> None:
    """By the card's configs, without a network: only training columns, in data/ and in both baselines."""
    import datasets

    case, out = run
    names = pq.read_schema(next((out / "data").iterdir())).names
    for name in ("default", *SETS[1:]):
        found = datasets.load_dataset(str(out), name, split="train", cache_dir=str(tmp_path))
        ids = places(out)["selected" if name == "default" else name][1]
        assert len(found) == len(ids.read_text().split())
        assert name != "default" or found.column_names == names
    if case == WITH_TOOLS:  # byte for byte
        kept = {one.messages[-1]["content"] for one in chosen(case, out / "ids.txt")}
        source = [row for row in CASES[case][0] if row["messages"][-1]["content"] in kept]
        rows = list(datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path)))
        assert [text(row["messages"]) for row in rows] == [text(row["messages"]) for row in source]
        assert [text(row["tools"]) for row in rows] == [text(row.get("tools")) for row in source]


def test_baselines(run: tuple[str, Path]) -> None:
    case, out = run
    sizes = {key: sizes_of(one) for key, one in conversations(case).items()}
    ids = {name: path.read_text().split() for name, (_, path) in places(out).items()}
    assert len(ids[SAME_ROWS]) == len(ids["selected"])
    wanted, got = (sum(sizes[key] for key in ids[name]) for name in ("selected", SAME_CHARS))
    assert got >= wanted > got - sizes[ids[SAME_CHARS][-1]]
    drawn = np.array(list(sizes))[np.argsort(seeded_hash(id_words(list(sizes)), 0, "random"))].tolist()
    assert all(ids[name] == drawn[: len(ids[name])] for name in SETS[1:])  # one draw, by hash of seed and id


def sizes_of(found: Conversation) -> int:
    tools = canonical_json(found.tools) if found.tools else ""
    return sum(map(len, (found.system, found.prompt, found.response, tools)))


def test_seed_decides_the_baselines(tmp_path: Path) -> None:
    drawn = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        out = make_run(tmp_path / name, "plain messages", f"seed={seed}")
        drawn.append([places(out)[one][1].read_text() for one in SETS[1:]])
    assert drawn[0] == drawn[1] and drawn[0] != drawn[2]


def test_a_baseline_that_the_format_cannot_hold(tmp_path: Path) -> None:
    """The selection fits alpaca, a random row has tools: the run ends well, and all sets are given as copies."""
    case = "alpaca beside a row with tools"
    out = make_run(tmp_path, case, "budget=8")
    assert any(one.tools for one in chosen(case, out / "handoff" / SAME_ROWS / "ids.txt"))
    assert not any(one.tools for one in chosen(case, out / "ids.txt"))
    assert pq.read_schema(next((out / "data").iterdir())).names[0] == "instruction"
    for name, (folder, ids) in places(out).items():
        (source,) = loaders.config(folder / "trl_sft.yaml")["datasets"]
        assert source["data_files"] == f"{folder.relative_to(out)}/messages/*.parquet", name
        assert len(pq.read_table(folder / "messages")) == len(ids.read_text().split())


@pytest.mark.parametrize("container", ["parquet", "jsonl"])
@pytest.mark.parametrize("output", ["source", "messages", "prompt-completion", "sharegpt", "alpaca"])
def test_export_of_a_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str, container: str, exported: dict[str, Path]
) -> None:
    import datasets

    out = exported["plain" if output == "alpaca" else "tools"]
    case = "plain messages" if output == "alpaca" else "sharegpt"
    to = tmp_path / "to"
    line = ["export", str(out), str(to), "--baseline", SAME_ROWS, "--format", output, "--container", container]
    assert run_cli(line) == 0
    ids = out / "handoff" / SAME_ROWS / "ids.txt"
    expected = chosen(case, ids)
    assert capsys.readouterr().out == f"wrote {len(expected)} rows to {to}\n"
    rows = list(datasets.load_dataset(str(to), split="train", cache_dir=str(tmp_path / "cache")))
    if output == "prompt-completion":
        rows = [{**row, "messages": [*row["prompt"], *row["completion"]]} for row in rows]
    if "messages" in rows[0]:
        assert [text(row["messages"]) for row in rows] == [text(one.messages) for one in expected]
        assert [text(row.get("tools")) for row in rows] == [text(one.tools) for one in expected]
    else:
        last = "output" if output == "alpaca" else "conversations"
        texts = [row[last] if output == "alpaca" else row[last][-1]["value"] for row in rows]
        assert texts == [one.response for one in expected]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    cases = {"plain": "plain messages", "tools": "sharegpt"}
    return {name: make_run(tmp_path_factory.mktemp(name), case) for name, case in cases.items()}


def test_export_refuses_an_unknown_or_missing_baseline(
    exported: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = exported["plain"]
    assert run_cli(["export", str(out), str(tmp_path / "x"), "--baseline", "longest"]) == 2
    assert "error E235" in capsys.readouterr().err
    old = tmp_path / "old"
    shutil.copytree(out, old)
    record = json.loads((old / "run.json").read_text())
    del record["steps"][SAME_ROWS]
    (old / "run.json").write_text(json.dumps(record))
    assert run_cli(["export", str(old), str(tmp_path / "x"), "--baseline", SAME_ROWS]) == 4
    assert "error E445" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_what_a_run_no_longer_needs_is_gone(tmp_path: Path) -> None:
    """The same folder after a change of format: no copy of before is left for a loader to find."""
    out = make_run(tmp_path, "plain messages", "output.format=alpaca")
    assert list((out / "handoff" / "messages").iterdir())
    out = make_run(tmp_path, "plain messages", "output.format=messages", "output.name=a, b")
    assert not list((out / "handoff" / "messages").iterdir())
    assert set(json.loads((out / "dataset_info.json").read_text())) == {"a_b", f"a_b_{SAME_ROWS}", f"a_b_{SAME_CHARS}"}


MESSAGES = Format("messages", {"messages": "messages", "tools": "tools"})
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHARE = Format("sharegpt", {"messages": "conversations", "system": "system", "tools": "tools"})
SPOKEN = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
ODD = [{"from": "user", "value": "q"}, {"from": "gpt", "value": "a"}]
PAIR = Format("prompt-completion", {"prompt": "prompt", "response": "completion"})
ALPACA = Format("alpaca", {"prompt": "instruction", "query": "input", "response": "output", "system": "system"})


@pytest.mark.parametrize(
    ("trainer", "fmt", "row", "kind"),
    [
        (TRL, MESSAGES, {"messages": CHAT, "tools": None}, "messages"),
        (TRL, MESSAGES, {"messages": CHAT, "tools": ""}, ""),  # json.loads("") stops the trainer
        (TRL, MESSAGES, {"messages": [{"role": "developer", "content": "s"}, *CHAT]}, ""),
        (TRL, MESSAGES, {"messages": json.dumps(CHAT)}, ""),
        (TRL, PAIR, {"prompt": "p", "completion": "c"}, "text"),
        (TRL, PAIR, {"prompt": CHAT[:1], "completion": CHAT[1:]}, "messages"),
        (TRL, SHARE, {"conversations": SPOKEN}, ""),  # keys are renamed, the role "human" stays
        (TRL, ALPACA, {"instruction": "i", "output": "o"}, ""),
        (LLAMAFACTORY, MESSAGES, {"messages": CHAT}, "messages"),
        (LLAMAFACTORY, MESSAGES, {"messages": TOOLS[0]["messages"]}, ""),
        (LLAMAFACTORY, MESSAGES, {"messages": [{**CHAT[0], "name": "x"}, CHAT[1]]}, ""),
        (LLAMAFACTORY, SHARE, {"conversations": SPOKEN, "system": "", "tools": ""}, "sharegpt"),
        (LLAMAFACTORY, SHARE, {"conversations": ODD}, ""),  # the row would be dropped
        (LLAMAFACTORY, SHARE, {"conversations": SPOKEN[:1]}, ""),
        (LLAMAFACTORY, PAIR, PAIRS[0], ""),
        (AXOLOTL, SHARE, {"conversations": SPOKEN}, "sharegpt"),
        (AXOLOTL, SHARE, {"conversations": SPOKEN, "system": ""}, ""),  # an empty system turn would be added
        (AXOLOTL, SHARE, {"conversations": SPOKEN, "tools": ""}, ""),  # tools must be a list
        (AXOLOTL, MESSAGES, {"messages": CHAT, "tools": "[]"}, ""),
        (AXOLOTL, ALPACA, {"instruction": "i", "output": "o", "system": ""}, "alpaca"),
        (AXOLOTL, ALPACA, {"instruction": "i", "output": "o", "system": "s"}, ""),
        (TRL, Format("messages", {"messages": "chat"}), {"chat": CHAT}, ""),
    ],
)
def test_rules(trainer: str, fmt: Format, row: dict[str, Any], kind: str) -> None:
    assert reading(trainer, fmt, row) == kind


def test_llamafactory_row_joins_results_and_keeps_calls() -> None:
    row = llamafactory_row(
        {"messages": [{"role": "system", "content": "s"}, *TOOLS[0]["messages"]], "tools": [{"n": 1}]}
    )
    assert row["system"] == "s" and json.loads(row["tools"]) == [{"n": 1}]
    assert [turn["from"] for turn in row["conversations"]] == ["human", "function_call", "observation", "gpt"]
    assert json.loads(row["conversations"][1]["value"]) == [{"name": "f", "arguments": {"b": 1, "a": [1, None]}}]
    assert reading(LLAMAFACTORY, SHARE, row) == "sharegpt"
    assert reading(LLAMAFACTORY, SHARE, {**SHAREGPT[0]}) == "sharegpt"
