"""Compositions as whole runs: each selector against its plain definition, any order, any split, both runtimes."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from engine.algorithms.sampling import cluster_quotas, largest_per_group, weighted_keys
from engine.config import RunConfig
from engine.errors import ConfigError, DataError, TooManyFailures
from engine.schema import seeded_hash
from engine.settings import load_config
from tests.conftest import Recorder
from tests.runs import make_tiny_encoder, outputs, run_local, run_ray

QUALITY = {"kind": "recorded", "column": "quality"}
WORDS = {"kind": "length", "of": "response_words"}


def pool_rows() -> list[dict[str, Any]]:
    """80 rows of four sources; every fourth quality is shared, two are unusable, one is missing."""
    draw = random.Random(3)
    rows = [
        {
            "instruction": f"question {k} about {draw.choice(['birds', 'ships', 'tea'])}",
            "output": "word " * draw.randint(1, 9),
            "source": draw.choice("aabbbbcd"),
            "quality": draw.choice([0.0, 1.0, 1.0, 2.0, 2.0, 2.5, 4.5, 5.0, draw.random()]),
        }
        for k in range(80)
    ]
    rows[7]["quality"], rows[20]["quality"] = "good", "inf"
    del rows[33]["quality"]
    return rows


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compose")
    rows = pool_rows()
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_tiny_encoder(folder / "encoder", [row["instruction"] for row in rows])
    return folder / "pool.jsonl"


def config_for(pool: Path, out: Path, scores: Any, select: Any, *overrides: str) -> RunConfig:
    recipe = {"name": "compose", "scores": scores, "select": select}
    settings = {"data": {"path": str(pool), "part_rows": 17}, "out": str(out), "budget": 12, "recipe": recipe}
    settings["encoder"] = {"model": str(pool.parent / "encoder"), "max_tokens": 64}
    (out.parent / f"{out.name}.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return load_config(str(out.parent / f"{out.name}.yaml"), list(overrides))


def chosen(out: Path) -> list[dict[str, Any]]:
    """The selected rows as `scores/` shows them, best first."""
    rows = [row for row in table(out) if row["selected"]]
    return sorted(rows, key=lambda row: row["rank"])


def table(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "scores").to_pylist()


def select(pool: Path, tmp_path: Path, selectors: Any, scores: Any = None, *overrides: str) -> Path:
    run_local(config_for(pool, tmp_path / "out", scores or {"quality": QUALITY}, selectors, *overrides), Recorder())
    return tmp_path / "out"


def word(row: dict[str, Any]) -> int:
    return int(row["id"][:16], 16)


def test_top_takes_the_highest_or_lowest_equal_scores_by_id(pool: Path, tmp_path: Path) -> None:
    for order, sign in (("highest", -1), ("lowest", 1)):
        out = select(pool, tmp_path, [{"kind": "top", "by": "quality", "order": order}])
        scored = [row for row in table(out) if row["quality"] is not None]
        expected = sorted(scored, key=lambda row: (sign * row["quality"], row["id"]))[:12]
        assert [row["id"] for row in chosen(out)] == [row["id"] for row in expected]
        assert len(scored) == 77
        lost = {row["reason"] for row in table(out) if row["quality"] is None}
        assert lost == {'not scored: not a number: "good"', "not scored: not a number: \"inf\"",
                        "not scored: no recorded score"}  # fmt: skip


def test_keep_is_a_condition_and_every_row_has_its_reason(pool: Path, tmp_path: Path) -> None:
    conditions = [
        {"kind": "keep", "by": "quality", "above": 0.0, "below": 5.0},
        {"kind": "keep", "by": "words", "at_least": 2, "at_most": 7},
    ]
    scores = {"quality": QUALITY, "words": WORDS}
    out = select(pool, tmp_path, [*conditions, {"kind": "top", "by": "words", "order": "lowest"}], scores)
    for row in table(out):
        quality, words = row["quality"], row["words"]
        if quality is None:
            assert row["reason"].startswith("not scored: ")
        elif quality <= 0 or quality >= 5:
            assert row["reason"] == ("quality of 0 or less" if quality <= 0 else "quality of 5 or more")
        elif words < 2 or words > 7:
            assert row["reason"] == ("words below 2" if words < 2 else "words above 7")
        else:
            assert row["reason"] == ("among the lowest words" if row["selected"] else "higher words")
    assert {row["selected"] for row in table(out)} == {True, False}


def test_a_chain_narrows_what_is_left(pool: Path, tmp_path: Path) -> None:
    chain = [{"kind": "top", "by": "quality", "rows": 0.5}, {"kind": "middle", "by": "words"}]
    out = select(pool, tmp_path, chain, {"quality": QUALITY, "words": WORDS})
    scored = [row for row in table(out) if row["quality"] is not None]
    first = sorted(scored, key=lambda row: (-row["quality"], row["id"]))[:40]
    by_words = sorted(first, key=lambda row: (row["words"], row["id"]))
    assert {row["id"] for row in chosen(out)} == {row["id"] for row in by_words[14:26]}
    assert Counter(row["reason"] for row in table(out))["lower quality"] == 37


def test_derived_scores(pool: Path, tmp_path: Path) -> None:
    scores = {
        "quality": QUALITY,
        "words": WORDS,
        "both": {"kind": "product", "of": ["quality", "words"]},
        "mix": {"kind": "linear", "weights": {"both": 2.0, "words": -0.5}, "intercept": 1.0},
    }
    out = select(pool, tmp_path, [{"kind": "top", "by": "mix"}], scores)
    for row in table(out):
        if row["quality"] is None:
            assert row["both"] is None and row["mix"] is None and not row["selected"]
        else:
            assert row["both"] == row["quality"] * row["words"]
            assert row["mix"] == pytest.approx(1 + 2 * row["both"] - 0.5 * row["words"])


@pytest.mark.parametrize("share", ["proportional", "equal"])
def test_quota_of_every_group(pool: Path, tmp_path: Path, share: str) -> None:
    out = select(pool, tmp_path, [{"kind": "quota", "group": "source", "by": "quality", "share": share}])
    scored = [row for row in table(out) if row["quality"] is not None]
    names = sorted({row["source"] for row in scored})
    sizes = np.array([sum(row["source"] == name for row in scored) for name in names])
    expected = []
    for name, quota in zip(names, cluster_quotas(sizes, 12, share), strict=True):  # pyright: ignore[reportArgumentType]
        group = [row for row in scored if row["source"] == name]
        expected += sorted(group, key=lambda row: (-row["quality"], row["id"]))[:quota]
    expected.sort(key=lambda row: (-row["quality"], row["id"]))
    assert [row["id"] for row in chosen(out)] == [row["id"] for row in expected]


def test_a_cluster_is_a_group(pool: Path, tmp_path: Path) -> None:
    scores = {"topic": {"kind": "cluster", "clusters": 4}, "words": WORDS}
    out = select(pool, tmp_path, [{"kind": "quota", "group": "topic", "by": "words", "share": "equal"}], scores)
    assert Counter(row["topic"] for row in chosen(out)).most_common()[-1][1] >= 2
    assert {row["topic"] for row in table(out)} == {0, 1, 2, 3}


def test_samples_follow_from_hashes(pool: Path, tmp_path: Path) -> None:
    out = select(pool, tmp_path, [{"kind": "sample"}], {}, "seed=5")
    ranked = sorted(table(out), key=lambda row: -int(seeded_hash(np.uint64([word(row)]), 5, "sample")[0]))
    assert [row["id"] for row in chosen(out)] == [row["id"] for row in ranked[:12]]
    weighted = select(pool, tmp_path, [{"kind": "sample", "weight": "quality"}])
    able = [row for row in table(weighted) if (row["quality"] or 0) > 0]
    keys = weighted_keys(np.uint64([word(row) for row in able]), np.array([r["quality"] for r in able]), 0, "sample")
    assert [row["id"] for row in chosen(weighted)] == [able[k]["id"] for k in np.argsort(-keys)[:12]]


def test_weighted_draws_take_rows_in_proportion() -> None:
    """First draws over many seeds: shares of the weights, within five standard deviations."""
    words, weights = np.arange(1, 5, dtype=np.uint64), np.array([1.0, 2.0, 3.0, 4.0])
    firsts = Counter(int(np.argmax(weighted_keys(words, weights, seed, "test"))) for seed in range(4000))
    for at, weight in enumerate(weights):
        share = weight / 10
        assert abs(firsts[at] / 4000 - share) < 5 * np.sqrt(share * (1 - share) / 4000)


def test_choosing_again_among_choices_of_shards_is_choosing_over_all() -> None:
    draw = np.random.default_rng(0)
    groups, values = draw.integers(0, 5, 300), draw.integers(0, 9, 300).astype(float)
    words, quotas = draw.permutation(300).astype(np.uint64), np.array([3, 0, 7, 2, 500])
    whole = largest_per_group(groups, values, words, quotas)
    pieces = np.concatenate(
        [at[largest_per_group(groups[at], values[at], words[at], quotas)] for at in np.array_split(np.arange(300), 4)]
    )
    again = pieces[largest_per_group(groups[pieces], values[pieces], words[pieces], quotas)]
    assert again.tolist() == whole.tolist()


EVERYTHING = (
    {"quality": QUALITY, "words": WORDS, "topic": {"kind": "cluster", "clusters": 4, "text": "pair"}},
    [
        {"kind": "keep", "by": "quality", "above": 0},
        {"kind": "quota", "group": "topic", "by": "words", "take": "weighted", "rows": 0.5},
        {"kind": "top", "by": "quality"},
    ],
)


def test_order_of_rows_parts_and_shards_do_not_matter(pool: Path, tmp_path: Path) -> None:
    run_local(config_for(pool, tmp_path / "a", *EVERYTHING), Recorder())
    run_local(config_for(pool, tmp_path / "b", *EVERYTHING), Recorder(), shards=3)
    assert outputs(tmp_path / "b") == outputs(tmp_path / "a")
    lines = pool.read_bytes().splitlines(keepends=True)
    random.Random(5).shuffle(lines)
    (tmp_path / "encoder").symlink_to(pool.parent / "encoder")
    (tmp_path / "pool.jsonl").write_bytes(b"".join(lines))
    run_local(config_for(tmp_path / "pool.jsonl", tmp_path / "c", *EVERYTHING, "data.part_rows=80"), Recorder())
    assert (tmp_path / "c/ids.txt").read_bytes() == (tmp_path / "a/ids.txt").read_bytes()


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_the_same_bytes(pool: Path, tmp_path: Path, ray_cluster: Any) -> None:
    run_local(config_for(pool, tmp_path / "a", *EVERYTHING), Recorder())
    run_ray(config_for(pool, tmp_path / "b", *EVERYTHING), Recorder(), workers=2, shards=3)
    assert outputs(tmp_path / "b") == outputs(tmp_path / "a")


@pytest.mark.parametrize(
    ("scores", "selectors", "message"),
    [
        ({}, [{"kind": "top", "by": "quality"}], r"select\.0 \(top\) reads 'quality', which is no score before it"),
        ({"a": {"kind": "product", "of": ["b"]}, "b": QUALITY}, [{"kind": "top", "by": "a"}], r"scores\.a reads 'b'"),
        ({"q": QUALITY}, [{"kind": "keep", "by": "q", "above": 1}], "the last selector leaves the budget"),
        ({"q": QUALITY}, [{"kind": "keep", "by": "q"}, {"kind": "top", "by": "q"}], "needs one of at_least"),
        ({"q": QUALITY}, [{"kind": "top", "by": "q"}, {"kind": "top", "by": "q"}], r"select\.0 \(top\) needs `rows`"),
        ({"q": QUALITY}, [{"kind": "top", "by": "q", "rows": 5}], "takes no `rows`"),
        ({"q": QUALITY}, [{"kind": "topp", "by": "q"}], "did you mean 'top'"),
        ({"q": {"kind": "recorded", "colum": "x"}}, [{"kind": "sample"}], "did you mean 'column'"),
        ({"q": QUALITY}, [], "at least one selector"),
        (
            {"t": {"kind": "tags", "tagger": {"kind": "recorded", "column": "x"}}},
            [{"kind": "top", "by": "t"}],
            r"select\.0 \(top\) needs numbers, and 't' gives a list",
        ),
        ({"turns": WORDS}, [{"kind": "top", "by": "turns"}], r"scores\.turns: every row has a column of this name"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(
    pool: Path, tmp_path: Path, scores: Any, selectors: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config_for(pool, tmp_path / "out", scores, selectors)


def test_a_changed_seed_or_encoder_selects_as_a_fresh_run_does(pool: Path, tmp_path: Path) -> None:
    """In one folder, so that steps of the first run are there to be taken by mistake."""
    scores = {"quality": QUALITY, "topic": {"kind": "cluster", "clusters": 4}}
    chain = [{"kind": "keep", "by": "quality", "above": 0}, {"kind": "quota", "group": "topic", "take": "random"}]
    for change in ("seed=1", "seed=2", "encoder.max_tokens=8"):
        run_local(config_for(pool, tmp_path / "same", scores, chain, change), Recorder())
        fresh = tmp_path / change
        run_local(config_for(pool, fresh, scores, chain, change), Recorder())
        assert outputs(tmp_path / "same") == outputs(fresh)


def test_a_reason_names_what_the_row_itself_lacks(pool: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"q {k}", "output": "a b", "x": k, "y": k} for k in range(30)]
    del rows[3]["x"], rows[4]["y"]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "encoder").symlink_to(pool.parent / "encoder")
    scores = {name: {"kind": "recorded", "column": name} for name in ("x", "y")}
    scores["sum"] = {"kind": "linear", "weights": {"x": 1.0, "y": 1.0}}
    chain = [{"kind": "top", "by": "x", "rows": 29}, {"kind": "top", "by": "sum"}]
    run_local(config_for(tmp_path / "pool.jsonl", tmp_path / "out", scores, chain), Recorder())
    reasons = {row["row"]: row["reason"] for row in table(tmp_path / "out")}
    assert reasons[3] == reasons[4] == "not scored: no recorded score"


def test_nothing_left_too_few_left_and_too_many_failures(pool: Path, tmp_path: Path) -> None:
    high = [{"kind": "keep", "by": "quality", "above": 100}, {"kind": "top", "by": "quality"}]
    with pytest.raises(DataError, match="most often: quality of 100 or less"):
        select(pool, tmp_path, high)
    high[0]["above"] = 4.6
    recorder = Recorder()
    run_local(config_for(pool, tmp_path / "few", {"quality": QUALITY}, high), recorder)
    few = len(chosen(tmp_path / "few"))
    assert 0 < few < 12 and f"{few} rows can be chosen, fewer than the budget of 12" in recorder.notes
    with pytest.raises(TooManyFailures, match="no recorded score"):
        select(pool, tmp_path, [{"kind": "top", "by": "q"}], {"q": {"kind": "recorded", "column": "absent"}})
    with pytest.raises(ConfigError, match="more than the pool"):
        select(pool, tmp_path, [{"kind": "top", "by": "quality", "rows": 900}, {"kind": "sample"}])
