"""Selectors by vectors in compositions: as the recipe in the whole pool, as the definition among some rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from engine.config import RunConfig
from engine.schema import seeded_hash
from engine.settings import load_config
from engine.store import Store
from tests.conftest import Recorder
from tests.greedy_definitions import plain_bins, plain_facility, plain_filter, plain_herding, plain_kcenter_by_hash
from tests.greedy_runs import arrays_of, ids, pool_of, scores, with_vectors
from tests.runs import outputs, run_local, run_ray
from tests.token_models import make_tiny_llama

BUDGET = 30
# recipe, its settings, and the selector of the same method
METHODS = {
    "kcenter": ("kcenter", {}),
    "kcenter cluster": ("kcenter", {"scope": "cluster", "cluster_rows": 40}),
    "herding": ("herding", {}),
    "facility_location": ("facility_location", {}),
    "dq": ("graph_cut", {"bins": 4}),
}
LONG = {"kind": "top", "by": "words", "rows": 80}


def config_for(pool: Path, out: Path, recipe: dict[str, Any], *overrides: str) -> RunConfig:
    settings = {"data": {"path": str(pool), "part_rows": 24}, "out": str(out), "budget": BUDGET, "recipe": recipe}
    settings["encoder"] = {"model": str(pool.parent / "encoder"), "max_tokens": 64}
    (out.parent / f"{out.name}.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return load_config(str(out.parent / f"{out.name}.yaml"), list(overrides))


def composed(pool: Path, out: Path, *select: dict[str, Any]) -> RunConfig:
    words = {"words": {"kind": "length", "of": "response_words"}}
    return config_for(pool, out, {"name": "compose", "scores": words, "select": list(select)})


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, small_pool: Path) -> Path:
    """A run folder with the vectors of prompts and of pairs."""
    out = tmp_path_factory.mktemp("vectors") / "out"
    chain = [{"kind": "herding", "text": "pair", "rows": 100}, {"kind": "herding"}]
    run_local(composed(small_pool, out, *chain), Recorder())
    return out


def run(pool: Path, embedded: Path, out: Path, *select: dict[str, Any], shards: int = 1) -> Path:
    run_local(composed(pool, with_vectors(embedded, out), *select), Recorder(), shards)
    return out


def among_long(out: Path, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, words and vectors of the 80 rows with the longest responses, in the pool's order."""
    found, words, x = arrays_of(*pool_of(out, text))
    lengths = np.array(scores(out)["words"])
    best = np.lexsort((words, -lengths))[:80]
    assert lengths[best[-1]] < lengths.max()
    at = np.sort(best)
    return found[at], words[at], x[at]


