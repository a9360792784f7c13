"""Inputs and readers: what is found on disk, what a file's rows are, what becomes of bad ones."""

from __future__ import annotations

import datetime
import gzip
import json
import os
from decimal import Decimal
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from engine.data.inputs import InputFile, resolve_inputs
from engine.data.readers import read_rows
from engine.data.rows import Reject, SourceRow
from engine.errors import DataError

REAL = Path(__file__).resolve().parents[2] / "../shared/data"
ROWS = [{"instruction": f"q{k}", "output": "é" * k} for k in range(50)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def write(path: Path, data: bytes) -> InputFile:
    path.write_bytes(data)
    return resolve_inputs(str(path))[0]


def read(file: InputFile, **limits: int) -> tuple[list[SourceRow], list[Reject]]:
    rows = list(read_rows(file, **limits))
    return [row for row in rows if isinstance(row, SourceRow)], [row for row in rows if isinstance(row, Reject)]


def arrow_bytes(table: pa.Table, stream: bool) -> bytes:
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


TABLE = pa.Table.from_pylist(ROWS)
ENCODINGS = {
    "a.jsonl": LINES,
    "a.ndjson": LINES.replace(b"\n", b"\r\n"),
    "bom.jsonl": b"\xef\xbb\xbf" + LINES,
    "a.jsonl.gz": gzip.compress(LINES),
    "two.jsonl.gz": gzip.compress(LINES[:500]) + gzip.compress(LINES[500:]),
    "a.jsonl.zst": zstandard.compress(LINES),
    "two.jsonl.zst": zstandard.compress(LINES[:500]) + zstandard.compress(LINES[500:]),
    "a.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=4, ensure_ascii=False).encode(),
    "a.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "a.json.zst": zstandard.compress(json.dumps(ROWS).encode()),
    "lines.json": LINES,
    "objects.json": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    "list.jsonl": json.dumps(ROWS).encode(),
    "a.parquet": parquet_bytes(TABLE),
    "file.arrow": arrow_bytes(TABLE, stream=False),
    "stream.arrow": arrow_bytes(TABLE, stream=True),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_container_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    rows, rejects = read(write(tmp_path / name, ENCODINGS[name]))
    assert [row.value for row in rows] == ROWS
    assert [json.loads(row.text) for row in rows] == ROWS
    assert not rejects


def test_line_numbers(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path / "a.jsonl", b'\n{"a":1}\n\n  \n{"a":2}'))
    assert [row.line for row in rows] == [2, 5]
    rows, _ = read(write(tmp_path / "a.json", b'[\n {"a":\n 1},\n\n {"a": 2}, {"a": 3}\n]\n'))
    assert [row.line for row in rows] == [2, 5, 5]
    rows, _ = read(write(tmp_path / "a.parquet", ENCODINGS["a.parquet"]))
    assert [row.line for row in rows] == list(range(1, 51))


def test_jsonl_text_is_untouched(tmp_path: Path) -> None:
    text = '{"b": 1.50,  "a":"\\u00e9", "a": 1E2}'
    rows, _ = read(write(tmp_path / "a.jsonl", text.encode() + b"\r\n"))
    assert rows[0].text == text


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"a": tru}', "bad_json", "column 7"),
        (b'{"a": 1} x', "bad_json", "column 10"),
        (b'{"a": NaN}', "bad_json", "NaN"),
        (b'{"a": -Infinity}', "bad_json", "Infinity"),
        (b'{"a": 1e999}', "bad_json", "out of range"),
        (b'{"a": ' + b"9" * 5000 + b"}", "bad_json", "digits"),
        (b'{"a": "\xff\xfe"}', "bad_utf8", "byte 8"),
        (b'{"a": "\\ud800"}', "lone_surrogate", ""),
        (b'{"\\udfff": 1}', "lone_surrogate", ""),
        (b'{"a": ["x", {"b": "\\u0000"}]}', "nul_byte", ""),
        (b'{"a": "\x00"}', "nul_byte", "column 8"),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "too_deep", ""),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "too_deep", ""),
        (b'{"a": "' + b"x" * 1_000_000 + b'"}', "too_large", "1,000,010 bytes"),
        (b'["a"]', "wrong_type", "a list"),
        (b"3", "wrong_type", "a number"),
    ],
)
def test_a_bad_line_costs_that_line(tmp_path: Path, line: bytes, reason: str, detail: str) -> None:
    data = b'{"a": "ok"}\n' + line + b'\n{"a": "fine \\ud83d\\ude00 \\\\u0000"}\n'
    rows, rejects = read(write(tmp_path / "a.jsonl", data), max_row_bytes=500_000)
    assert [row.line for row in rows] == [1, 3]
    assert [(reject.line, reject.reason) for reject in rejects] == [(2, reason)]
    assert detail in rejects[0].detail
    json.dumps(rejects[0].to_dict(), ensure_ascii=False).encode()
    assert len(rejects[0].snippet) < 1000


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        ('{"a": NaN}', "bad_json"),
        ('{"a": [1e999, "]}"]}', "bad_json"),
        ('{"a": "\\ud800"}', "lone_surrogate"),
        ('{"a": "\\u0000"}', "nul_byte"),
        ('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", "too_deep"),
        ('{"a": "' + 'x\\"}{\\\\' * 100_000 + '"}', "too_large"),
        ('{"a": "' + "\u00e9" * 400_000 + '"}', "too_large"),
        ('"text"', "wrong_type"),
        ("12345", "wrong_type"),
    ],
)
def test_a_bad_element_costs_that_element(tmp_path: Path, element: str, reason: str) -> None:
    data = ('[{"a": 1},\n' + element + ',\n {"a": 2}]').encode()
    rows, rejects = read(write(tmp_path / "a.json", data), max_row_bytes=500_000)
    assert [(row.line, row.value) for row in rows] == [(1, {"a": 1}), (3, {"a": 2})]
    assert [(reject.line, reject.reason) for reject in rejects] == [(2, reason)]


