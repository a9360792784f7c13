"""Recipes on vectors as whole runs: known ids, any split, any order, Ray, and going on after an interruption."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.algorithms.exact import ONE, similarities
from engine.algorithms.greedy_rules import Herding
from engine.algorithms.sampling import cluster_quotas
from engine.artifacts import Step
from engine.config import RunConfig
from engine.data.vectors import vectors_from_arrow
from engine.errors import ConfigError
from engine.greedy_index import GreedyIndex
from engine.local import LocalRuntime
from engine.pick_log import PickLog
from engine.schema import VECTOR
from engine.settings import load_config
from engine.store import Store
from tests.conftest import Recorder
from tests.greedy_definitions import (
    plain_bins,
    plain_facility,
    plain_filter,
    plain_herding,
    plain_kcenter,
    plain_kcenter_by_hash,
)
from tests.greedy_runs import arrays_of, ids, pool_of, scores, with_vectors
from tests.runs import outputs, run_local, run_ray

RECIPES = {
    "kcenter": [],
    "herding": [],
    "dq": ["recipe.bins=4"],
    "coreset": ["recipe.clusters=6"],
    "facility_location": [],
    "facility_location stochastic": ["recipe.variant=stochastic", "recipe.epsilon=0.3"],
    "facility_location cluster": ["recipe.scope=cluster", "recipe.cluster_rows=50"],
    "facility_location two rounds": ["recipe.scope=cluster", "recipe.cluster_rows=50", "recipe.two_rounds=true"],
    "kcenter cluster": ["recipe.scope=cluster", "recipe.cluster_rows=50"],
    "dq cluster": ["recipe.scope=cluster", "recipe.cluster_rows=50", "recipe.bins=3"],
}


def config_for(recipe: str, pool: Path, out: Path, *overrides: str) -> RunConfig:
    name = recipe.partition(" ")[0]
    common = [f"out={out}", f"encoder.model={pool.parent / 'encoder'}", "encoder.max_tokens=64", "data.part_rows=24"]
    return load_config(name, [str(pool), *common, "budget=40", *RECIPES[recipe], *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_pool: Path) -> dict[str, Path]:
    """One run of each recipe."""
    found: dict[str, Path] = {}
    for recipe in RECIPES:
        out = tmp_path_factory.mktemp("greedy") / "out"
        config = config_for(recipe, small_pool, out)
        for other in found.values():
            with_vectors(other, out)
        run_local(config, Recorder())
        found[recipe] = out
    return found


def test_kcenter_follows_its_definition(finished: dict[str, Path]) -> None:
    found, words, x = arrays_of(*pool_of(finished["kcenter"], "prompt"))
    chosen = ids(finished["kcenter"])
    first = int(np.flatnonzero(found == chosen[0])[0])
    expected = [first, *(row for row in plain_kcenter(x, words, 41, x[[first]]) if row != first)]
    assert chosen == found[expected[:40]].tolist()
    nearest = similarities(x, x[expected[:40]]).max(axis=1) / ONE
    assert np.allclose(scores(finished["kcenter"])["similarity"], nearest, atol=1e-6)


def test_herding_follows_its_definition(finished: dict[str, Path]) -> None:
    found, words, x = arrays_of(*pool_of(finished["herding"], "prompt"))
    assert ids(finished["herding"]) == found[plain_herding(x, words, 40)].tolist()
    typical = x.astype(np.float64) @ x.astype(np.float64).mean(axis=0)
    assert np.allclose(scores(finished["herding"])["mean_similarity"], typical, atol=1e-6)


def test_coreset_starts_from_the_cluster_centres(finished: dict[str, Path]) -> None:
    out = finished["coreset"]
    found, words, x = arrays_of(*pool_of(out, "prompt"))
    (name,) = [name for name in Store(out).list("steps") if name.startswith("centroids-")]
    centres = vectors_from_arrow(Step.at(Store(out), f"steps/{name}").read_all([VECTOR])[VECTOR])
    assert len(centres) == 6
    assert ids(out) == found[plain_kcenter(x, words, 40, centres)].tolist()
    assert scores(out)["cluster"] == similarities(x, centres).argmax(axis=1).tolist()


def test_facility_location_follows_its_definition(finished: dict[str, Path]) -> None:
    found, words, x = arrays_of(*pool_of(finished["facility_location"], "pair"))
    assert ids(finished["facility_location"]) == found[plain_facility(x, words, 40)].tolist()


@pytest.mark.parametrize(
    ("recipe", "text", "plain"),
    [("facility_location", "pair", plain_facility), ("kcenter", "prompt", plain_kcenter_by_hash)],
)
def test_clusters_select_among_themselves(finished: dict[str, Path], recipe: str, text: str, plain: Any) -> None:
    out = finished[f"{recipe} cluster"]
    found, words, x = arrays_of(*pool_of(out, text))
    table = scores(out)
    clusters, nearest = np.array(table["cluster"]), np.array(table["similarity"])
    chosen = set(ids(out))
    assert len(set(clusters.tolist())) > 2
    for label in set(clusters.tolist()):
        inside = np.flatnonzero(clusters == label)
        mine = chosen & set(found[inside].tolist())
        assert abs(len(mine) - 40 * len(inside) / len(x)) < 1
        picks = inside[plain(x[inside], words[inside], len(mine))]
        assert mine == set(found[picks].tolist())
        assert np.allclose(nearest[inside], similarities(x[inside], x[picks]).max(axis=1) / ONE, atol=1e-6)


def test_two_rounds_choose_among_the_candidates_of_the_clusters(finished: dict[str, Path]) -> None:
    out = finished["facility_location two rounds"]
    found, words, x = arrays_of(*pool_of(out, "pair"))
    clusters = np.array(scores(out)["cluster"])
    quotas = cluster_quotas(np.bincount(clusters), 80, "proportional").tolist()
    inside = [np.flatnonzero(clusters == label) for label in range(len(quotas))]
    named = [at[plain_facility(x[at], words[at], num)] for at, num in zip(inside, quotas, strict=True)]
    candidates = np.sort(np.concatenate(named))
    assert ids(out) == found[plain_facility(x, words, 40, candidates)].tolist()

    def f(run: str) -> float:
        chosen = np.flatnonzero(np.isin(found, ids(finished[run])))
        return float(similarities(x, x[chosen]).max(axis=1).sum())

    assert (
        abs(f("facility_location two rounds") / f("facility_location") - 1) < 0.001
    )  # greedy is not the best there is
    assert f("facility_location cluster") < f("facility_location two rounds")


def test_dq_in_clusters_makes_bins_of_each_and_draws_the_same_share(finished: dict[str, Path]) -> None:
    out = finished["dq cluster"]
    found, words, x = arrays_of(*pool_of(out, "pair"))
    table = scores(out)
    clusters, bins = np.array(table["cluster"]), np.array(table["bin"])
    drawn = np.isin(found, ids(out))
    assert len(set(clusters.tolist())) > 2 and drawn.sum() == 40
    for label in set(clusters.tolist()):
        inside = np.flatnonzero(clusters == label)
        assert len(inside) >= 3
        size = len(inside) // 3
        expected = np.full(len(inside), 2)
        expected[plain_bins(x[inside], words[inside], size, 2)] = np.repeat(np.arange(2), size)
        assert bins[inside].tolist() == expected.tolist()
        assert abs(drawn[inside].sum() - 40 * len(inside) / len(x)) < 1
        shares = np.bincount(expected[drawn[inside]], minlength=3) - drawn[inside].mean() * np.bincount(expected)
        assert (np.abs(shares) < 1).all()


def test_dq_draws_the_same_share_of_every_bin(finished: dict[str, Path]) -> None:
    found, words, x = arrays_of(*pool_of(finished["dq"], "pair"))
    size = len(x) // 4
    expected = np.full(len(x), 3)
    expected[plain_bins(x, words, size, 3)] = np.repeat(np.arange(3), size)
    bins = np.array(scores(finished["dq"])["bin"])
    assert bins.tolist() == expected.tolist()
    drawn = np.bincount(bins[np.isin(found, ids(finished["dq"]))])
    assert drawn.sum() == 40 and (np.abs(drawn - 40 * np.bincount(bins) / len(x)) < 1).all()


@pytest.mark.parametrize("shards", [3, 7])
@pytest.mark.parametrize("recipe", RECIPES)
def test_any_number_of_shards_gives_the_same_bytes(
    finished: dict[str, Path], small_pool: Path, tmp_path: Path, recipe: str, shards: int
) -> None:
    out = with_vectors(finished[recipe], tmp_path / "out")
    run_local(config_for(recipe, small_pool, out), Recorder(), shards)
    assert outputs(out) == outputs(finished[recipe])


@pytest.fixture(scope="module")
def permuted(tmp_path_factory: pytest.TempPathFactory, small_pool: Path) -> Path:
    """A folder with the same rows in another order, in `pool.jsonl`, and a run with their vectors, in `out`."""
    folder = tmp_path_factory.mktemp("permuted")
    lines = small_pool.read_bytes().splitlines(keepends=True)
    random.Random(5).shuffle(lines)
    (folder / "pool.jsonl").write_bytes(b"".join(lines))
    (folder / "encoder").symlink_to(small_pool.parent / "encoder")
    for text in ("prompt", "pair"):
        run_local(config_for("kcenter", folder / "pool.jsonl", folder / "out", f"recipe.text={text}"), Recorder())
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_permuted_input_selects_the_same_ids(
    finished: dict[str, Path], permuted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.setattr("engine.greedy_shards.PIECE_ROWS", 20)  # the members use threads
    out = with_vectors(permuted / "out", tmp_path / "out")
    run_local(config_for(recipe, permuted / "pool.jsonl", out), Recorder(), 2)
    assert ids(out) == ids(finished[recipe])


@pytest.mark.ray
@pytest.mark.parametrize("recipe", ["coreset", "dq cluster", "facility_location two rounds", "kcenter cluster"])
@pytest.mark.slow
def test_ray_gives_the_same_bytes(
    finished: dict[str, Path], small_pool: Path, tmp_path: Path, ray_cluster: Any, recipe: str
) -> None:
    out = with_vectors(finished[recipe], tmp_path / "out")
    run_ray(config_for(recipe, small_pool, out), Recorder(), 2, 3)
    assert outputs(out) == outputs(finished[recipe])


class Stop(Recorder):
    """Interrupts a run once so many rows are picked."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def advance(self, name: str, rows: int) -> None:
        if name == "picks":
            self.left -= rows
            if self.left <= 0:
                raise KeyboardInterrupt


