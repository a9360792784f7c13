"""The pool: accounting, identity, order, and what the real files give."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.data.ingest import Ingest, IngestOptions
from engine.data.inputs import resolve_inputs
from engine.data.rows import Reject
from engine.errors import DataError
from engine.schema import POOL_SCHEMA, canonical_json, conversation_id

REAL = Path(__file__).resolve().parents[2] / "../shared/data"


def lines(rows: list[Any]) -> bytes:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


def ingest(path: Path, **options: Any) -> tuple[Ingest, pa.Table, list[Reject]]:
    rejects: list[Reject] = []
    run = Ingest(resolve_inputs(str(path)), IngestOptions(**options), rejects.append)
    parts = list(run)
    assert all(part.num_rows == run.options.part_rows for part in parts[:-1])
    return run, pa.concat_tables(parts), rejects


def test_pool_rows(tmp_path: Path) -> None:
    rows = [
        {"instruction": "q1", "input": "", "output": "a1", "source": "web", "other": [1, {"x": None}]},
        {"instruction": "q2", "input": "", "output": ""},
        {"instruction": "q1", "input": "", "output": "a1", "source": "copy"},
        "{broken",
        {"instruction": "q3", "input": "in", "output": "a3", "system": "s", "source": 7},
    ]
    (tmp_path / "set.jsonl").write_bytes(lines(rows))
    run, pool, rejects = ingest(tmp_path)
    assert pool.schema == POOL_SCHEMA
    assert run.counts.to_dict() == {
        "rows_read": 5,
        "pool": 2,
        "rejected": 2,
        "duplicates": 1,
        "rejected_by_reason": {"bad_json": 1, "empty_response": 1},
    }
    assert [(reject.line, reject.reason) for reject in rejects] == [(2, "empty_response"), (4, "bad_json")]
    first, second = pool.to_pylist()
    assert first["record"] == json.dumps(rows[0])
    assert (first["row"], first["line"], first["source"], first["prompt"], first["response"]) == (
        0,
        1,
        "web",
        "q1",
        "a1",
    )
    assert (second["row"], second["line"], second["source"], second["prompt"]) == (1, 5, "7", "q3\nin")
    messages = [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}]
    assert first["messages"] == canonical_json(messages) and first["tools"] == ""
    assert first["id"] == conversation_id(first["messages"], "")
    assert second["system"] == "s"


def test_source_name(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl.gz").write_bytes(gzip.compress(lines([{"prompt": "q", "completion": "a", "kind": "k"}])))
    assert ingest(tmp_path)[1]["source"].to_pylist() == ["set"]
    assert ingest(tmp_path, source_column="kind")[1]["source"].to_pylist() == ["k"]
    assert ingest(tmp_path, columns={"source": "kind"})[1]["source"].to_pylist() == ["k"]


def test_formats_are_found_per_file_and_numbering_runs_on(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([{"prompt": f"q{k}", "completion": "a"} for k in range(5)]))
    pq.write_table(
        pa.Table.from_pylist([{"instruction": f"q{k}", "output": "a"} for k in range(3, 8)]), tmp_path / "b.parquet"
    )
    (tmp_path / "c.jsonl").write_bytes(b"\n\n")
    run, pool, _ = ingest(tmp_path, part_rows=3)
    assert [fmt.name for fmt in run.formats.values()] == ["prompt-completion", "alpaca"]
    assert pool["row"].to_pylist() == list(range(8)) and run.counts.duplicates == 2
    assert run.empty_files == [str(tmp_path / "c.jsonl")]


def test_unknown_format_in_a_late_file_stops_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([{"prompt": "q", "completion": "a"}]))
    (tmp_path / "b.jsonl").write_bytes(lines([{"text": "x"}]))
    with pytest.raises(DataError, match="E405") as caught:
        next(iter(Ingest(resolve_inputs(str(tmp_path)))))
    assert caught.value.where.endswith("b.jsonl")


def test_no_rows_and_no_usable_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match="E406"):
        ingest(tmp_path)
    (tmp_path / "b.jsonl").write_bytes(lines([{"prompt": "q", "completion": ""}]))
    with pytest.raises(DataError, match="E407") as caught:
        ingest(tmp_path)
    assert "empty_response 1" in caught.value.why and caught.value.where.endswith("b.jsonl:1")


def test_bad_text_inside_json_text(tmp_path: Path) -> None:
    inner = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": "a"}]
        for text in ("q", "\ud800", "\0", "é\\u0000")
    ]
    (tmp_path / "a.jsonl").write_bytes(lines([{"messages": json.dumps(messages)} for messages in inner]))
    _, pool, rejects = ingest(tmp_path)
    assert [reject.reason for reject in rejects] == ["lone_surrogate", "nul_byte"]
    assert pool["prompt"].to_pylist() == ["q", "é\\u0000"]


def test_tool_arguments_as_text_or_object_are_one_conversation(tmp_path: Path) -> None:
    def row(arguments: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        }

    (tmp_path / "a.jsonl").write_bytes(lines([row({"b": 1, "a": 2}), row('{"a": 2, "b": 1}'), row({"a": 3})]))
    run, _, _ = ingest(tmp_path)
    assert run.counts.pool == 2 and run.counts.duplicates == 1


def test_permuted_rows_give_the_same_ids(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{k}", "output": f"a{k % 7}"} for k in range(40)]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    (tmp_path / "b.jsonl").write_bytes(lines(rows[::-1]))
    assert set(ingest(tmp_path / "a.jsonl")[1]["id"].to_pylist()) == set(
        ingest(tmp_path / "b.jsonl")[1]["id"].to_pylist()
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
message = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool", "x"]),
        "content": st.text(max_size=5) | json_values,
    },
    optional={"tool_calls": json_values, "name": json_values},
)
any_row = (
    st.fixed_dictionaries({"messages": st.lists(message, max_size=5) | json_values}, optional={"tools": json_values})
    | st.fixed_dictionaries(
        {"messages": st.just([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])}
    )
    | json_values
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.builds(lambda row: json.dumps(row).encode(), any_row) | st.binary(max_size=30), max_size=12))
def test_every_row_is_accounted_for(tmp_path: Path, rows: list[bytes]) -> None:
    chats = [[{"role": "user", "content": f"é{k}"}, {"role": "assistant", "content": "a"}] for k in range(12)]
    good = [json.dumps({"messages": chat}).encode() for chat in chats]  # enough for detection, whatever follows
    bodies = [row.replace(b"\n", b"") for row in rows]
    data = b"\n".join([*good, *(body for body in bodies if body.strip(b" \t\r") != b""), b""])
    (tmp_path / "a.jsonl").write_bytes(data)
    run, pool, rejects = ingest(tmp_path / "a.jsonl")
    assert run.counts.rows_read == data.count(b"\n") == pool.num_rows + len(rejects) + run.counts.duplicates
    assert len(set(pool["id"].to_pylist())) == pool.num_rows


REAL_COUNTS = {
    "alpaca_52k.parquet": ("alpaca", 52002, 51974, 0),
    "evol_instruct_1k_conversations.jsonl.gz": ("sharegpt", 1000, 1000, 0),
    "lima_1029.jsonl.gz": ("alpaca", 1029, 1029, 0),
    "oaast_sft_zh_766.jsonl.gz": ("alpaca", 766, 765, 1),
    "llamafactory_glaive_toolcall_en_demo.jsonl.gz": ("sharegpt", 300, 265, 35),
    "llamafactory_glaive_toolcall_zh_demo.jsonl.gz": ("sharegpt", 300, 255, 43),
    "llamafactory_kto_en_demo.jsonl.gz": ("messages", 300, 300, 0),
    "t0_flan_like_sample.parquet": ("prompt-completion", 11128, 11015, 113),
    "malformed_real_alpaca_zh.json.gz": ("alpaca", 2802, 2784, 15),
}


@pytest.mark.parametrize("name", REAL_COUNTS)
def test_real_files(name: str) -> None:
    if not (REAL / name).exists():
        pytest.skip("the shared data is not here")
    run, pool, _ = ingest(REAL / name)
    found = next(iter(run.formats.values()))
    assert (found.name, run.counts.rows_read, pool.num_rows, run.counts.duplicates) == REAL_COUNTS[name]


def test_real_ranked_answers_are_refused_row_by_row() -> None:
    path = REAL / "oaast_rm_zh_775.jsonl.gz"
    if not path.exists():
        pytest.skip("the shared data is not here")
    with pytest.raises(DataError, match="E407") as caught:
        ingest(path)
    assert "wrong_type 775" in caught.value.why
