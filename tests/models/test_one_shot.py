"""Equal to a computation without kept keys and values, pair by pair, and the same counts in any company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.artifacts import Step, write_table
from engine.errors import DataError
from engine.models.contexts import Contexts
from engine.models.one_shot import OneShotScores
from engine.store import Store
from tests.models.test_token_scores import mixed_rows, naive
from tests.token_models import make_tiny_llama

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return str(make_tiny_llama(tmp_path_factory.mktemp("tiny"), ["write a poem about the sea why is water wet"] * 3))


def texts(rows: list[tuple[str, str]], system: str = "") -> pa.Table:
    """Rows with ids 0, 1, ... in hexadecimal, as the pool has them."""
    prompts, responses = zip(*rows, strict=True)
    return pa.table(
        {
            "row": pa.array(range(len(rows))),
            "id": [f"{k:032x}" for k in range(len(rows))],
            "system": pa.array([system] * len(rows), pa.large_string()),
            "prompt": pa.array(prompts, pa.large_string()),
            "response": pa.array(responses, pa.large_string()),
        }
    )


def anchors_of(folder: Path, table: pa.Table) -> Step:
    step = Step(Store(str(folder)), "anchors", {"rows": table.num_rows, "first": table["id"][0].as_py()})
    write_table(step, table, 100)
    return step


def stage(tiny: str, anchors: Step, **changes: Any) -> OneShotScores:
    return OneShotScores(tiny, anchors, **{"precision": "float32", "device": "cpu", "template": "plain", **changes})


def run(one: OneShotScores, table: pa.Table) -> list[dict[str, Any]]:
    return one(table.select(one.columns_in)).to_pylist()


ROWS = [(p[:60], r[:60]) for p, r in mixed_rows(14, seed=3)]


@pytest.mark.parametrize("template", ["plain", "alpaca"])
@pytest.mark.parametrize("batch_tokens", [4096, 300])
def test_equals_a_computation_without_kept_keys(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, batch_tokens: int
) -> None:
    monkeypatch.setattr("engine.models.one_shot.BATCH_TOKENS", {"cpu": batch_tokens})
    table = texts(ROWS)
    one = stage(tiny, anchors_of(tmp_path, table.slice(0, 6)), template=template)
    assert len(one.anchors) == 6 and (len(one._batches(100)) == 1) == (batch_tokens == 4096)
    contexts = Contexts(transformers.AutoTokenizer.from_pretrained(tiny), template)

    def likelihood(before: list[int], prompt: str, response: str) -> float:
        context, ids = contexts.before("", "", "", prompt)[1:], contexts.encode(response)
        return -naive(tiny, [*before, *context], ids) * len(ids)

    anchors = {anchor.id: k for k, anchor in enumerate(one.anchors)}
    zero = [likelihood([0], *ROWS[k]) for k in range(6)]
    for k in range(6):
        assert one.zero_A[anchors[f"{k:032x}"]] == pytest.approx(zero[k], abs=1e-3)
    for at, found in list(enumerate(run(one, table)))[3:9]:  # three of them are anchors themselves
        prompt, response = ROWS[at]
        before = [*contexts.before("", "", "", prompt), *contexts.encode(response), *contexts.encode("\n\n")]
        gains = [likelihood(before, *ROWS[k]) - zero[k] for k in range(6) if k != at]
        assert min(abs(gain) for gain in gains) > 1e-3  # or the comparison would be a matter of rounding
        assert found == {"anchors_helped": sum(g > 0 for g in gains), "anchors": len(gains), "error": None}


def test_order_split_and_order_of_anchors_do_not_matter(tiny: str, tmp_path: Path) -> None:
    table = texts([*ROWS, ("why " * 200, "wet")])
    one = stage(tiny, anchors_of(tmp_path / "a", table.slice(0, 6)), max_tokens=400)
    expected = run(one, table)
    assert len({row["anchors_helped"] for row in expected}) > 2
    order = np.random.default_rng(1).permutation(len(table))
    other = stage(tiny, anchors_of(tmp_path / "b", table.slice(0, 6).take([5, 2, 0, 1, 4, 3])), max_tokens=400)
    assert run(other, table.take(pa.array(order))) == [expected[k] for k in order]
    assert [row for k in range(len(table)) for row in run(one, table.slice(k, 1))] == expected
    assert np.array_equal(one.zero_A, other.zero_A)


def test_what_does_not_fit_is_left_out_or_an_error_row(tiny: str, tmp_path: Path) -> None:
    table = texts([("why ?", "wet"), ("why ?", "wet " * 100), ("sea", "x"), ("sea " * 150, "y")])
    one = stage(tiny, anchors_of(tmp_path / "a", table.slice(0, 2)), anchor_tokens=40, max_tokens=60)
    assert [anchor.id for anchor in one.anchors] == ["0" * 32]
    alone, _, good, long = run(one, table)
    assert alone == {"anchors_helped": None, "anchors": None, "error": "the row is the only anchor"}
    assert good["error"] is None and good["anchors"] == 1
    assert long["anchors_helped"] is None and "leave no room for the anchors in 60" in long["error"]
    with pytest.raises(DataError, match="none of 1 anchors has 8 tokens or less"):
        stage(tiny, anchors_of(tmp_path / "b", table.slice(1, 1)), anchor_tokens=8)
    assert one(table.slice(0, 0).select(one.columns_in)).num_rows == 0


def test_a_score_that_is_not_finite_is_an_error_row(tiny: str, tmp_path: Path) -> None:
    table = texts([("why", "wet"), ("sea", "poem"), ("a ?", "poem")])
    one = stage(tiny, anchors_of(tmp_path, table.slice(0, 1)))
    with torch.no_grad():
        one.causal.body.embed_tokens.weight[one.contexts.encode("?")] = float("nan")
    _, good, bad = run(one, table)
    assert good["error"] is None and bad["error"] == "the model's score is not a finite number"