@pytest.mark.parametrize(
    "recipe", ["herding", "facility_location", "facility_location cluster", "dq", "kcenter cluster", "dq cluster"]
)
def test_an_interrupted_run_goes_on_from_its_last_part(
    finished: dict[str, Path], small_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.setattr("engine.pick_log.PICK_ROWS", 8)
    config = config_for(recipe, small_pool, with_vectors(finished[recipe], tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        run_local(config, Stop(after=20))
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/steps").glob("picks-*/*.parquet")}
    assert len(parts) >= 2
    recorder = Recorder()
    run_local(config, recorder, 3)
    assert outputs(tmp_path / "out") == outputs(finished[recipe])
    assert {path: path.stat().st_mtime_ns for path in parts} == parts
    recorder.done.clear()
    run_local(config, recorder)
    assert all(reused for name, reused in recorder.done if name != "write"), recorder.done


def test_a_filter_over_shards_equals_one_row_at_a_time(finished: dict[str, Path], tmp_path: Path) -> None:
    pool, vectors = pool_of(finished["kcenter"], "prompt")
    _, words, x = arrays_of(pool, vectors)
    order = np.argsort(words)
    for shards in (1, 4):
        index = GreedyIndex(LocalRuntime(Recorder(), shards=shards), pool, vectors)
        log = PickLog(Step(Store(tmp_path), "picks", {"shards": shards}), index.dim())
        index.cosine_filter(log, order, 0.97, 30, Recorder())
        assert log.rows.tolist() == plain_filter(x, order, 0.97, 30)
        assert 0 < np.argmax(order == log.rows[-1]) - 29 < len(order)  # some were left out


def test_a_member_made_late_knows_the_picks(
    finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.pick_log.PICK_ROWS", 8)
    pool, vectors = pool_of(finished["kcenter"], "prompt")
    indexes = [GreedyIndex(LocalRuntime(Recorder(), shards=2), pool, vectors) for _ in range(2)]
    steady, late = (index.group for index in indexes)
    rule = Herding(indexes[0].total_D, indexes[0].num_rows)
    log = PickLog(Step(Store(tmp_path), "picks", {}), indexes[0].dim())
    indexes[0].greedy(rule, log, 30, Recorder())
    before = PickLog(log.step, indexes[0].dim())
    for found, expected in zip(
        late.call("greedy_frontier", rule, before.so_far(), 5), steady.call("greedy_frontier", rule, log.so_far(), 5),
        strict=True,
    ):  # fmt: skip
        assert found.rows.tolist() == expected.rows.tolist()
        assert found.state.tobytes() == expected.state.tobytes()


@pytest.mark.parametrize(
    ("recipe", "setting", "way_out"),
    [
        ("facility_location", "recipe.scope=pool", "set scope=cluster"),
        ("facility_location cluster", "recipe.cluster_rows=1000", "lower cluster_rows"),
        ("dq", "recipe.scope=pool", "set scope=cluster"),
        ("kcenter cluster", "recipe.cluster_rows=1000", "lower cluster_rows"),
    ],
)
def test_too_many_rows_are_refused_with_a_way_out(
    small_pool: Path, tmp_path: Path, recipe: str, setting: str, way_out: str
) -> None:
    config = config_for(recipe, small_pool, tmp_path / "out", setting, "recipe.max_rows=20")
    with pytest.raises(ConfigError, match="max_rows is 20") as caught:
        run_local(config, Recorder())
    assert way_out in str(caught.value)
