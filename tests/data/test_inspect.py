"""What `inspect` tells about an input."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from engine.data.ingest import IngestOptions
from engine.data.inputs import resolve_inputs
from engine.data.inspect import headline, inspect_pool, render

REAL = Path(__file__).resolve().parents[2] / "../shared/data"


def printed(inspection: RenderableType) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(inspection)
    return console.export_text()


def test_small_pool(tmp_path: Path) -> None:
    chat = [{"from": "human", "value": "q" * 10}, {"from": "gpt", "value": "a"}]
    rows = [{"conversations": chat}, {"conversations": chat}, {"conversations": [*chat, *chat], "source": "[b]web[/b]"}]
    rows += [{"conversations": chat[:1]} for _ in range(9)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.jsonl").write_text("")
    found = inspect_pool(resolve_inputs(str(tmp_path)))
    assert found.counts["rows_read"] == 12 and found.counts["pool"] == 2 and found.counts["duplicates"] == 1
    assert found.multi_turn_share == 0.5 and found.prompt_chars["min"] == 10
    assert found.sources == {"a": 1, "[b]web[/b]": 1}
    assert len(found.reject_examples["no_response"]) == 5
    assert found.reject_examples["no_response"][0] == f"{tmp_path}/a.jsonl:4: the last message is from user"
    expected = "detected: sharegpt (conversations.from/value), 12 rows, 50 % multi-turn, 1 exact duplicates, 9 rejected"
    assert headline(found) == expected
    text = printed(render(found))
    assert "sharegpt (conversations.from/value)" in text and "[b]web[/b]" in text and "no rows in" in text
    json.dumps(found.to_dict())


def test_nothing_usable_is_described(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "q", "completion": ""}\n')
    found = inspect_pool(resolve_inputs(str(tmp_path)))
    assert found.counts["pool"] == 0 and "empty_response" in printed(render(found))


def test_limit(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"prompt": "q{k}", "completion": "a"}}\n' for k in range(100)))
    found = inspect_pool(resolve_inputs(str(tmp_path)), IngestOptions(part_rows=10), limit=15)
    assert found.counts["pool"] == 20 and found.stopped_early


def test_mixed_real_files() -> None:
    names = ["lima_1029.jsonl.gz", "llamafactory_glaive_toolcall_en_demo.jsonl.gz"]
    if not all((REAL / name).exists() for name in names):
        pytest.skip("the shared data is not here")
    found = inspect_pool(resolve_inputs([str(REAL / name) for name in names]))
    assert found.detected.startswith("mixed: alpaca") and found.tools_share > 0.1
    assert found.counts["rows_read"] == 1329
