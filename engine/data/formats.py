"""Which chat format a file is in: detection from its first rows, and the column names behind it.

Detection order and the keys of the column mapping (LLaMA-Factory's names) follow reference/ux.md 1.4. What a row means
once its format is known is in `conversations.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.errors import ConfigError, DataError

COLUMN_KEYS = ("messages", "prompt", "query", "response", "system", "history", "tools", "source")
SAMPLE_ROWS = 100


class _Candidate(NamedTuple):
    name: str
    required: dict[str, tuple[str, ...]]  # key -> column names, the first that the rows have
    optional: dict[str, tuple[str, ...]]


_SYSTEM = ("system", "system_prompt")
_CHAT = {"system": _SYSTEM, "tools": ("tools",)}
_CANDIDATES = (
    _Candidate("messages", {"messages": ("messages",)}, _CHAT),
    _Candidate("sharegpt", {"messages": ("conversations", "conversation")}, _CHAT),
    _Candidate(
        "alpaca",
        {"prompt": ("instruction",), "response": ("output", "response", "completion", "answer")},
        {"query": ("input", "context"), "history": ("history",), "system": _SYSTEM},
    ),
    _Candidate("prompt-completion", {"prompt": ("prompt",), "response": ("completion", "response")}, _CHAT),
    _Candidate("prompt-completion", {"prompt": ("question",), "response": ("answer", "response")}, _CHAT),
)
FORMAT_NAMES = ("messages", "sharegpt", "alpaca", "prompt-completion")
# The columns under which trainers read each format without a mapping.
_NATIVE = {
    "messages": {"messages": "messages", "tools": "tools"},
    "sharegpt": {"messages": "conversations", "system": "system", "tools": "tools"},
    "alpaca": {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "system": "system",
        "history": "history",
    },
    "prompt-completion": {"prompt": "prompt", "response": "completion", "tools": "tools"},
}


@dataclass(frozen=True)
class Format:
    """A format name and, for each key of COLUMN_KEYS that applies, the column of the source that holds it."""

    name: str
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def native(self) -> bool:
        """Whether trainers read these columns as they are; otherwise the data should be written as `messages`."""
        return self.columns.items() <= _NATIVE[self.name].items()

    def describe(self) -> str:
        """One phrase for people: "sharegpt (conversations.from/value)", "alpaca (instruction, input, output)"."""
        inner = {"messages": ".role/content", "sharegpt": ".from/value"}
        names = [
            column + (inner.get(self.name, "") if key == "messages" else "") for key, column in self.columns.items()
        ]
        return f"{self.name} ({', '.join(names)})"


def training_columns(fmt: Format) -> list[str]:
    """The columns of the source that trainers read, in a fixed order; all others stay out of `data/`.

    TRL chooses its code path from the mere presence of names such as `prompt` or `label` (reference/ux.md 1.3).
    """
    return [fmt.columns[key] for key in COLUMN_KEYS if key in fmt.columns]


def common_format(formats: Iterable[Format]) -> Format | None:
    """The format shared by all files, None when they differ."""
    first, *others = formats
    return first if all(other == first for other in others) else None


def detect(values: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None, name: str = "") -> Format:
    """Finds the format of a file from a sample of its rows.

    A format is taken when at least half of the sample has its required columns.

    Args:
        values: the first rows that could be parsed, at most about 100.
        columns: COLUMN_KEYS -> column of the source; overrides detection for the keys it names.
        name: one of FORMAT_NAMES to allow only that format, "" for any.

    Raises:
        ConfigError: E230 an unknown key in `columns` or an unknown `name`.
        DataError: E405 no format fits.
    """
    pinned = {key: column for key, column in (columns or {}).items() if key != "source"}
    _check_override(pinned, name)
    for candidate in _candidates(pinned):
        found = _match(candidate, values, pinned)
        if found is not None and name in ("", found.name):
            return found
    raise _unknown(values, columns or {}, name)


def _check_override(pinned: Mapping[str, str], name: str) -> None:
    unknown = sorted(set(pinned) - set(COLUMN_KEYS))
    if unknown:
        raise ConfigError(
            f"unknown key {unknown[0]!r} in the column mapping", fix=f"use {', '.join(COLUMN_KEYS)}", code="E230"
        )
    if name not in ("", *FORMAT_NAMES):
        raise ConfigError(f"unknown input format {name!r}", fix=f"use one of {', '.join(FORMAT_NAMES)}", code="E230")


def _candidates(pinned: Mapping[str, str]) -> list[_Candidate]:
    """The candidates that the pinned keys leave open, with the pinned names in place of the usual ones."""
    kept = []
    for candidate in _CANDIDATES:
        known = candidate.required.keys() | candidate.optional.keys()
        if not pinned.keys() <= known:
            continue
        # An unusual prompt column is Alpaca only if a second column is joined to it.
        unusual = pinned.get("prompt", "instruction") != "instruction"
        if candidate.name == "alpaca" and unusual and not pinned.keys() & {"query", "history"}:
            continue
        required = {key: (pinned[key],) if key in pinned else names for key, names in candidate.required.items()}
        kept.append(candidate._replace(required=required))
    return kept


def _match(candidate: _Candidate, values: Sequence[Mapping[str, Any]], pinned: Mapping[str, str]) -> Format | None:
    columns: dict[str, str] = {}
    for key, names in candidate.required.items():
        fits = [name for name in names if 2 * sum(_fits(key, value.get(name)) for value in values) >= len(values) > 0]
        if not fits:
            return None
        columns[key] = fits[0]
    for key, names in candidate.optional.items():
        wanted = (pinned[key],) if key in pinned else names
        present = [name for name in wanted if any(name in value for value in values)]
        if present:
            columns[key] = present[0]
        elif key in pinned:
            return None
    ordered = {key: columns[key] for key in COLUMN_KEYS if key in columns}
    return Format(_message_style(columns["messages"], values) if "messages" in columns else candidate.name, ordered)


def _fits(key: str, item: Any) -> bool:
    if key != "messages":
        return item is not None
    if isinstance(item, str):  # a list kept as JSON text
        return item.lstrip().startswith("[")
    return isinstance(item, list) and all(isinstance(message, Mapping) for message in item)


def _message_style(column: str, values: Sequence[Mapping[str, Any]]) -> str:
    for value in values:
        item = value.get(column)
        if isinstance(item, str) and '"from"' in item:
            return "sharegpt"
        messages = item if isinstance(item, list) else []
        if any(isinstance(message, Mapping) and message.get("from") is not None for message in messages):
            return "sharegpt"
    return "messages"


def _unknown(values: Sequence[Mapping[str, Any]], columns: Mapping[str, str], name: str) -> DataError:
    names = list(dict.fromkeys(key for value in values for key in value))
    listed = ", ".join(names[:20]) or "none"
    missing = [column for column in columns.values() if column not in names]
    fix = "name the columns, for example columns: {prompt: question, response: answer}"
    if missing:
        why = f"the mapped column {missing[0]!r} is not in the data"
        fix = "correct the column mapping"
    elif name:
        why = f"the columns of format {name!r} are not there"
    elif {"chosen", "rejected"} <= set(names):
        why = "these are preference pairs; this tool selects from instructions with one response"
        fix = "make a file with the chosen side, for example as messages"
    elif "text" in names:
        why = "plain text has no instruction and response to tell apart"
        fix = "split it into prompt and completion, or name the columns: {prompt: text, response: ...}"
    else:
        why = "no known pair of instruction and response columns"
    return DataError("cannot tell the chat format of the input", why=f"{why}; columns: {listed}", fix=fix, code="E405")
