"""Answers and verdicts that somebody already paid for, read from a column of the source rows or from a file.

With these a run can be replayed, or started from labels made elsewhere, without calling any model.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import DataError
from engine.schema import ANSWER, ERROR, HARD, ID, RECORD, VERDICT, VERDICT_COLUMNS


class Recording:
    """Looks up one JSON value per row.

    Args:
        column: key of the source row, or of the file's rows (default for a file: the whole row).
        file: JSONL or Parquet file with an `id` column; None to read the source row itself.

    Raises:
        DataError: E430, neither was given; E431, the file cannot be read or has a row without `id`.
    """

    columns_in = (ID, RECORD)

    def __init__(self, column: str | None = None, file: str | None = None) -> None:
        if column is None and file is None:
            raise DataError("a recorded generator or judge needs `column` or `file`", code="E430")
        self.column = column
        self.by_id = None if file is None else _read_by_id(file)

    def values(self, table: pa.Table) -> list[Any]:
        """The recorded value of each row; None where there is none."""
        if self.by_id is None:
            rows = [json.loads(text) for text in table[RECORD].to_pylist()]
        else:
            rows = [self.by_id.get(key) for key in table[ID].to_pylist()]
        if self.column is None:
            return rows
        return [row.get(self.column) if isinstance(row, dict) else None for row in rows]


def content_hash(file: str) -> str:
    """Hex SHA-256 of a file's bytes.

    Raises:
        DataError: E431, it cannot be read.
    """
    try:
        with fsspec.open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read recorded values: {error}", where=file, code="E431") from error


def _read_by_id(file: str) -> dict[str, dict[str, Any]]:
    by_id, where = {}, file
    try:
        with fsspec.open(file, "rb") as stream:
            rows = pq.read_table(stream).to_pylist() if file.endswith(".parquet") else stream
            for number, row in enumerate(rows, 1):
                where = f"{file}:{number}"
                if isinstance(row, bytes):
                    if not row.strip():
                        continue
                    row = json.loads(row)
                if not isinstance(row, dict) or not isinstance(row.get(ID), str):
                    raise DataError(
                        "a recorded row needs a text `id`",
                        where=where,
                        fix="write one object per pool row, with the id that the run gave it",
                        code="E431",
                    )
                by_id[row[ID]] = row
    except DataError:
        raise
    except (OSError, ValueError, OverflowError, RecursionError, pa.ArrowException) as error:
        raise DataError(f"cannot read recorded values: {error}", where=where, code="E431") from error
    return by_id


class RecordedAnswers(Recording):
    """Stage: `answer` from the recording. A row without one is an error row."""

    def __init__(self, column: str | None = None, file: str | None = None) -> None:
        super().__init__(column or (ANSWER if file else None), file)

    def __call__(self, table: pa.Table) -> pa.Table:
        answers = [value if _is_text(value) else None for value in self.values(table)]
        errors = [None if answer is not None else "no recorded answer" for answer in answers]
        return pa.table([pa.array(answers, pa.large_string()), pa.array(errors, pa.large_string())], [ANSWER, ERROR])


class RecordedVerdicts(Recording):
    """Stage: verdicts from the recording. A value may be

    - true / false or 1 / 0: hard or not;
    - "reference", "answer" or "tie": which one the judge preferred ("hard" / "easy" are taken too);
    - [score of the reference, score of the answer];
    - an object with `hard`, `verdict`, or `score_reference` and `score_answer` (a file's row is one).

    Anything else is an error row, never a label.
    """

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = [_verdict(value) for value in self.values(table)]
        return pa.Table.from_pylist(rows, schema=pa.schema(VERDICT_COLUMNS))


_WORDS = {"reference": "reference", "hard": "reference", "answer": "answer", "easy": "answer", "tie": "tie"}


def _verdict(value: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys((HARD, VERDICT, "score_reference", "score_answer", ERROR))
    if isinstance(value, dict):
        scores = value.get("score_reference"), value.get("score_answer")
        known = [value.get(HARD), value.get(VERDICT), list(scores) if None not in scores else None]
        value = next((item for item in known if item is not None), None)
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        row[VERDICT] = "reference" if value else "answer"
    elif isinstance(value, str) and value.lower() in _WORDS:
        row[VERDICT] = _WORDS[value.lower()]
    elif isinstance(value, list) and len(value) == 2 and all(_is_number(score) for score in value):
        row["score_reference"], row["score_answer"] = map(float, value)
        row[VERDICT] = "tie" if value[0] == value[1] else "reference" if value[0] > value[1] else "answer"
    else:
        row[ERROR] = "no recorded verdict" if value is None else f"not a verdict: {json.dumps(value, default=str)[:80]}"
    row[HARD] = None if row[VERDICT] in (None, "tie") else row[VERDICT] == "reference"
    return row


def _is_number(value: Any) -> bool:
    """A score that float32 can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**127


def _is_text(value: Any) -> bool:
    """JSON can spell half a surrogate pair, which is no text."""
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)
