"""LLaMA-Factory's and Axolotl's ways from a config to messages, as their sources have them; they raise where rows would
be lost.

Neither can be installed beside this project (their pins of `datasets`, `transformers` and `torch` are older or
exact), so their rules are written down here, from

- https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md (dataset_info.json, allowed file types)
- https://github.com/hiyouga/LLaMA-Factory/blob/main/src/llamafactory/data/parser.py (columns not listed are None)
- https://github.com/hiyouga/LLaMA-Factory/blob/main/src/llamafactory/data/loader.py (all files of a folder, one type)
- https://github.com/hiyouga/LLaMA-Factory/blob/main/src/llamafactory/data/converter.py (who may speak when)
- https://github.com/hiyouga/LLaMA-Factory/blob/main/pyproject.toml (datasets>=2.16.0,<=4.0.0)
- https://docs.axolotl.ai/docs/dataset_loading.html (a local folder; ds_type)
- https://docs.axolotl.ai/docs/dataset-formats/conversation.html (chat_template)
- https://github.com/axolotl-ai-cloud/axolotl/blob/main/src/axolotl/prompt_strategies/chat_template.py (roles, tools)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

Row = dict[str, Any]
FILEEXT2TYPE = {"arrow": "arrow", "csv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet", "txt": "text"}


def config(path: Path) -> Row:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def folder_rows(folder: Path, cache: Path) -> list[Row]:
    """What `load_dataset` makes of a folder that holds files of one allowed type and nothing else."""
    import datasets

    files = sorted(folder.iterdir())
    (kind,) = {FILEEXT2TYPE[file.suffix[1:]] for file in files}
    return list(datasets.load_dataset(kind, data_files=[str(f) for f in files], split="train", cache_dir=str(cache)))


# ---------------------------------------------------------------------------------------- LLaMA-Factory


def llamafactory(config_path: Path, cwd: Path, cache: Path) -> list[Row]:
    """system, tools and turns of every row, as LLaMA-Factory aligns it."""
    settings = config(config_path)
    assert settings["stage"] == "sft" and settings["do_train"] is True
    assert "," not in settings["dataset"]  # names are split there
    base = cwd / settings["dataset_dir"]
    entry = json.loads((base / "dataset_info.json").read_text())[settings["dataset"]]
    old_datasets_can_load(base / entry["file_name"])
    convert = {"alpaca": from_alpaca, "sharegpt": from_sharegpt}[entry["formatting"]]
    return [
        convert(row, entry["columns"], entry.get("tags", {})) for row in folder_rows(base / entry["file_name"], cache)
    ]


def old_datasets_can_load(folder: Path) -> None:
    """`datasets` 4.0.0 knows no JSON columns: all types must be plain."""

    def check(kind: pa.DataType) -> None:
        assert not isinstance(kind, pa.BaseExtensionType), kind
        for child in (kind.field(k) for k in range(kind.num_fields)):
            check(child.type)

    for file in folder.iterdir():
        for column in pq.read_schema(file):
            check(column.type)


def from_alpaca(row: Row, columns: Row, tags: Row) -> Row:
    get = {key: row.get(column) for key, column in columns.items()}
    turns = []
    for asked, answered in get.get("history") or []:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    query = "\n".join(text for text in (get["prompt"], get.get("query")) if text)
    assert isinstance(get["response"], str)
    turns += [{"role": "user", "content": query}, {"role": "assistant", "content": get["response"]}]
    return {"system": get.get("system") or "", "tools": "", "turns": turns}


def from_sharegpt(row: Row, columns: Row, tags: Row) -> Row:
    names = {
        "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
        "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system", **tags,
    }  # fmt: skip
    messages = row[columns["messages"]]
    system = row[columns["system"]] if "system" in columns else ""
    if messages[0][names["role_tag"]] == names["system_tag"]:
        system, messages = messages[0][names["content_tag"]], messages[1:]
    odd = {names["user_tag"]: "user", names["observation_tag"]: "observation"}
    even = {names["assistant_tag"]: "assistant", names["function_tag"]: "function"}
    turns = [
        {"role": (odd, even)[k % 2][message[names["role_tag"]]], "content": message[names["content_tag"]]}
        for k, message in enumerate(messages)  # a KeyError here is a row that LLaMA-Factory drops with a warning
    ]
    assert len(turns) % 2 == 0
    return {
        "system": system or "",
        "tools": (row[columns["tools"]] or "") if "tools" in columns else "",
        "turns": turns,
    }


# ---------------------------------------------------------------------------------------------- Axolotl


def axolotl(config_path: Path, cwd: Path, cache: Path) -> list[Row]:
    """messages and tools of every row, as the chat template gets them; turns where Alpaca's prompt is used."""
    settings = config(config_path)
    (source,) = settings["datasets"]
    assert source["split"] == "train" and source["ds_type"] == "parquet"
    rows = folder_rows(cwd / source["path"], cache)
    if source["type"] == "alpaca":
        assert not any(row.get("system") or row.get("history") for row in rows)  # it would not read them
        return [from_alpaca(row, {"prompt": "instruction", "query": "input", "response": "output"}, {}) for row in rows]
    assert source["type"] == "chat_template" and settings["chat_template"] == "tokenizer_default"
    return [chat_template_row(without_none(row), source) for row in rows]


def without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value


def chat_template_row(row: Row, source: Row) -> Row:
    roles = {"human": "user", "user": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
    roles["tool"] = "tool"
    mapping, messages, tools = source["message_property_mappings"], row[source["field_messages"]], row.get("tools")
    assert isinstance(messages, list) and (tools is None or isinstance(tools, list))
    turns = [
        {
            **{key: item for key, item in message.items() if key not in mapping.values()},
            "content": message[mapping["content"]],
            "role": roles[message[mapping["role"]]],
        }
        for message in messages
    ]
    if turns[0]["role"] != "system" and "system" in row:
        turns.insert(0, {"role": "system", "content": row["system"]})
    return {"messages": turns, "tools": tools}
