"""Training rows, lossless tables, the card, and what `datasets` makes of the folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.artifacts import parquet_bytes
from engine.data.card import dataset_card, dataset_info
from engine.data.conversations import Conversation, to_conversation
from engine.data.formats import Format, detect
from engine.data.inputs import resolve_inputs
from engine.data.readers import read_rows
from engine.data.rows import SourceRow
from engine.data.shapes import decode, encode, merge_shapes, shape_schema, table_from_rows
from engine.data.writers import OUTPUT_FORMATS, jsonl_bytes, output_format, training_row
from engine.errors import ConfigError, DataError, StepError

REAL = Path(__file__).resolve().parents[2] / "../shared/data"
CALL = {"type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": [1.5, None]}}}
TOOL_CHAT = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "42"},
    {"role": "assistant", "content": "a"},
]
LONG_CHAT = [{"role": ("user", "assistant")[k % 2], "content": f"turn {k}"} for k in range(4)]


def through_parquet(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows as our decoder and as `datasets` read them back."""
    datasets = pytest.importorskip("datasets")
    table = pq.read_table(pa.BufferReader(parquet_bytes(table_from_rows(rows))))
    return decode(table), list(datasets.Dataset(table))


def near(left: Any, right: Any) -> bool:
    """Equality but for the digits of floats that the ujson inside `datasets` drops (15 decimals are kept)."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(near(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(near(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, float):
        return isinstance(right, float) and math.isclose(left, right, rel_tol=1e-10, abs_tol=1e-300)
    return type(left) is type(right) and left == right


def test_plain_arrow_corrupts_what_we_keep() -> None:
    rows = [{"x": [{"arguments": {"a": 1}}]}, {"x": [{"arguments": {"b": "x"}}]}]
    assert pa.Table.from_pylist(rows).to_pylist() != rows
    ours, theirs = through_parquet(rows)
    assert ours == theirs == rows


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", None, "b"], "string"),
        ([1, None], "int64"),
        ([1.5, -0.0], "double"),
        ([True, False], "bool"),
        ([None, None], "string"),
        ([1, 1.0], "extension<arrow.json>"),
        ([True, 1], "extension<arrow.json>"),
        (["a", 1, None, ["b"]], "extension<arrow.json>"),
        ([{}, {}], "extension<arrow.json>"),
        ([{"a": 1}, {"b": "x"}], "extension<arrow.json>"),
        ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], "extension<arrow.json>"),
        ([{"a": 1}, {"a": None}, None], "struct<a: int64>"),
        ([[], None], "list<element: string>"),
        ([[["a", "b"]], [[]]], "list<element: list<element: string>>"),
        ([[{"role": "user", "content": "q"}]], "list<element: struct<role: string, content: string>>"),
        ([[{"role": "user", "content": "q"}, {"role": "x", "tool_calls": []}]], "list<element: extension<arrow.json>>"),
        ([{"f": {"a": 1}}, {"f": {"a": "1"}}], "struct<f: struct<a: extension<arrow.json>>>"),
        ([2**63 - 1, -(2**63)], "int64"),
        ([2**63], "string"),
        ([{"a": 1}, {"b": 2**70}], "string"),
        ([{"a": 2**70}, {"b": 1}, "x"], "string"),
        ([[1, 2**70], [3]], "list<element: string>"),
        (["a", "b", 3, "2**70"], "extension<arrow.json>"),
    ],
)
def test_types(values: list[Any], kind: str) -> None:
    rows = [{"x": value} for value in values]
    table = table_from_rows(rows)
    assert str(table.schema.field("x").type) == kind
    ours, theirs = through_parquet(rows)
    assert near(ours, rows)
    if "text" not in merge_shapes(rows).keys["x"].kind and 2**70 not in json_numbers(values):
        assert near(theirs, rows)


def json_numbers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    return [n for item in value for n in json_numbers(item)] if isinstance(value, list) else [value]


scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
scalars |= st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
keys = st.sampled_from(["a", "b", "role", "content", "_type", "a.b", "", "é"])
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=10
)
same_keys = st.fixed_dictionaries({"name": scalars, "arguments": st.dictionaries(keys, scalars, max_size=2)})
columns = st.sampled_from([scalars, anything, st.lists(same_keys, max_size=3), st.text(max_size=0), st.integers(0, 3)])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_rows_survive(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(columns, min_size=1, max_size=3))
    rows = data.draw(
        st.lists(st.fixed_dictionaries({f"c{k}": kind for k, kind in enumerate(kinds)}), min_size=1, max_size=5)
    )
    ours, theirs = through_parquet(rows)
    assert near(ours, rows)
    assert ours == rows  # floats too: the bytes in the file are exact
    assert near(theirs, rows)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.fixed_dictionaries({"x": anything, "y": st.lists(anything, max_size=2)}), min_size=2, max_size=8),
    st.integers(1, 3),
)
def test_shards_share_one_schema(rows: list[dict[str, Any]], size: int) -> None:
    shards = [rows[start : start + size] for start in range(0, len(rows), size)]
    shape = None
    for shard in shards:
        shape = merge_shapes(shard, shape)
    assert shape is not None
    schema = shape_schema(shape)
    assert schema == table_from_rows(rows).schema
    table = pa.concat_tables([encode(shard, schema) for shard in shards])
    assert decode(table) == rows


def test_encode_refuses_a_row_of_another_shape() -> None:
    schema = table_from_rows([{"x": {"a": 1}, "y": 1}]).schema
    for row in ({"x": {"a": "1"}, "y": 1}, {"x": {"b": 1}, "y": 1}, {"x": {"a": 1}, "y": 1.0}, {"x": [], "y": 1}):
        with pytest.raises(StepError, match="E112"):
            encode([row], schema)


def test_bytes_are_deterministic() -> None:
    rows = [{"messages": TOOL_CHAT, "tools": [{"name": "f", "parameters": {"k": k}}]} for k in range(100)]
    assert parquet_bytes(table_from_rows(rows)) == parquet_bytes(table_from_rows(json.loads(json.dumps(rows))))
    assert [json.loads(line) for line in jsonl_bytes(rows).splitlines()] == rows


MESSAGES = Format("messages", {"messages": "messages", "tools": "tools"})


def test_source_keeps_only_training_columns_untouched() -> None:
    record = {"messages": TOOL_CHAT, "prompt": "trap", "label": True, "tools": '[{"name": "f"}]'}
    assert training_row(json.dumps(record), MESSAGES, "source") == {"messages": TOOL_CHAT, "tools": '[{"name": "f"}]'}


def test_messages_keep_the_author_s_key_order() -> None:
    record = {"messages": TOOL_CHAT, "tools": [{"name": "f", "description": "d", "args": {"z": 1, "a": 2}}]}
    row = training_row(json.dumps(record), MESSAGES, "messages")
    assert json.dumps(row) == json.dumps(record)


def test_outputs_of_a_plain_chat() -> None:
    record = json.dumps({"messages": [{"role": "system", "content": "s"}, *LONG_CHAT]})
    fmt = Format("messages", {"messages": "messages"})
    assert training_row(record, fmt, "alpaca") == {
        "instruction": "turn 2",
        "input": "",
        "output": "turn 3",
        "system": "s",
        "history": [["turn 0", "turn 1"]],
    }
    sharegpt = training_row(record, fmt, "sharegpt")
    assert [turn["from"] for turn in sharegpt["conversations"]] == ["human", "gpt", "human", "gpt"]
    assert (sharegpt["system"], sharegpt["tools"]) == ("s", "")
    pair = training_row(record, fmt, "prompt-completion")
    assert pair["completion"] == [{"role": "assistant", "content": "turn 3"}] and len(pair["prompt"]) == 4


def test_alpaca_input_survives() -> None:
    fmt = Format("alpaca", {"prompt": "instruction", "query": "context", "response": "response"})
    row = training_row('{"instruction": "q", "context": "in", "response": "a"}', fmt, "alpaca")
    assert (row["instruction"], row["input"], row["output"]) == ("q", "in", "a")


def test_sharegpt_with_tools() -> None:
    row = training_row(json.dumps({"messages": TOOL_CHAT, "tools": [{"name": "f"}]}), MESSAGES, "sharegpt")
    assert [turn["from"] for turn in row["conversations"]] == ["human", "function_call", "observation", "gpt"]
    assert json.loads(row["conversations"][1]["value"]) == CALL["function"]
    assert row["tools"] == '[{"name": "f"}]'


@pytest.mark.parametrize(
    ("chat", "output"),
    [
        (TOOL_CHAT, "alpaca"),
        ([LONG_CHAT[0], LONG_CHAT[1] | {"reasoning_content": "r"}], "alpaca"),
        ([LONG_CHAT[0], LONG_CHAT[1] | {"reasoning_content": "r"}], "sharegpt"),
        ([LONG_CHAT[0], {"role": "assistant", "content": "x", "tool_calls": [CALL]}], "sharegpt"),
        ([LONG_CHAT[0], {"role": "assistant", "content": "", "tool_calls": [CALL | {"id": "1"}]}], "sharegpt"),
        ([*TOOL_CHAT[1:4], TOOL_CHAT[3], TOOL_CHAT[4]], "sharegpt"),
    ],
)
def test_lossy_rows_are_refused(chat: list[Any], output: str) -> None:
    with pytest.raises(DataError, match="E420") as caught:
        training_row(json.dumps({"messages": chat}), MESSAGES, output, "abc")
    assert caught.value.where == "row abc" and "messages" in caught.value.fix


def test_unknown_output() -> None:
    with pytest.raises(ConfigError, match="E231"):
        training_row("{}", MESSAGES, "chatml")


NAMES = [
    "alpaca_52k.parquet",
    "lima_1029.jsonl.gz",
    "evol_instruct_1k_conversations.jsonl.gz",
    "t0_flan_like_sample.parquet",
]
NAMES += [
    "oaast_sft_zh_766.jsonl.gz",
    "llamafactory_glaive_toolcall_en_demo.jsonl.gz",
    "llamafactory_kto_en_demo.jsonl.gz",
]


@pytest.mark.parametrize("name", NAMES)
def test_real_rows_mean_the_same_in_every_format(name: str) -> None:
    if not (REAL / name).exists():
        pytest.skip("the shared data is not here")
    rows = [row for row in read_rows(resolve_inputs(str(REAL / name))[0]) if isinstance(row, SourceRow)][:300]
    source = detect([row.value for row in rows])
    for output in OUTPUT_FORMATS:
        if output == "alpaca" and "toolcall" in name:
            continue
        pairs = [(to_conversation(row.value, source), row.text) for row in rows]
        kept = [(found, text) for found, text in pairs if isinstance(found, Conversation)]
        written = [training_row(text, source, output) for _, text in kept]
        ours, theirs = through_parquet(written)
        names = table_from_rows(written).schema.names
        assert ours == [{name: row.get(name) for name in names} for row in written]
        assert near(theirs, ours)
        target = output_format(source, output, with_tools="tools" in names)
        assert target.native or output == "source"
        for (found, _), row in zip(kept, theirs, strict=True):
            again = to_conversation(row, target)
            assert again == found


def folder(path: Path, rows: list[dict[str, Any]], info: dict[str, Any]) -> None:
    table = table_from_rows(rows)
    (path / "data").mkdir(parents=True)
    (path / "scores").mkdir()
    for k in range(2):
        (path / "data" / f"train-0000{k}-of-00002.parquet").write_bytes(
            parquet_bytes(table.slice(k * len(rows) // 2, len(rows) // 2))
        )
    (path / "scores" / "part-00000.parquet").write_bytes(parquet_bytes(pa.table({"id": ["a"], "score": [0.5]})))
    (path / "README.md").write_text(dataset_card(info), encoding="utf-8")


def test_load_dataset_on_an_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    rows = [
        {"messages": TOOL_CHAT if k % 2 else LONG_CHAT, "tools": [{"name": "f", "parameters": {f"p{k}": k}}]}
        for k in range(10)
    ]
    folder(tmp_path / "out", rows, INFO)
    train = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert list(train) == rows
    scores = datasets.load_dataset(str(tmp_path / "out"), "scores", split="train", cache_dir=str(tmp_path / "cache"))
    assert list(scores) == [{"id": "a", "score": 0.5}]


INFO = {
    "name": 'pool: "x" #1 é',
    "rows": 10,
    "pool_rows": 1000,
    "method": "iterselect",
    "format": "messages",
    "license": "cc-by-4.0",
    "language": ["zh", "en"],
    "facts": {"judge": "a | b <script>", "rounds": 3, "multi\nline": "x\ny"},
    "sources": [("data/[a](b).jsonl", 12, "sha256 00")],
    "charts": {"charts/a.png": "Lengths ![x](y)"},
    "fingerprint": "0123456789abcdef",
}


def test_card() -> None:
    card = dataset_card(INFO)
    _, header, body = card.split("---\n", 2)
    front = yaml.safe_load(header)
    assert front["pretty_name"] == INFO["name"] and front["language"] == ["zh", "en"]
    assert front["size_categories"] == ["n<1K"]
    assert [config["config_name"] for config in front["configs"]] == ["default", "scores"]
    assert "10 of 1,000 rows (1.0 %)" in body
    assert "| judge | a \\| b &lt;script> |" in body and "| multi line | x y |" in body
    assert "](charts/a.png)" in body and "| data/&#91;a&#93;(b).jsonl | 12 | sha256 00 |" in body


HOSTILE = (
    "---\nlicense: mit\n---\n# h\n![i](http://x/y.png) [l](http://x) www.x.y <img src=x> `c` **b** \\[e](f) | $x$ ~~s~~"
)


def test_hostile_text_in_the_card() -> None:
    """Names and paths come from data: no key, link, picture, heading or cell of theirs may appear."""
    from huggingface_hub import DatasetCard

    info = {**INFO, "name": HOSTILE, "facts": {HOSTILE: HOSTILE}, "sources": [(HOSTILE, 1, HOSTILE)], "method": HOSTILE}
    card = DatasetCard(dataset_card(info))
    assert card.data.pretty_name == HOSTILE and card.data.license == "cc-by-4.0" and card.data.language == ["zh", "en"]
    assert [config["config_name"] for config in card.data.configs] == ["default", "scores"]
    body = card.text.replace("![Lengths &#33;&#91;x&#93;(y)](charts/a.png)", "")
    for markup in ("](", "![", "://", "www.", "<img", "**", "~~", "$", "\n---", "\n# h"):
        assert markup not in body, markup
    table = body[body.index("| What") :].split("\n\n")[0].splitlines()
    assert len(table) == 3 and table[2].replace("\\|", "").count("|") == 3


def test_llamafactory_entries() -> None:
    alpaca = output_format(MESSAGES, "alpaca", with_tools=False)
    assert dataset_info("x", alpaca)["x"] == {
        "file_name": "data",
        "formatting": "alpaca",
        "columns": {
            "prompt": "instruction",
            "query": "input",
            "response": "output",
            "system": "system",
            "history": "history",
        },
    }
    sharegpt = dataset_info("x", output_format(MESSAGES, "sharegpt", with_tools=False))["x"]
    assert sharegpt["formatting"] == "sharegpt" and "tags" not in sharegpt
    assert sharegpt["columns"] == {"messages": "conversations", "system": "system", "tools": "tools"}
    plain = dataset_info("x", output_format(MESSAGES, "messages", with_tools=False))["x"]
    assert plain["formatting"] == "sharegpt" and plain["tags"]["user_tag"] == "user" and "tools" not in plain["columns"]
    other = dataset_info("x", output_format(MESSAGES, "messages", with_tools=False), "handoff/data")["x"]
    assert other == {**plain, "file_name": "handoff/data"}
    assert dataset_info("x", output_format(MESSAGES, "prompt-completion", with_tools=False)) == {}
