"""Pointwise ratings over the same client: the prompt declares scale and parser, the server knows the quality."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from engine.config_endpoint import OpenAIRaterConfig
from tests.fake_server import FakeServer
from tests.paid.paid_rows import PRICE, make_rows, rate_rows


def rate(out: Path, url: str, prompt: str) -> pa.Table:
    config = OpenAIRaterConfig(model="m", base_url=url, price=PRICE, prompt=prompt)  # pyright: ignore
    return rate_rows(out, make_rows(40), config)


@pytest.mark.parametrize("prompt", ["rating", "rating-line"])
def test_ratings_are_the_quality_within_the_scale_and_paid_once(tmp_path: Path, prompt: str) -> None:
    with FakeServer() as server:
        found = rate(tmp_path / "out", server.url, prompt)
        assert found["rating"].to_pylist() == [min(number % 7, 5) for number in range(40)]
        assert found["error"].null_count == 40
        assert server.stats()["completed"] == 40
        assert server.stats()["broken_blocks"] == 0
        assert sum(found["usd"].to_pylist()) > 0


def test_an_unreadable_rating_is_an_error_row_never_a_score(tmp_path: Path) -> None:
    with FakeServer(style="garbage", no_json_schema=True, no_json_object=True) as server:
        found = rate(tmp_path / "out", server.url, "rating")
        assert server.stats()["completed"] == 80  # each was asked about once more
    assert found["rating"].null_count == 40
    assert all(error.startswith("unreadable") for error in found["error"].to_pylist())
    assert all(usd > 0 for usd in found["usd"].to_pylist())