@pytest.mark.parametrize(
    ("text", "line", "reason", "detail"),
    [
        ('[{"a": 1},\n{"a": 1},\n]', 3, "bad_json", "column 1"),
        ('[{"a": 1},\n{"a": 1}\n  {"a": 2}]', 3, "bad_json", "column 3: expected ','"),
        ('[{"a": 1},\n{"a": 1}]\n{"b": 2}', 3, "bad_json", "after the end"),
        ('[{"a": 1},\n{"a": 1},\n {"a" 2}]', 3, "bad_json", "column 7"),
        ('[{"a": 1},\n{"a": 1},\n {"a": "unfin', 3, "truncated_file", "column 8"),
        ('[{"a": 1},\n{"a": 1},\n {"a": ', 3, "truncated_file", ""),
        ('[{"a": 1},\n{"a": 1}\n', 3, "truncated_file", "not closed"),
    ],
)
def test_a_broken_list_keeps_what_came_before(tmp_path: Path, text: str, line: int, reason: str, detail: str) -> None:
    rows, rejects = read(write(tmp_path / "a.json", text.encode()))
    assert len(rows) == 2
    assert [(reject.line, reject.reason) for reject in rejects] == [(line, reason)]
    assert detail in rejects[0].detail and "rest of the file" in rejects[0].detail


def test_list_elements_across_window_edges(tmp_path: Path) -> None:
    rows = [{"k": k, "text": 'é\\"{[' * (k * 37 % 9001)} for k in range(60)]
    for name, data in (("a.json", json.dumps(rows)), ("b.json", json.dumps(rows, ensure_ascii=False, indent=1))):
        got, rejects = read(write(tmp_path / name, data.encode()))
        assert [row.value for row in got] == rows and not rejects
        lines = data.split("\n")
        assert all(lines[row.line - 1].lstrip().startswith(("{", "[{")) for row in got)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.json.gz", "a.json.zst"])
