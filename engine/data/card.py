"""The dataset card (README.md) and LLaMA-Factory's dataset_info.json of an output folder.

The card's front matter makes `load_dataset(folder)` give the training rows and `load_dataset(folder, "scores")` the
scores of the whole pool. Nothing here reads a run; the caller passes the facts to print.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from engine.data.formats import Format

# LLaMA-Factory src/llamafactory/data/parser.py: without these tags its ShareGPT names are assumed.
_CHAT_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


def dataset_card(info: Mapping[str, Any]) -> str:
    """README.md of the output folder.

    Args:
        info: "name" (str), "rows" (int, selected), "pool_rows" (int), "method" (str), "format" (str), "facts" (mapping
            of label -> value, printed as a table in the given order), optional "license" (str), "language" (list of
            BCP-47 codes), "tags" (list of str), "sources" (list of str).

    Returns:
        Markdown with YAML front matter. Values are escaped for both.
    """
    front: dict[str, Any] = {"pretty_name": str(info["name"])}
    front |= {key: info[key] for key in ("license", "language") if info.get(key)}
    front["tags"] = ["instruction-tuning", "data-selection", *info.get("tags", ())]
    front["size_categories"] = [next((name for bound, name in _SIZES if info["rows"] < bound), "n>10M")]
    front["configs"] = [
        {"config_name": "default", "default": True, "data_files": [{"split": "train", "path": "data/*.parquet"}]},
        {"config_name": "scores", "data_files": [{"split": "train", "path": "scores/*.parquet"}]},
    ]
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    rows, pool_rows = info["rows"], info["pool_rows"]
    share = f" ({100 * rows / pool_rows:.1f} %)" if pool_rows else ""
    lines = [
        f"---\n{header}---",
        f"# {_cell(info['name'])}",
        f"{rows:,} of {pool_rows:,} rows{share}, selected with `{_cell(info['method'])}`, "
        f"written in the `{_cell(info['format'])}` format.",
        "| What | Value |\n| --- | --- |\n"
        + "\n".join(f"| {_cell(label)} | {_cell(value)} |" for label, value in info.get("facts", {}).items()),
    ]
    if info.get("sources"):
        lines.append("## Sources\n\n" + "\n".join(f"- {_cell(source)}" for source in info["sources"]))
    lines.append(
        "## Use\n\n```python\nfrom datasets import load_dataset\n\n"
        'train = load_dataset("<this folder>", split="train")\n'
        'scores = load_dataset("<this folder>", "scores", split="train")  # every row of the pool\n```'
    )
    return "\n\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    """Text that stays inside one Markdown table cell and adds no markup of its own."""
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "'"), ("[", "\\[")):
        text = text.replace(sign, safe)
    return " ".join(text.split())


def dataset_info(name: str, fmt: Format, has_tools: bool = False) -> dict[str, Any]:
    """LLaMA-Factory's dataset_info.json, usable with `dataset_dir: <output folder>`.

    Chat messages without tools are declared as `sharegpt` with role tags, because the `openai` converter of some
    versions adds a system prompt of its own ("detailed thinking off"); only that converter reads `tool_calls`.

    Args:
        name: the entry's key.
        fmt: the format of the rows in `data/`.
        has_tools: whether any row has tools or tool turns.

    Returns:
        {name: entry}; {} for prompt-completion rows, whose message lists LLaMA-Factory does not read.
    """
    keys = (
        ("prompt", "query", "response", "system", "history")
        if fmt.name == "alpaca"
        else ("messages", "system", "tools")
    )
    columns = {key: fmt.columns[key] for key in keys if key in fmt.columns}
    if fmt.name == "prompt-completion":
        return {}
    entry: dict[str, Any] = {"file_name": "data", "formatting": "alpaca" if fmt.name == "alpaca" else "sharegpt"}
    entry["columns"] = columns
    if fmt.name == "messages":
        entry["formatting"] = "openai" if has_tools else "sharegpt"
        entry["tags"] = dict(_CHAT_TAGS)
    return {name: entry}
