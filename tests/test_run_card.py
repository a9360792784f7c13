"""The card of a real run: what the Hub and `datasets` read of it, its sources, its pictures."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import DatasetCard

from engine.cli import run_cli
from engine.compare.charts import share_chart
from engine.config import OutputConfig
from tests.conftest import write_jsonl

ROWS = [
    {"messages": [{"role": "user", "content": f"q{k}"}, {"role": "assistant", "content": "word " * (1 + k)}]}
    for k in range(30)
]


def select(folder: Path, *overrides: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    pool = write_jsonl(folder / "pool(x)_*b*.jsonl", rows)
    assert (
        run_cli(["run", "longest", str(pool), f"out={folder / 'out'}", "budget=10", "--local", "--quiet", *overrides])
        == 0
    )
    return folder / "out"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return select(tmp_path, "output.language=[en, zh-Hant]", "output.license=cc-by-4.0", "output.name='a: *b*'")


def test_what_the_hub_reads(out: Path) -> None:
    card = DatasetCard.load(out / "README.md")
    assert card.data.language == ["en", "zh-Hant"] and card.data.license == "cc-by-4.0"
    assert card.data.pretty_name == "a: *b*" and card.data.size_categories == ["n<1K"]
    assert {"data-selection", "iterselect", "longest"} <= set(card.data.tags)
    names = [config["config_name"] for config in card.data.configs]
    assert names == ["default", "scores", "random_same_rows", "random_same_chars"]
    for config in card.data.configs:
        assert list(out.glob(config["data_files"][0]["path"]))


def test_sources_have_digests_and_the_cost_is_told(out: Path) -> None:
    body = (out / "README.md").read_text()
    pool = out.parent / "pool(x)_*b*.jsonl"
    shown = str(pool).replace("*", "&#42;").replace("_", "&#95;")
    digest = hashlib.sha256(pool.read_bytes()).hexdigest()
    assert f"| {shown} | {pool.stat().st_size:,} | sha256 {digest} |" in body
    assert "| budget | 10 rows |" in body and "| cost of calls | 0.0000 USD |" in body


def test_charts_are_small_pictures_beside_the_card(out: Path) -> None:
    body = (out / "README.md").read_text()
    charts = sorted(out.glob("charts/*"))
    assert charts and all(f"](charts/{chart.name})" in body for chart in charts)
    for chart in charts:
        data = chart.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) < 200_000
        width, height = struct.unpack(">II", data[16:24])
        assert 300 < width < 1500 and 150 < height < 800


def test_bars_are_shares_of_their_own_rows() -> None:
    counts = {"pool": np.array([0, 6, 2, 0]), "selected": np.array([0, 0, 2, 0])}
    values = share_chart("t", "u", np.array([0, 2, 4, 8, 16]), counts).to_dict()["data"]["values"]
    assert values == [
        {"from": 2.0, "to": 4.0, "share": 0.75, "rows": "pool"},
        {"from": 4.0, "to": 8.0, "share": 0.25, "rows": "pool"},
        {"from": 2.0, "to": 4.0, "share": 0.0, "rows": "selected"},
        {"from": 4.0, "to": 8.0, "share": 1.0, "rows": "selected"},
    ]


def test_a_second_run_in_the_same_folder_is_not_loaded_from_the_cache_of_the_first(tmp_path: Path) -> None:
    import datasets

    seen = []
    for budget in (10, 12):
        out = select(tmp_path, f"budget={budget}")
        for name in ("default", "scores", "random_same_rows"):
            rows = datasets.load_dataset(str(out), name, split="train", cache_dir=str(tmp_path / "cache"))
            seen.append(sum(rows["selected"]) if name == "scores" else len(rows))
    assert seen == [10, 10, 10, 12, 12, 12]


def test_a_changed_file_gets_a_new_digest(tmp_path: Path) -> None:
    out = select(tmp_path)
    before = (out / "README.md").read_text()
    out = select(tmp_path, rows=ROWS[:-1])
    digest = hashlib.sha256((tmp_path / "pool(x)_*b*.jsonl").read_bytes()).hexdigest()
    assert digest in (out / "README.md").read_text() and digest not in before
    kept = [json.loads(path.read_text()) for path in out.glob("steps/ingest-*/digests.json")]
    assert len(kept) == 2


def test_the_card_s_settings_are_checked() -> None:
    assert OutputConfig(language=["en"]).license is None
    with pytest.raises(ValueError, match="language"):
        OutputConfig.model_validate({"language": "en"})
