"""Pointwise ratings over the same client: the prompt declares scale and parser, the server knows the quality."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from engine.artifacts import Step
from engine.config import PaidConfig
from engine.config_endpoint import OpenAIRaterConfig
from engine.local import LocalRuntime
from engine.paid.service import PaidRun, paid_rater
from engine.store import Store
from tests.conftest import Recorder
from tests.fake_server import FakeServer
from tests.paid.paid_rows import PRICE, batch_step, make_rows


def rate(out: Path, url: str, prompt: str) -> pa.Table:
    store = Store(out)
    run = PaidRun(store, LocalRuntime(Recorder()), PaidConfig())
    rater = paid_rater(run, OpenAIRaterConfig(model="m", base_url=url, price=PRICE, prompt=prompt))  # pyright: ignore
    source = batch_step(store, make_rows(40))
    target = Step(store, "ratings", dict(rater.identity), [source.fingerprint])
    rater.run(source, target)
    rater.close()
    run.close()
    return target.read_all()


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
