"""IFD, Superfiltering and perplexity as whole runs: known ids, any split, any order, and one pass for all of them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from engine.config import RunConfig
from engine.errors import DataError, TooManyFailures
from engine.scoring.tokens import ifd_scores
from engine.selecting.ranks import middle_ranks
from engine.settings import load_config
from tests.conftest import Recorder
from tests.runs import outputs, run_local, run_ray
from tests.token_models import make_tiny_llama

RECIPES = ("ifd", "superfiltering", "perplexity")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, small_pool: Path) -> Path:
    lines = small_pool.read_text(encoding="utf-8").splitlines()
    return make_tiny_llama(tmp_path_factory.mktemp("tiny") / "llama", lines[:20], positions=1024)


def config_for(recipe: str, pool: Path, model: Path, out: Path, *overrides: str) -> RunConfig:
    common = [
        f"out={out}", "data.part_rows=24", "budget=20", f"recipe.model={model}", "recipe.max_tokens=400",
        "recipe.precision=float32",
    ]  # fmt: skip
    return load_config(recipe, [str(pool), *common, *overrides])


def ids(out: Path) -> list[str]:
    return (out / "ids.txt").read_text().split()


def scores(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "scores").to_pylist()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_pool: Path, model: Path) -> dict[str, Path]:
    """One run of each recipe with its defaults."""
    found = {}
    for recipe in RECIPES:
        found[recipe] = tmp_path_factory.mktemp(recipe) / "out"
        run_local(config_for(recipe, small_pool, model, found[recipe]), Recorder())
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_selection_follows_from_the_scores_and_every_row_has_a_reason(finished: dict[str, Path], recipe: str) -> None:
    rows = scores(finished[recipe])
    scored = [row for row in rows if row["error"] is None]
    assert 100 < len(scored) < len(rows)
    for row in scored:
        with_prompt, alone = row["nll_conditioned"], row["nll_alone"]
        if recipe == "perplexity":
            assert row["perplexity"] == pytest.approx(np.exp(with_prompt))
        else:
            expected = with_prompt / alone if recipe == "ifd" else np.exp(with_prompt - alone)
            assert row["ifd"] == pytest.approx(expected)
    if recipe == "perplexity":
        ranked = sorted(scored, key=lambda row: (row["nll_conditioned"], row["id"]))
        first = (len(ranked) - 20) // 2
        assert set(ids(finished[recipe])) == {row["id"] for row in ranked[first : first + 20]}
    else:
        able = [row for row in scored if row["ifd"] < 1 and (recipe == "superfiltering" or not row["tokens_cut"])]
        assert 20 < len(able) < len(scored)
        ranked = sorted(able, key=lambda row: (-row["ifd"], row["id"]))
        assert ids(finished[recipe]) == [row["id"] for row in ranked[:20]]
    reasons = {row["reason"].partition(":")[0] for row in rows}
    reasons -= {"not scored", "tokens_cut above 0"}
    if recipe == "perplexity":
        assert reasons == {"in the middle of perplexity", "far from the middle of perplexity"}
    else:
        assert reasons == {"ifd of 1 or more", "among the highest ifd", "lower ifd"}


# First ids of the small pool with the tiny model. A change here is a change of the method, or of the model's maker.
GOLDEN = {
    "ifd": ["007bace9", "4935c785", "64f95e35", "cab7560b", "8c7bd9d9"],
    "superfiltering": ["475b6952", "37ebf102", "7c9f85cd", "14626d2c", "840b07f3"],
    "perplexity": ["aff4d7df", "ff5d66fa", "c729a17f", "5e0606de", "663feedf"],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_golden_ids(finished: dict[str, Path], recipe: str) -> None:
    assert [key[:8] for key in ids(finished[recipe])[:5]] == GOLDEN[recipe]


@pytest.mark.parametrize("recipe", ["ifd", "perplexity"])
def test_order_of_rows_parts_and_shards_do_not_matter(
    finished: dict[str, Path], small_pool: Path, model: Path, tmp_path: Path, recorder: Any, recipe: str
) -> None:
    run_local(config_for(recipe, small_pool, model, tmp_path / "shards"), recorder, shards=3)
    assert outputs(tmp_path / "shards") == outputs(finished[recipe])
    lines = small_pool.read_bytes().splitlines(keepends=True)
    random.Random(5).shuffle(lines)
    (tmp_path / "pool.jsonl").write_bytes(b"".join(lines))
    run_local(config_for(recipe, tmp_path / "pool.jsonl", model, tmp_path / "a", "data.part_rows=61"), recorder)
    assert ids(tmp_path / "a") == ids(finished[recipe])
    varying = {"row", "line", "file", "source"}
    found, expected = (
        {row["id"]: {k: v for k, v in row.items() if k not in varying} for row in scores(out)}
        for out in (tmp_path / "a", finished[recipe])
    )
    assert found == expected


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_the_same_bytes(
    finished: dict[str, Path], small_pool: Path, model: Path, tmp_path: Path, recorder: Any, ray_cluster: Any
) -> None:
    run_ray(config_for("ifd", small_pool, model, tmp_path / "out"), recorder, workers=2, shards=3)
    assert outputs(tmp_path / "out") == outputs(finished["ifd"])


def test_recipes_on_one_pool_and_model_share_the_pass(
    small_pool: Path, model: Path, tmp_path: Path, recorder: Any
) -> None:
    same = ["recipe.template=alpaca"]
    for recipe in RECIPES:
        run_local(config_for(recipe, small_pool, model, tmp_path / "out", *same), recorder)
    assert [reused for name, reused in recorder.done if name == "token_scores"] == [False, True, True]
    assert len(list((tmp_path / "out" / "steps").glob("token_scores-*"))) == 1
    run_local(config_for("ifd", small_pool, model, tmp_path / "out", *same, "recipe.ratio=perplexity"), recorder)
    assert [reused for name, reused in recorder.done if name == "token_scores"][-1]
    run_local(config_for("ifd", small_pool, model, tmp_path / "out", "recipe.template=plain"), recorder)
    assert not [reused for name, reused in recorder.done if name == "token_scores"][-1]


@pytest.mark.parametrize("band", ["low", "high"])
def test_bands_of_perplexity(
    finished: dict[str, Path], small_pool: Path, model: Path, tmp_path: Path, recorder: Any, band: str
) -> None:
    run_local(config_for("perplexity", small_pool, model, tmp_path / "out", f"recipe.band={band}"), recorder)
    sign = 1 if band == "low" else -1
    rows = [row for row in scores(finished["perplexity"]) if row["error"] is None]
    ranked = sorted(rows, key=lambda row: (sign * row["nll_conditioned"], row["id"]))
    assert ids(tmp_path / "out") == [row["id"] for row in ranked[:20]]


def test_fewer_rows_than_the_budget_and_none_at_all(
    small_pool: Path, model: Path, tmp_path: Path, recorder: Any
) -> None:
    out = tmp_path / "out"
    summary = run_local(config_for("ifd", small_pool, model, out, "budget=150"), recorder)
    able = [row for row in scores(out) if row["reason"] == "among the highest ifd"]
    assert summary["selected"] == len(able) == len(ids(out)) < 150
    assert f"{len(able):,} rows can be chosen, fewer than the budget of 150" in recorder.notes
    everything = config_for("ifd", small_pool, model, out, "budget=150", "recipe.max_ifd=null", "recipe.truncated=keep")
    assert run_local(everything, recorder)["selected"] == 150
    with pytest.raises(DataError, match=r"most often: ifd of 0\.001 or more"):
        run_local(config_for("ifd", small_pool, model, out, "recipe.max_ifd=0.001"), recorder)


def test_too_many_rows_without_a_score_stop_the_run(
    small_pool: Path, model: Path, tmp_path: Path, recorder: Any
) -> None:
    with pytest.raises(TooManyFailures, match="rows failed"):
        run_local(config_for("ifd", small_pool, model, tmp_path / "out", "recipe.max_tokens=30"), recorder)


def test_several_turns_and_a_row_without_room(model: Path, tmp_path: Path, recorder: Any) -> None:
    def row(*texts: str) -> dict[str, Any]:
        return {"messages": [{"role": ("user", "assistant")[k % 2], "content": t} for k, t in enumerate(texts)]}

    rows = [row("a question", f"answer {k}", "and then", f"this {k}") for k in range(30)] + [row("x " * 900, "y")]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    changes = ["budget=5", "recipe.max_ifd=null"]
    run_local(config_for("ifd", tmp_path / "pool.jsonl", model, tmp_path / "out", *changes), recorder)
    found = scores(tmp_path / "out")
    assert [r["ifd"] is None for r in found] == [False] * 30 + [True]
    assert found[-1]["reason"].startswith("not scored: ") and found[-1]["reason"].endswith("leave no room in 400")


def test_ifd_formulas() -> None:
    conditioned, alone = np.float32([1.0, 2.0, 0.5, 0.0]), np.float32([2.0, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(ifd_scores(conditioned, alone, "loss"), [0.5, 2.0, np.nan, np.nan])
    np.testing.assert_allclose(ifd_scores(conditioned, alone, "perplexity"), np.exp([-1.0, 1.0, 0.5, 0.0]))


def test_middle_ranks() -> None:
    assert middle_ranks(5, 3).tolist() == [2, 1, 3]
    assert middle_ranks(4, 2).tolist() == [1, 2]
    assert middle_ranks(4, 1).tolist() == [1]
    assert sorted(middle_ranks(5, 9).tolist()) == [0, 1, 2, 3, 4]
    assert middle_ranks(0, 3).tolist() == []
    for of in range(1, 12):
        for num in range(1, of + 1):
            ranks = sorted(middle_ranks(of, num).tolist())
            assert ranks == list(range((of - num) // 2, (of - num) // 2 + num))
