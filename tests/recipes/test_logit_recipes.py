"""DEITA, SelectIT and Nuggets as whole runs: equal to their definitions, known ids, any split, any order."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from engine.artifacts import Step
from engine.config import RunConfig
from engine.data.vectors import vectors_from_arrow
from engine.errors import ConfigError
from engine.models.causal import count_parameters
from engine.recipes.deita import Config as DeitaConfig
from engine.recipes.selectit import model_weights
from engine.scoring.arithmetic import Agreement
from engine.scoring.digits import values_of
from engine.scoring.turns import TurnProduct
from engine.settings import load_config
from engine.store import Store
from tests.conftest import Recorder
from tests.fake_server import FakeServer
from tests.paid.cli_runs import endpoint
from tests.runs import outputs, run_local, run_ray
from tests.token_models import make_tiny_llama

RECIPES = ("deita", "selectit", "nuggets")
BUDGET = 12
TOO_LONG = "\u6d77" * 500  # 1,500 tokens of the tiny models


def row(*texts: str) -> str:
    """A line of a pool, the user first."""
    roles = ("user", "assistant")
    return json.dumps({"messages": [{"role": roles[k % 2], "content": t} for k, t in enumerate(texts)]}) + "\n"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, small_pool: Path) -> Path:
    """Rows of the example pool, rows of several turns, and one too long for the model; the tiny encoder beside it."""

    folder = tmp_path_factory.mktemp("logit_pool")
    (folder / "encoder").symlink_to(small_pool.parent / "encoder")
    lines = [line for line in small_pool.read_text(encoding="utf-8").splitlines() if len(line.encode()) < 700]
    usable = [found for found in map(conversation, lines) if found][:44]
    turns = [row(*usable[k], *usable[k + 1]) for k in range(0, 12, 2)]
    rows = [row(*pair) for pair in usable] + turns + [row(TOO_LONG, "no")]
    (folder / "pool.jsonl").write_text("".join(rows), encoding="utf-8")
    return folder / "pool.jsonl"


def conversation(line: str) -> tuple[str, str] | None:
    """Prompt and response of a row of the example pool that has one turn and nothing else."""
    try:
        messages = json.loads(line)["messages"]
        texts = [message["content"].strip() for message in messages]
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    if [message["role"] for message in messages] != ["user", "assistant"] or not all(texts):
        return None
    return texts[0], texts[1]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, pool: Path) -> list[Path]:
    folder, lines = tmp_path_factory.mktemp("tiny"), pool.read_text(encoding="utf-8").splitlines()[:-1]
    small = make_tiny_llama(folder / "small", lines, positions=2048, hidden_size=16)
    return [small, make_tiny_llama(folder / "llama", lines, positions=2048)]


def config_for(recipe: str, pool: Path, models: list[Path], out: Path, *overrides: str) -> RunConfig:
    common = [
        f"out={out}", "data.part_rows=20", f"budget={BUDGET}", "recipe.max_tokens=1400", "recipe.precision=float32",
        f"recipe.model={models[1]}", f"encoder.model={pool.parent / 'encoder'}", "encoder.max_tokens=64",
    ]  # fmt: skip
    own = {
        "deita": ["recipe.similarity=0.98"],
        "selectit": [
            f"recipe.models=[{{model: {models[0]}}}, {{model: {models[1]}}}]", "recipe.prompts=[accuracy, example]",
        ],
        "nuggets": ["recipe.anchors=5", "recipe.anchor_tokens=500"],
    }  # fmt: skip
    return load_config(recipe, [str(pool), *common, *own[recipe], *overrides])


def ids(out: Path) -> list[str]:
    return (out / "ids.txt").read_text().split()


def scores(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "scores").to_pylist()


def step(out: Path, name: str) -> pa.Table:
    """The only step of that name."""
    (folder,) = (out / "steps").glob(f"{name}-*")
    return Step.at(Store(str(out)), f"steps/{folder.name}").read_all()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, pool: Path, models: list[Path]) -> dict[str, Path]:
    found = {}
    for recipe in RECIPES:
        found[recipe] = tmp_path_factory.mktemp(recipe) / "out"
        run_local(config_for(recipe, pool, models, found[recipe]), Recorder())
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_row_that_does_not_fit_has_no_score_and_is_not_selected(finished: dict[str, Path], recipe: str) -> None:
    rows = scores(finished[recipe])
    column = {"deita": "evol", "selectit": "selectit", "nuggets": "golden"}[recipe]
    bad = [row for row in rows if row["error"] is not None]
    assert len(bad) == 1 and bad[0]["prompt_chars"] == 500 and len(rows) == 51
    assert bad[0][column] is None and not bad[0]["selected"]
    assert bad[0]["reason"] == f"not scored: {bad[0]['error']}"
    assert all(row[column] is not None for row in rows if row["error"] is None)
    assert len(ids(finished[recipe])) == BUDGET


def test_deita_is_a_walk_by_the_sum_over_turns(finished: dict[str, Path]) -> None:
    out = finished["deita"]
    rows, x_ND = scores(out), vectors_from_arrow(step(out, "embed_pairs")["vector"]).astype(np.float64)
    turns = [len(row["complexity"]) for row in rows if row["error"] is None]
    assert turns == [row["turns"] for row in rows if row["error"] is None] and set(turns) == {1, 2}
    for row in rows:
        if row["error"] is None:
            products = [c * q for c, q in zip(row["complexity"], row["quality"], strict=True)]
            assert all(1 <= c <= 6 for c in row["complexity"] + row["quality"])
            assert row["evol"] == pytest.approx(sum(products))
    able = sorted((row for row in rows if row["evol"] is not None), key=lambda row: (-row["evol"], row["id"]))
    taken: list[dict[str, Any]] = []
    for row in able:
        if len(taken) < BUDGET and all(x_ND[row["row"]] @ x_ND[other["row"]] < 0.98 for other in taken):
            taken.append(row)
    assert ids(out) == [row["id"] for row in taken] != [row["id"] for row in able[:BUDGET]]
    assert {row["reason"] for row in taken} == {"unlike the rows taken before it"}


def test_selectit_is_the_weighed_agreement_of_prompts(finished: dict[str, Path], models: list[Path]) -> None:
    sizes = [count_parameters(str(model)) for model in models]
    assert sizes[0] < sizes[1]
    rows = scores(finished["selectit"])
    for row in (row for row in rows if row["error"] is None):
        sentence = []
        for j in (1, 2):
            of_prompts = np.array([row[f"token_{j}_1"], row[f"token_{j}_2"]])
            assert ((of_prompts >= 0) & (of_prompts <= 5)).all()
            sentence.append(of_prompts.mean() / (1 + 0.2 * of_prompts.std()))
        assert row["selectit"] == pytest.approx(np.dot(sizes, sentence) / sum(sizes))
    able = sorted((row for row in rows if row["error"] is None), key=lambda row: (-row["selectit"], row["id"]))
    assert ids(finished["selectit"]) == [row["id"] for row in able[:BUDGET]]
    assert len(list((finished["selectit"] / "steps").glob("digits-*"))) == 4  # one pass per model and prompt


def test_nuggets_tries_the_rows_nearest_to_the_centres(finished: dict[str, Path]) -> None:
    out = finished["nuggets"]
    x_ND = vectors_from_arrow(step(out, "embed_pairs")["vector"]).astype(np.float64)
    centroids_KD = vectors_from_arrow(step(out, "centroids")["vector"]).astype(np.float64)
    anchors = step(out, "anchors")
    assert set(anchors["row"].to_pylist()) == set((x_ND @ centroids_KD.T).argmax(axis=0).tolist())
    rows = scores(out)
    short = {row["id"] for row in anchors.to_pylist() if row["prompt"] != TOO_LONG}
    for row in (row for row in rows if row["error"] is None):
        assert row["anchors"] == len(short) - (row["id"] in short)
        assert row["golden"] == row["anchors_helped"] / row["anchors"]
    able = sorted((row for row in rows if row["error"] is None), key=lambda row: (-row["golden"], row["id"]))
    assert len({row["golden"] for row in able}) > 2
    assert ids(out) == [row["id"] for row in able[:BUDGET]]


# First ids of the pool with the tiny models. A change here is a change of the method, or of the models' maker.
GOLDEN = {
    "deita": ["648c46fd", "dce21477", "958a7ae4", "7d91a00e", "0a8011a0"],
    "selectit": ["b0f3f666", "0a8011a0", "d9f37eac", "b3c194f2", "8e5b3fea"],
    "nuggets": ["b0f3f666", "b3ab72d4", "c02cb78b", "cc5e0764", "0a8011a0"],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_golden_ids(finished: dict[str, Path], recipe: str) -> None:
    assert [key[:8] for key in ids(finished[recipe])[:5]] == GOLDEN[recipe]


@pytest.mark.parametrize("recipe", RECIPES)
def test_order_of_rows_parts_and_shards_do_not_matter(
    finished: dict[str, Path], pool: Path, models: list[Path], tmp_path: Path, recorder: Any, recipe: str
) -> None:
    lines = pool.read_bytes().splitlines(keepends=True)
    random.Random(5).shuffle(lines)
    (tmp_path / "encoder").symlink_to(pool.parent / "encoder")
    (tmp_path / "pool.jsonl").write_bytes(b"".join(lines))
    config = config_for(recipe, tmp_path / "pool.jsonl", models, tmp_path / "out", "data.part_rows=17")
    run_local(config, recorder, shards=3)
    assert ids(tmp_path / "out") == ids(finished[recipe])
    varying = {"row", "line", "file", "source"}
    found, expected = (
        {row["id"]: {k: v for k, v in row.items() if k not in varying} for row in scores(out)}
        for out in (tmp_path / "out", finished[recipe])
    )
    assert found == expected


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_the_same_bytes(
    finished: dict[str, Path], pool: Path, models: list[Path], tmp_path: Path, recorder: Any, ray_cluster: Any
) -> None:
    run_ray(config_for("nuggets", pool, models, tmp_path / "out"), recorder, workers=2, shards=2)
    assert outputs(tmp_path / "out") == outputs(finished["nuggets"])


def test_recipes_in_one_folder_share_what_they_have_in_common(
    pool: Path, models: list[Path], tmp_path: Path, recorder: Any
) -> None:
    out = tmp_path / "out"
    run_local(config_for("deita", pool, models, out), recorder)
    run_local(config_for("deita", pool, models, out, "recipe.similarity=0.9", "recipe.turns=mean"), recorder)
    run_local(config_for("nuggets", pool, models, out), recorder)
    passes = [(name, reused) for name, reused in recorder.done if name in ("digits", "embed_pairs")]
    assert passes.count(("digits", False)) == 2 and passes.count(("digits", True)) == 2
    assert passes.count(("embed_pairs", False)) == 1
    mean = {row["id"]: row["evol"] for row in scores(out) if "evol" in row}
    assert mean == {}  # the folder's scores are the last run's
    golden = [row["golden"] for row in scores(out) if row["golden"] is not None]
    run_local(config_for("nuggets", pool, models, out, "recipe.above=0.5"), recorder)
    left = sum(row["reason"] == "among the highest golden" for row in scores(out))
    assert left == min(BUDGET, sum(value > 0.5 for value in golden))


def test_deita_with_scores_that_are_there(pool: Path, models: list[Path], tmp_path: Path, recorder: Any) -> None:
    rows = [json.loads(line) for line in pool.read_text(encoding="utf-8").splitlines()]
    for k, row in enumerate(rows):
        row |= {"c": k, "q": 1 if k % 2 else "none"}  # "none" is no number
    (tmp_path / "encoder").symlink_to(pool.parent / "encoder")
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = [
        "recipe.complexity={kind: recorded, column: c}",
        "recipe.quality={kind: recorded, column: q}",
        "max_failed=0.6",
    ]
    config = config_for("deita", tmp_path / "pool.jsonl", models, tmp_path / "out", *given, "recipe.similarity=0.999")
    run_local(config, recorder)
    found = {row["id"]: row for row in scores(tmp_path / "out")}
    chosen = [found[key]["row"] for key in ids(tmp_path / "out")]
    assert chosen == sorted(chosen, reverse=True) and all(row % 2 for row in chosen)
    assert [row["evol"] for row in found.values()] == [k if k % 2 else None for k in range(len(rows))]
    assert not list((tmp_path / "out" / "steps").glob("digits-*"))
    with pytest.raises(ValidationError, match="`turns` must be last"):
        DeitaConfig.model_validate({"quality": {"kind": "recorded", "column": "q"}})
    with pytest.raises(ValidationError, match="take `turns` from the recipe"):
        DeitaConfig.model_validate({"quality": {"kind": "digits", "turns": "sum"}})


def digits_table(rows: list[list[list[float]] | None]) -> pa.Table:
    return pa.table({"p": pa.array(rows, pa.list_(pa.list_(pa.float32())))})


def test_values_of_digit_probabilities() -> None:
    sure, torn = [0.0, 0.0, 1.0], [0.25, 0.25, 0.5]
    table = digits_table([[sure], None, [torn, sure], [[0.5, 0.5, 0.0]]])
    assert values_of(table, 3, "expectation", "each").to_pylist() == [[3.0], None, [2.25, 3.0], [1.5]]
    assert values_of(table, 3, "expectation", "sum").to_pylist() == [3.0, None, 5.25, 1.5]
    assert values_of(table, 3, "expectation", "mean").to_pylist() == [3.0, None, 2.625, 1.5]
    assert values_of(table, 3, "expectation", "last").to_pylist() == [3.0, None, 3.0, 1.5]
    assert values_of(table, 3, "token", "each").to_pylist() == [[3.0], None, [0.75, 3.0], [0.25]]
    e, flat = np.exp(1.0), 3 * (np.exp(0.5) - np.exp(0.25)) / (np.exp(0.5) + 2 * np.exp(0.25))
    twice = values_of(table, 3, "token_twice", "each").to_pylist()
    assert twice[0] == pytest.approx([3 * (e - 1) / (e + 2)]) and twice[2][0] == pytest.approx(flat)
    assert values_of(digits_table([None]), 3, "token", "sum").to_pylist() == [None]
    assert values_of(digits_table([]), 3, "token", "each").to_pylist() == []


def test_turn_products_and_agreement() -> None:
    lists = {"c": [[1.0, 2.0], [3.0], None, [1.0], []], "q": [[5.0, 7.0], [2.0], [1.0], [1.0, 2.0], []]}
    table = pa.table({name: pa.array(values, pa.list_(pa.float64())) for name, values in lists.items()})
    for take, expected in (("sum", 19.0), ("mean", 9.5), ("last", 14.0)):
        assert TurnProduct(of=["c", "q"], take=take).derive(table).to_pylist() == [expected, 6.0, None, None, None]
    assert TurnProduct(of=["c", "q"]).derive(table.slice(1, 1)).to_pylist() == [6.0]
    numbers = pa.table({"a": [1.0, 2.0, None], "b": [3.0, 2.0, 1.0]})
    assert Agreement(of=["a", "b"], alpha=0.5).derive(numbers).to_pylist() == [2 / 1.5, 2.0, None]


def test_weights_of_models() -> None:
    assert model_weights([7, 13, 70], compat=False) == [7 / 90, 13 / 90, 70 / 90]
    assert model_weights([7, 13, 70], compat=True) == [7 / 20, 13 / 20, 70 / 90]
    assert model_weights([7, 13], compat=True) == [7 / 20, 13 / 20]
    assert model_weights([7], compat=True) == [1.0]


def test_deita_by_a_judge_multiplies_turn_by_turn(
    small_pool: Path, models: list[Path], tmp_path: Path, recorder: Any
) -> None:
    """The scripted judge gives the number after `quality=`, whatever it is asked."""

    def scorer(name: str, **more: Any) -> str:
        rater = endpoint(server.url, prompt=f"deita-{name}", **more)
        return f"recipe.{name}={json.dumps({'kind': 'rating', 'rater': rater})}"

    given = [[k % 5 + 1, k // 6 + 1][: 1 + k % 2] for k in range(12)]
    turns = [
        [(f"question {k} {t}", f"quality={number} answer {k}") for t, number in enumerate(numbers)]
        for k, numbers in enumerate(given)
    ]
    (tmp_path / "encoder").symlink_to(small_pool.parent / "encoder")
    (tmp_path / "pool.jsonl").write_text("".join(row(*(t for turn in one for t in turn)) for one in turns))
    out, names = tmp_path / "out", ("complexity", "quality")
    with FakeServer() as server:
        few = [*map(scorer, names), "budget=3", "recipe.similarity=1.0"]
        run_local(config_for("deita", tmp_path / "pool.jsonl", models, out, *few), recorder)
        assert server.stats()["completed"] == 2 * sum(map(len, given))
        with pytest.raises(ConfigError, match="take `turns` from the recipe"):
            config_for("deita", tmp_path / "pool.jsonl", models, out, scorer("quality", turns="mean"))
    rows = scores(out)
    assert [found["complexity"] for found in rows] == [found["quality"] for found in rows] == given
    assert [found["evol"] for found in rows] == [sum(n * n for n in numbers) for numbers in given]
    evol = {found["id"]: found["evol"] for found in rows}
    assert [evol[key] for key in ids(out)] == sorted(evol.values(), reverse=True)[:3]
