"""Pairs of answers with a known verdict, to measure a judge against: reads them from a file.

The file is JSON Lines, JSON or Parquet (also .gz, .zst, .arrow), one pair per row:

- the conversation up to the answer, as the first of these that the row has: `messages` (a list of {"role", "content"}
  that ends with the user's turn), `instruction` (with `input`, if any, on the next line), `prompt` (text or messages);
- the answers, as the first of these that the row has: `answer_a` and `answer_b`, `reference` and `answer`, or
  `output_1` and `output_2`. An answer may be empty: models say nothing at times;
- `verdict`, or AlpacaEval's name for it, `preference`. Text in any case: "a" (the first answer is better), "b" (the
  second), "tie". Or numbers in AlpacaEval's numbering: 1 = the first, 2 = the second, 0 or 1.5 = a draw. A file whose
  numbers are only 0 and 1 is refused: elsewhere these mean the first and the second;
- optional `id` (text or a whole number, unique in the file; default: a hash of the pair, numbered when the pair comes
  again with another person's verdict), `source` (text), `system`.

Further columns are ignored, so AlpacaEval's own `annotations.json` can be read as it is. One bad row refuses the
file: a measurement on what happened to be readable would not be the one asked for. It knows nothing of judges.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine.data.conversations import to_conversation
from engine.data.formats import Format
from engine.data.inputs import resolve_inputs
from engine.data.readers import read_rows
from engine.data.rows import BadRow, Reject, SourceRow, kind_of
from engine.errors import DataError
from engine.schema import canonical_json

FIELDS = (
    "a row has `messages`, or `instruction` (+`input`), or `prompt`; `answer_a` and `answer_b` (or `reference` and "
    '`answer`, or `output_1` and `output_2`); `verdict` (or `preference`): "a", "b", "tie", or AlpacaEval\'s 1, 2, 0, '
    "1.5; optional `id`, `source`, `system`"
)
_ANSWERS = (("answer_a", "answer_b"), ("reference", "answer"), ("output_1", "output_2"))
_VERDICTS = ("verdict", "preference")
_WORDS = {"a": "A", "b": "B", "tie": "tie"}
_NUMBERS = {1: "A", 2: "B", 0: "tie", 1.5: "tie"}
_ANSWER = "_answer"  # stands for the answer that the conversation leads to
_FORMATS = {
    "messages": Format("messages", {"messages": "messages", "system": "system"}),
    "instruction": Format(
        "alpaca", {"prompt": "instruction", "query": "input", "response": _ANSWER, "system": "system"}
    ),
    "prompt": Format("prompt-completion", {"prompt": "prompt", "response": _ANSWER, "system": "system"}),
}


@dataclass(frozen=True)
class Pair:
    """Two answers to one conversation.

    Attributes:
        id: unique in its file.
        conversation: chat messages up to the answer.
        gold: the known verdict: "A" (answer_a is better), "B" or "tie".
    """

    id: str
    conversation: list[dict[str, Any]]
    answer_a: str
    answer_b: str
    gold: str
    source: str = ""


def read_gold(spec: str) -> list[Pair]:
    """Reads all pairs, in the order of the file.

    Args:
        spec: file, folder, glob or URI.

    Raises:
        DataError: E401 to E404 the file cannot be found or opened, E460 a bad row (file:line), E461 no pairs,
            E462 an id that is there twice, E463 numbers of which it is not clear what they mean.
    """
    pairs: list[Pair] = []
    seen: dict[str, str] = {}
    copies: Counter[str] = Counter()
    numbers: set[float] = set()
    for row in _rows(spec):
        place = f"{row.file}:{row.line}"
        try:
            pair = _pair(row.value, copies)
        except BadRow as bad:
            raise _bad(place, bad.detail) from bad
        if pair.id in seen:
            raise DataError(
                f"the id {pair.id!r} is there twice",
                where=place,
                why=f"first at {seen[pair.id]}",
                fix="make the ids unique, or leave them out",
                code="E462",
            )
        seen[pair.id] = place
        numbers |= {value for value in [_first(row.value, _VERDICTS)] if isinstance(value, (int, float))}
        pairs.append(pair)
    if not pairs:
        raise DataError(f"there are no pairs in {spec}", fix=FIELDS, code="E461")
    if numbers and numbers <= {0, 1} and 0 in numbers:
        raise DataError(
            f"the verdicts in {spec} are the numbers 0 and 1 only",
            why="read as AlpacaEval's they would be draws and wins of the first answer, and never one of the second",
            fix='write them as "a", "b" and "tie"',
            code="E463",
        )
    return pairs


def _rows(spec: str) -> Iterator[SourceRow]:
    for file in resolve_inputs(spec):
        for row in read_rows(file):
            if isinstance(row, Reject):
                raise _bad(f"{row.file}:{row.line}", row.detail)
            yield row


def _bad(place: str, detail: str) -> DataError:
    return DataError("the row is not a pair with a known verdict", where=place, why=detail, fix=FIELDS, code="E460")


def _pair(value: Mapping[str, Any], copies: Counter[str]) -> Pair:
    """One row; `copies` counts the pairs without an id by content, for several people's verdicts on the same pair."""
    a, b = next((names for names in _ANSWERS if value.get(names[0]) is not None), _ANSWERS[0])
    answer_a, answer_b = _text(value, a), _text(value, b)
    conversation, gold = _conversation(value), _label(_first(value, _VERDICTS))
    source = _text(value, "source") if value.get("source") is not None else ""
    name = value.get("id")
    if name is None:
        content = canonical_json([conversation, answer_a, answer_b])
        name = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
        copies[name] += 1
        name = name if copies[name] == 1 else f"{name}-{copies[name]}"
    elif type(name) not in (str, int) or name == "":
        raise BadRow("wrong_type", f"`id` holds {kind_of(name)}, not text or a whole number")
    return Pair(str(name), conversation, answer_a, answer_b, gold, source)


def _first(value: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((value[name] for name in names if value.get(name) is not None), None)


def _text(value: Mapping[str, Any], name: str) -> str:
    if not isinstance(value.get(name), str):
        there = f"holds {kind_of(value[name])}, not text" if name in value else "is not there"
        raise BadRow("wrong_type", f"`{name}` {there}")
    return value[name]


def _conversation(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages, checked as those of a pool are: known roles in a sensible order, the user last."""
    kind = next((name for name in _FORMATS if value.get(name) is not None), None)
    if kind is None:
        raise BadRow("missing_column", "there is no `messages`, `instruction` or `prompt`")
    row = {**value, _ANSWER: "-"}
    if kind == "messages":
        if not isinstance(value["messages"], list):
            raise BadRow("wrong_type", f"`messages` holds {kind_of(value['messages'])}, not a list of messages")
        row["messages"] = [*value["messages"], {"role": "assistant", "content": "-"}]
    found = to_conversation(row, _FORMATS[kind])
    if isinstance(found, BadRow):
        raise found
    return found.messages[:-1]


def _label(verdict: Any) -> str:
    """The label that a verdict of the file stands for."""
    if isinstance(verdict, str):
        label = _WORDS.get(verdict.strip().lower())
    else:
        label = _NUMBERS.get(verdict) if type(verdict) in (int, float) else None
    if label is None:
        raise BadRow(
            "wrong_type", f"`verdict` is {verdict!r}"[:200] if verdict is not None else "there is no `verdict`"
        )
    return label
