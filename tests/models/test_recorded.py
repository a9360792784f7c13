"""Recorded answers and verdicts: every accepted form, and nothing else becomes a label."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import DataError
from engine.models.recorded import RecordedAnswers, RecordedVerdicts


def rows(values: list[object]) -> pa.Table:
    records = [json.dumps({"v": value}) for value in values]
    return pa.table({"id": [f"{i:032x}" for i in range(len(values))], "record": records})


@pytest.mark.parametrize(
    ("value", "verdict", "hard"),
    [
        (True, "reference", True),
        (0, "answer", False),
        ("hard", "reference", True),
        ("Answer", "answer", False),
        ("tie", "tie", None),
        ([8, 5.5], "reference", True),
        ([5, 5], "tie", None),
        (1.0, "reference", True),
        (0.0, "answer", False),
        ({"hard": False}, "answer", False),
        ({"score_reference": 1, "score_answer": 2}, "answer", False),
    ],
)
def test_accepted_forms(value: object, verdict: str, hard: bool | None) -> None:
    row = RecordedVerdicts(column="v")(rows([value])).to_pylist()[0]
    assert (row["verdict"], row["hard"], row["error"]) == (verdict, hard, None)


@pytest.mark.parametrize(
    "value",
    [None, 2, 0.5, "maybe", [1], [1, None], [True, 2], {}, {"hard": "x"}, [float("nan"), 1], [10**400, 1], [1e300, 1]],
)
def test_anything_else_is_an_error_row(value: object) -> None:
    row = RecordedVerdicts(column="v")(rows([value])).to_pylist()[0]
    assert row["verdict"] is None
    assert row["hard"] is None
    assert row["error"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_file_is_joined_by_id(tmp_path: Path, suffix: str) -> None:
    table = rows(["a", "b", "c"])
    found = [{"id": f"{2:032x}", "answer": "two"}, {"id": f"{0:032x}", "answer": "zero"}]
    path = tmp_path / f"answers.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
    else:
        pq.write_table(pa.Table.from_pylist(found), path)
    result = RecordedAnswers(file=str(path))(table).to_pylist()
    assert [row["answer"] for row in result] == ["zero", None, "two"]
    assert [row["error"] is None for row in result] == [True, False, True]


def test_neither_column_nor_file_is_an_error() -> None:
    with pytest.raises(DataError, match="column"):
        RecordedVerdicts()


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        RecordedVerdicts(file=str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    "value", [datetime.datetime(2024, 1, 1), b"hard", decimal.Decimal("1.0"), {"x": datetime.date(2024, 1, 1)}]
)
def test_parquet_types_that_json_lacks_are_error_rows(tmp_path: Path, value: object) -> None:
    path = tmp_path / "verdicts.parquet"
    pq.write_table(pa.Table.from_pylist([{"id": f"{0:032x}", "hard": value}]), path)
    row = RecordedVerdicts(file=str(path))(rows(["a"])).to_pylist()[0]
    assert (row["verdict"], row["hard"]) == (None, None)
    assert row["error"].startswith("not a verdict")


@pytest.mark.parametrize(
    "line", ['{"answer": "a"}', '{"id": 3}', '{"id": [1]}', "[1]", '"x"', "null", "{", "[" * 99999]
)
def test_a_row_of_the_file_that_names_no_row_is_an_error_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"id": f"{0:032x}", "answer": "zero"}) + f"\n\n{line}\n")
    with pytest.raises(DataError) as caught:
        RecordedAnswers(file=str(path))
    assert caught.value.where == f"{path}:3"


def test_a_parquet_file_without_ids_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "answers.parquet"
    pq.write_table(pa.table({"answer": ["a"]}), path)
    with pytest.raises(DataError, match="needs a text `id`"):
        RecordedAnswers(file=str(path))


def test_half_a_surrogate_pair_is_no_answer() -> None:
    assert RecordedAnswers(column="v")(rows(["\ud800"])).to_pylist() == [
        {"answer": None, "error": "no recorded answer"}
    ]