def plain_draw(x: np.ndarray, words: np.ndarray, num: int) -> list[int]:
    """From four bins of 20 rows, the same share of each by hash; 30 rows are 8, 8, 7 and 7."""
    order = plain_bins(x, words, 20, 3)
    bins = [order[:20], order[20:40], order[40:], np.setdiff1d(np.arange(len(x)), order).tolist()]
    keys = seeded_hash(words, 0, "dq")
    quotas = [num // 4 + (k < num % 4) for k in range(4)]
    return [
        row for rows, quota in zip(bins, quotas, strict=True) for row in sorted(rows, key=lambda r: keys[r])[:quota]
    ]


@pytest.mark.parametrize("name", METHODS)
def test_in_the_whole_pool_a_selector_is_its_recipe(
    small_pool: Path, embedded: Path, tmp_path: Path, name: str
) -> None:
    kind, settings = METHODS[name]
    out = run(small_pool, embedded, tmp_path / "selector", {"kind": kind, **settings})
    recipe = {"name": name.partition(" ")[0], **settings}
    run_local(config_for(small_pool, with_vectors(embedded, tmp_path / "recipe"), recipe), Recorder())
    assert ids(out) == ids(tmp_path / "recipe")
    assert not list((out / "steps").glob("space-*"))


@pytest.mark.parametrize(
    ("kind", "settings", "text", "plain"),
    [
        ("kcenter", {}, "prompt", plain_kcenter_by_hash),
        ("herding", {}, "prompt", plain_herding),
        ("facility_location", {}, "pair", plain_facility),
        ("graph_cut", {"bins": 4}, "pair", plain_draw),
    ],
)
def test_among_the_rows_left_a_selector_follows_its_definition(
    small_pool: Path, embedded: Path, tmp_path: Path, kind: str, settings: Any, text: str, plain: Any
) -> None:
    chain = [LONG, {"kind": kind, **settings}]
    out = run(small_pool, embedded, tmp_path / "one", *chain)
    found, words, x = among_long(out, text)
    assert ids(out) == found[plain(x, words, BUDGET)].tolist()
    reasons = scores(out)["reason"]
    assert len(set(reasons)) == 3 and reasons.count("lower words") == len(reasons) - 80
    run(small_pool, embedded, tmp_path / "three", *chain, shards=3)
    assert outputs(tmp_path / "three") == outputs(out)


@pytest.mark.parametrize("order", ["highest", "lowest"])
def test_diverse_takes_rows_by_score_unless_one_like_them_is_taken(
    small_pool: Path, embedded: Path, tmp_path: Path, order: str
) -> None:
    chain = [{"kind": "diverse", "by": "words", "order": order, "similarity": 0.99}]
    out = run(small_pool, embedded, tmp_path / "out", *chain)
    found, words, x = arrays_of(*pool_of(out, "pair"))
    lengths = np.array(scores(out)["words"])
    walk = np.lexsort((words, -lengths if order == "highest" else lengths))
    kept = plain_filter(x, walk, 0.99, BUDGET)
    assert len(kept) == BUDGET and ids(out) == found[kept].tolist()
    left_out = np.array(scores(out)["reason"]) == "similarity of 0.99 or more to a row taken before it"
    last = walk.tolist().index(kept[-1])
    assert np.flatnonzero(left_out).tolist() == np.sort(np.setdiff1d(walk[:last], kept)).tolist() != []
    run(small_pool, embedded, tmp_path / "three", *chain, shards=3)
    assert outputs(tmp_path / "three") == outputs(out)


def test_diverse_without_a_score_takes_the_order_of_what_is_left(
    small_pool: Path, embedded: Path, tmp_path: Path
) -> None:
    strict = {"kind": "diverse", "similarity": 0.97}
    found, words, x = arrays_of(*pool_of(embedded, "pair"))
    drawn = np.argsort(seeded_hash(words, 0, "diverse"))
    out = run(small_pool, embedded, tmp_path / "drawn", strict)
    assert ids(out) == found[plain_filter(x, drawn, 0.97, BUDGET)].tolist()
    out = run(small_pool, embedded, tmp_path / "left", LONG, strict)
    lengths = np.array(scores(out)["words"])
    walk = np.lexsort((words, -lengths))[:80]
    assert ids(out) == found[plain_filter(x, walk, 0.97, BUDGET)].tolist()


def test_diverse_leaves_fewer_rows_when_all_others_are_alike(small_pool: Path, embedded: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    chain = [{"kind": "diverse", "by": "words", "similarity": 0.5}]
    run_local(composed(small_pool, with_vectors(embedded, tmp_path / "out"), *chain), recorder)
    few = len(ids(tmp_path / "out"))
    assert 0 < few < BUDGET
    assert recorder.notes == [f"{few} rows can be chosen, fewer than the budget of {BUDGET}"]
    assert set(scores(tmp_path / "out")["reason"]) == {
        "unlike the rows taken before it", "similarity of 0.5 or more to a row taken before it",
    }  # fmt: skip


EVERYTHING = [
    {"kind": "diverse", "by": "words", "similarity": 0.99, "rows": 120},
    {"kind": "graph_cut", "bins": 3, "rows": 90},
    {"kind": "facility_location", "scope": "cluster", "cluster_rows": 30, "rows": 50},
    {"kind": "kcenter"},
]


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_the_same_bytes(small_pool: Path, embedded: Path, tmp_path: Path, ray_cluster: Any) -> None:
    out = run(small_pool, embedded, tmp_path / "local", *EVERYTHING)
    config = composed(small_pool, with_vectors(embedded, tmp_path / "ray"), *EVERYTHING)
    run_ray(config, Recorder(), workers=2, shards=3)
    assert outputs(tmp_path / "ray") == outputs(out)
    again = Recorder()
    run_local(config, again, 2)
    assert all(reused for name, reused in again.done if name != "write"), again.done
    assert {name.partition("-")[0] for name in Store(out).list("steps")} >= {"space", "picks", "centroids"}


def test_superfiltering_d_is_facility_location_among_the_highest_ifd(
    small_pool: Path, embedded: Path, tmp_path: Path
) -> None:
    lines = small_pool.read_text(encoding="utf-8").splitlines()
    model = make_tiny_llama(tmp_path / "llama", lines[:20], positions=1024)
    recipe = {"name": "superfiltering", "model": str(model), "max_tokens": 400, "precision": "float32"}
    diverse = {**recipe, "diverse": True, "shortlist": 60}
    run_local(config_for(small_pool, with_vectors(embedded, tmp_path / "out"), diverse), Recorder())
    found, words, x = arrays_of(*pool_of(tmp_path / "out", "pair"))
    ifd = np.array([np.nan if value is None else value for value in scores(tmp_path / "out")["ifd"]])
    able = np.flatnonzero(ifd < 1)
    best = np.sort(able[np.lexsort((words[able], -ifd[able]))[:60]])
    assert len(able) > 60
    assert ids(tmp_path / "out") == found[best][plain_facility(x[best], words[best], BUDGET)].tolist()