def test_truncated_archive(tmp_path: Path, name: str) -> None:
    rows = [{"a": os.urandom(300).hex()} for _ in range(2000)]
    text = json.dumps(rows) if ".json." in name else "".join(json.dumps(row) + "\n" for row in rows)
    packed = gzip.compress(text.encode()) if name.endswith("gz") else zstandard.compress(text.encode())
    got, rejects = read(write(tmp_path / name, packed[: len(packed) // 2]))
    assert [row.value for row in got] == rows[: len(got)] and len(got) > 500
    assert [reject.reason for reject in rejects] == ["truncated_file"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow"])
def test_file_that_is_not_what_its_name_says(tmp_path: Path, name: str) -> None:
    got, rejects = read(write(tmp_path / name, b"this is not it, whatever the name says"))
    assert not got and [reject.reason for reject in rejects] == ["truncated_file"]


def test_arrow_values_become_json(tmp_path: Path) -> None:
    table = pa.table(
        {
            "day": pa.array([datetime.date(2024, 1, 2), None]),
            "at": pa.array([1, None], pa.timestamp("ns")),
            "price": pa.array([Decimal("1.50"), None]),
            "score": pa.array([float("nan"), 0.5]),
            "list": pa.array([[1.0, float("inf")], None]),
            "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
            "args": pa.array(['{"a": 1}', '{"b": "x"}'], pa.json_(pa.utf8())),
            "nested": pa.array([{"on": datetime.date(2024, 1, 2), "n": None}, None]),
        }
    )
    rows, rejects = read(write(tmp_path / "a.parquet", parquet_bytes(table)))
    assert not rejects
    assert rows[0].value == {
        "day": "2024-01-02",
        "at": "1970-01-01 00:00:00.000000001",
        "price": "1.50",
        "score": None,
        "list": [1.0, None],
        "map": {"k": 1},
        "args": {"a": 1},
        "nested": {"on": "2024-01-02", "n": None},
    }
    assert rows[1].value["args"] == {"b": "x"} and rows[1].value["score"] == 0.5


def test_bad_arrow_rows(tmp_path: Path) -> None:
    bad_text = pa.StringArray.from_buffers(
        3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc")
    )
    for column, reason in (
        (pa.array([None, b"\x01", None]), "unsupported_type"),
        (bad_text, "bad_utf8"),
        (pa.array(["a", "\x00", "c"]), "nul_byte"),
        (pa.array(["a", "b" * 2000, "c"]), "too_large"),
        (pa.array(["1", "{", "1"], pa.string()).cast(pa.json_(pa.utf8())), "bad_json"),
    ):
        file = write(tmp_path / "a.arrow", arrow_bytes(pa.table({"x": column}), stream=True))
        rows, rejects = read(file, max_row_bytes=1000)
        assert [row.line for row in rows] == [1, 3]
        assert [(reject.line, reject.reason) for reject in rejects] == [(2, reason)]


def test_truncated_parquet(tmp_path: Path) -> None:
    rows, rejects = read(write(tmp_path / "a.parquet", ENCODINGS["a.parquet"][:-20]))
    assert not rows and [reject.reason for reject in rejects] == ["truncated_file"]


def test_real_malformed_file() -> None:
    path = REAL / "malformed_real_alpaca_zh.json.gz"
    if not path.exists():
        pytest.skip("the shared data is not here")
    rows, rejects = read(resolve_inputs(str(path))[0])
    assert len(rows) == 2801
    assert [(reject.line, reject.reason) for reject in rejects] == [(14007, "bad_json")]
    assert rejects[0].detail.startswith("column 1: Expecting value")


def test_resolve_folder_glob_and_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pool/b.jsonl", "pool/a.parquet", "pool/sub/c.json.gz"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"xyz")
    for name in ("README.md", ".hidden.jsonl", "_x.jsonl", "dataset_info.json", "state.json"):
        Path("pool", name).write_bytes(b"")
    expected = ["pool/a.parquet", "pool/b.jsonl", "pool/sub/c.json.gz"]
    assert [file.path for file in resolve_inputs("pool")] == expected
    assert [file.path for file in resolve_inputs("pool/*.*")] == expected[:2]
    assert [file.path for file in resolve_inputs(["pool/b.jsonl", "pool"])] == [expected[1], expected[0], expected[2]]
    file = resolve_inputs("pool/sub/c.json.gz")[0]
    assert (file.kind, file.compression, file.size_bytes, file.stem) == ("json", "gz", 3, "c")


def test_resolve_uri() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("b.jsonl", "a.jsonl.gz", "c.parquet", "d.json.zst"):
        memory.pipe(f"/pool/{name}", ENCODINGS[name.replace("b.", "a.").replace("c.", "a.").replace("d.", "a.")])
    files = resolve_inputs("memory://pool")
    assert [file.path for file in files] == [
        f"memory:///pool/{n}" for n in ("a.jsonl.gz", "b.jsonl", "c.parquet", "d.json.zst")
    ]
    assert all([row.value for row in read(file)[0]] == ROWS for file in files)
    assert len(resolve_inputs("memory://pool/*.jsonl")) == 1
    assert read(resolve_inputs("memory://pool/b.jsonl")[0])[0][0].file == "memory://pool/b.jsonl"


def test_file_uri(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", LINES)
    assert len(read(resolve_inputs(f"file://{tmp_path}")[0])[0]) == 50


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("nothing.jsonl", "E401"),
        ("empty", "E403"),
        ("data.csv", "E404"),
        ("*.jsonl", "E403"),
        ("memory://none/", "E401"),
        ("nosuch://x/a.jsonl", "E401"),
    ],
)
def test_resolve_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, code: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("data.csv").write_text("a,b")
    with pytest.raises(DataError) as caught:
        resolve_inputs(spec)
    assert caught.value.code == code and caught.value.fix


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "a.jsonl").chmod(0)
    with pytest.raises(DataError, match="E402"):
        resolve_inputs(str(tmp_path / "a.jsonl"))


def test_file_that_vanishes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="E402"):
        read(InputFile(str(tmp_path / "gone.jsonl"), 1, "jsonl"))
