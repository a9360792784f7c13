"""The dataset card (README.md) and LLaMA-Factory's dataset_info.json of an output folder.

The card's front matter makes `load_dataset(folder)` give the training rows and `load_dataset(folder, "scores")` the
scores of the whole pool. Nothing here reads a run; the caller passes the facts to print.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
)
# Signs that start markup in Markdown; as character references they are shown and do nothing. The order matters.
_SIGNS = {"&": "&amp;", "<": "&lt;", "://": "&#58;//", "www.": "www&#46;"}
_SIGNS |= {sign: f"&#{ord(sign)};" for sign in "\\`*_~$[]!"} | {"|": "\\|"}


def dataset_card(info: Mapping[str, Any]) -> str:
    """README.md of the output folder.

    Args:
        info: "name" (str), "rows" (int, selected), "pool_rows" (int), "method" (str), "format" (str), "facts" (mapping
            of label -> value, printed as a table in the given order), optional "license" (str), "language" (list of
            BCP-47 codes), "tags" (list of str), "sources" (list of (path, bytes, digest)), "charts" (mapping of
            relative path -> what it shows), "sets" (mapping of further configs -> folder of Parquet files),
            "fingerprint" (str, differs when the rows do).

    Returns:
        Markdown with YAML front matter. Values are escaped for both.
    """
    rows, pool_rows = info["rows"], info["pool_rows"]
    share = f" ({100 * rows / pool_rows:.1f} %)" if pool_rows else ""
    header = yaml.safe_dump(front_matter(info), sort_keys=False, allow_unicode=True)
    lines = [
        f"---\n{header}---",
        f"# {_cell(info['name'])}",
        f"{rows:,} of {pool_rows:,} rows{share}, selected with {_cell(info['method'])}, "
        f"written in the {_cell(info['format'])} format by iterselect.",
        _table(("What", "Value"), info.get("facts", {}).items()),
    ]
    lines += [f"![{_cell(about)}]({path})" for path, about in info.get("charts", {}).items()]
    if info.get("sources"):
        lines.append("## Sources\n\n" + _table(("File", "Bytes", "Digest"), info["sources"]))
    lines.append(
        "## Use\n\n```python\nfrom datasets import load_dataset\n\n"
        'train = load_dataset("<this folder>", split="train")\n'
        'scores = load_dataset("<this folder>", "scores", split="train")  # every row of the pool\n'
        + "".join(f'{name} = load_dataset("<this folder>", "{name}", split="train")\n' for name in info.get("sets", {}))
        + "```"
    )
    return "\n\n".join(lines) + "\n"


def front_matter(info: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of the card, in the keys of the Hugging Face Hub.

    `datasets` 5.2 caches a local folder with such configs by the folder's last name and by what the configs say, not by
    the files: without the fingerprint, a second run would be loaded as the rows of the first.
    """
    folders = {"default": "data", "scores": "scores", **info.get("sets", {})}
    configs: list[dict[str, Any]] = [
        {
            "config_name": name,
            "description": f"rows {info['fingerprint']}",
            "data_files": [{"split": "train", "path": f"{folder}/*.parquet"}],
        }
        for name, folder in folders.items()
    ]
    configs[0]["default"] = True
    return {
        "pretty_name": str(info["name"]),
        **{key: info[key] for key in ("license", "language") if info.get(key)},
        "task_categories": ["text-generation"],
        "tags": ["instruction-tuning", "data-selection", *dict.fromkeys(info.get("tags", ()))],
        "size_categories": [next((name for bound, name in _SIZES if info["rows"] < bound), "n>1B")],
        "configs": configs,
    }


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: Any) -> str:
    """Text that stays inside one Markdown table cell and adds no markup of its own."""
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    for sign, safe in _SIGNS.items():
        text = text.replace(sign, safe)
    return " ".join(text.split())


def dataset_info(name: str, fmt: Format, folder: str = "data") -> dict[str, Any]:
    """An entry of LLaMA-Factory's dataset_info.json, usable with `dataset_dir: <output folder>`.

    Chat messages are declared as `sharegpt` with role tags, because the `openai` converter of some versions adds a
    system prompt of its own ("detailed thinking off"). Tool calls are not read that way (engine/handoff/llamafactory.py
    writes them as text).

    Args:
        name: the entry's key.
        fmt: the format of the rows.
        folder: of their files, relative to the output folder.

    Returns:
        {name: entry}; {} for prompt-completion rows, whose message lists LLaMA-Factory does not read.
    """
    if fmt.name == "prompt-completion":
        return {}
    keys = (
        ("prompt", "query", "response", "system", "history")
        if fmt.name == "alpaca"
        else ("messages", "system", "tools")
    )
    entry: dict[str, Any] = {
        "file_name": folder,
        "formatting": "alpaca" if fmt.name == "alpaca" else "sharegpt",
        "columns": {key: fmt.columns[key] for key in keys if key in fmt.columns},
    }
    if fmt.name == "messages":
        entry["tags"] = dict(_CHAT_TAGS)
    return {name: entry}
