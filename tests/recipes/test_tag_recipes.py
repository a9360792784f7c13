"""Tags as whole runs: normalisation and coverage against plain definitions, any order, any split, both runtimes."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from engine.artifacts import Step
from engine.config import RunConfig
from engine.errors import ConfigError, TooManyFailures
from engine.settings import load_config
from engine.store import Store
from tests.algorithms.test_tag_coverage import plain_coverage
from tests.conftest import Recorder
from tests.runs import make_tiny_encoder, outputs, run_local, run_ray

WORDS = ["Poem", "poems", "sea-voyage", "Sea voyages", "C++", "C#", "recursion", "Recursions", "tea", "history", "!!"]
TAGGED = {"kind": "tags", "tagger": {"kind": "recorded", "column": "topics"}}
PLAIN = {"min_count": 2, "min_similarity": None, "min_support": 4, "min_confidence": 0.99}
STEMS = {"poems": "poem", "voyages": "voyag", "voyage": "voyag", "recursions": "recurs", "recursion": "recurs",
         "history": "histori"}  # fmt: skip


def pool_rows() -> list[dict[str, Any]]:
    """120 rows; some of two queries, some with tags as text, one without tags, one with none recorded, two broken."""
    draw = random.Random(5)

    def topics(most: int) -> Any:
        found = draw.sample(WORDS, draw.randint(1, most))
        return [*found, "code"] if "C++" in found or "C#" in found else found

    rows = [{"instruction": f"question {k}", "output": f"answer {k}", "topics": topics(4)} for k in range(120)]
    for row in rows[10:20]:
        row["topics"] = [row["topics"], topics(2)]
    rows[30]["topics"] = ", ".join(rows[30]["topics"])
    rows[40]["topics"] = []
    rows[50]["topics"], rows[51]["topics"] = 7, ["fine", 3]
    del rows[60]["topics"]
    rows[70]["topics"] = ["once only"]
    return rows


def write_pool(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pool.jsonl"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tags")
    make_tiny_encoder(folder / "encoder", [" ".join(WORDS)])
    return write_pool(folder, pool_rows())


def config_for(pool: Path, out: Path, recipe: Any, *overrides: str) -> RunConfig:
    encoder = {"model": str(pool.parent / "encoder"), "max_tokens": 64}
    settings = {"data": {"path": str(pool), "part_rows": 17}, "out": str(out), "budget": 30, "recipe": recipe}
    out.parent.mkdir(exist_ok=True)
    (out.parent / f"{out.name}.yaml").write_text(yaml.safe_dump({**settings, "encoder": encoder}, sort_keys=False))
    return load_config(str(out.parent / f"{out.name}.yaml"), list(overrides))


def compose(normalise: Any = PLAIN, **selector: Any) -> dict[str, Any]:
    scores = {"topics": {**TAGGED, "normalise": normalise}}
    return {"name": "compose", "scores": scores, "select": [{"kind": "tag_coverage", "tags": "topics", **selector}]}


def table(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "scores").to_pylist()


def chosen(out: Path) -> list[str]:
    return (out / "ids.txt").read_text().split()


def step_rows(out: Path, name: str) -> list[dict[str, Any]]:
    (folder,) = [folder for folder in Store(out).list("steps") if folder.startswith(f"{name}-")]
    return Step.at(Store(out), f"steps/{folder}").read_all().to_pylist()


def given(rows: list[dict[str, Any]]) -> list[list[list[str]] | None]:
    """The tags of each query of each row, as `pool_rows` means them."""
    found: list[list[list[str]] | None] = []
    for row in rows:
        topics = row.get("topics")
        if isinstance(topics, str):
            topics = topics.split(", ")
        usable = isinstance(topics, list) and 3 not in topics
        found.append(None if not usable else topics if topics and isinstance(topics[0], list) else [topics])
    return found


def plain_normalisation(queries: list[list[str]]) -> dict[str, str]:
    """What PLAIN makes of each tag, step by step as it is described; without the near tags."""
    counts = Counter(tag for query in queries for tag in set(query))
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    key = {}
    for tag, count in counts.items():
        name = " ".join(tag.lower().replace("-", " ").replace("!", " ").split())
        if count >= 2 and name:
            key[tag] = " ".join(STEMS.get(word, word) for word in name.split())
            groups[key[tag]][name] += count
    best = {k: min(names, key=lambda name: (-names[name], name)) for k, names in groups.items()}
    names = {tag: best[key[tag]] for tag in key}
    sets = [{names[tag] for tag in query if tag in names} for query in queries]
    support = Counter(tag for query in sets for tag in query)
    merged: dict[str, str] = {}
    for a in sorted(support, key=lambda tag: (-support[tag], tag)):
        both = Counter(b for query in sets if a in query for b in query - {a})
        able = [b for b in both if both[b] >= 4 and both[b] >= 0.99 * support[a]
                and (-support[b], b) < (-support[a], a)]  # fmt: skip
        if able:
            into = min(able, key=lambda b: (-both[b], -support[b], b))
            merged[a] = merged.get(into, into)
    return {tag: merged.get(name, name) for tag, name in names.items()}


def test_normalised_tags_and_coverage_are_as_defined(pool: Path, tmp_path: Path) -> None:
    run_local(config_for(pool, tmp_path / "out", compose()), Recorder())
    rows = given(pool_rows())
    names = plain_normalisation([query for row in rows if row for query in row])
    assert {row["tag"]: row["name"] for row in step_rows(tmp_path / "out", "tag_map") if row["name"]} == names
    assert names["C#"] == names["C++"] == "code" and names["Sea voyages"] == names["sea-voyage"]
    assert "once only" not in names and "!!" not in names
    found = table(tmp_path / "out")
    for row, queries in zip(found, rows, strict=True):
        if queries is None:
            assert row["topics"] is None and row["tag_complexity"] is None and not row["selected"]
            assert row["reason"].startswith(("not scored: not a list of tags", "not scored: no recorded tags"))
        else:
            sets = [{names[tag] for tag in query if tag in names} for query in queries]
            assert row["topics"] == sorted(set().union(*sets))
            assert row["tag_complexity"] == sum(map(len, sets)) / len(sets)
    tagged = [row for row in found if row["topics"] is not None]
    place = {tag: number for number, tag in enumerate(sorted(set(names.values())))}
    tags = [{place[tag] for tag in row["topics"]} for row in tagged]
    expected = plain_coverage(tags, [len(row) for row in tags], [int(row["id"][:16], 16) for row in tagged], 30)
    assert chosen(tmp_path / "out") == [tagged[k]["id"] for k in expected]
    assert found[40]["reason"] == found[70]["reason"] == "has no tag"


def test_the_walk_can_follow_a_score(pool: Path, tmp_path: Path) -> None:
    run_local(config_for(pool, tmp_path / "out", compose(by="tag_complexity")), Recorder())
    tagged = [row for row in table(tmp_path / "out") if row["topics"] is not None]
    place = {tag: number for number, tag in enumerate(sorted({tag for row in tagged for tag in row["topics"]}))}
    tags, words = [{place[tag] for tag in row["topics"]} for row in tagged], [int(r["id"][:16], 16) for r in tagged]
    expected = plain_coverage(tags, [row["tag_complexity"] for row in tagged], words, 30)
    assert chosen(tmp_path / "out") == [tagged[k]["id"] for k in expected]


def test_near_tags_are_merged_by_their_vectors(pool: Path, tmp_path: Path) -> None:
    from engine.algorithms.tag_rules import named_groups, near_groups
    from engine.data.vectors import vectors_from_arrow
    from engine.schema import VECTOR

    normalise = {"min_count": 1, "stem": False, "min_similarity": 0.9, "min_confidence": None}
    out = tmp_path / "out"
    run_local(config_for(pool, out, compose(normalise)), Recorder())
    mapped = step_rows(out, "tag_map")
    assert all(row["name"] == row["near"] for row in mapped)
    names = [row["tag"] for row in step_rows(out, "tag_names")]
    assert names == sorted({row["spelled"] for row in mapped if row["spelled"]})
    (folder,) = [folder for folder in Store(out).list("steps") if folder.startswith("tag_vectors-")]
    x = vectors_from_arrow(Step.at(Store(out), f"steps/{folder}").read_all([VECTOR])[VECTOR])
    counts = [sum(row["queries"] for row in mapped if row["spelled"] == name) for name in names]
    near = named_groups(names, np.array(counts), near_groups(x, 0.9, 2))
    assert {row["spelled"]: row["near"] for row in mapped if row["spelled"]} == near
    assert len(set(near.values())) < len(near)


def test_any_order_any_split_and_a_second_run_give_the_same(pool: Path, tmp_path: Path) -> None:
    recipe = compose({**PLAIN, "min_similarity": 0.9})
    run_local(config_for(pool, tmp_path / "one", recipe), Recorder())
    run_local(config_for(pool, tmp_path / "two", recipe, "data.part_rows=50"), Recorder(), shards=3)
    rows = pool_rows()
    random.Random(1).shuffle(rows)
    moved = write_pool(tmp_path / "moved", rows)
    (moved.parent / "encoder").symlink_to(pool.parent / "encoder")
    run_local(config_for(moved, tmp_path / "three", recipe), Recorder())
    assert chosen(tmp_path / "one") == chosen(tmp_path / "two") == chosen(tmp_path / "three")
    tags = [{row["id"]: row["topics"] for row in table(tmp_path / name)} for name in ("one", "two", "three")]
    assert tags[0] == tags[1] == tags[2]
    before, again = outputs(tmp_path / "one"), Recorder()
    run_local(config_for(pool, tmp_path / "one", recipe), again)
    assert outputs(tmp_path / "one") == before
    assert all(reused for name, reused in again.done if name != "write")


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_the_same_bytes(pool: Path, tmp_path: Path, ray_cluster: Any) -> None:
    recipe = compose({**PLAIN, "min_similarity": 0.9})
    run_local(config_for(pool, tmp_path / "local", recipe), Recorder())
    run_ray(config_for(pool, tmp_path / "ray", recipe), Recorder(), 2, 2)
    assert outputs(tmp_path / "ray") == outputs(tmp_path / "local")


def test_what_cannot_be_selected_by_is_refused(pool: Path, tmp_path: Path) -> None:
    recipe = compose()
    recipe["scores"]["words"] = {"kind": "length"}
    recipe["select"][0]["tags"] = "words"
    with pytest.raises(ConfigError, match="got numbers, not tags"):
        run_local(config_for(pool, tmp_path / "out", recipe), Recorder())
    recipe = compose()
    recipe["scores"]["topics"]["tagger"]["column"] = "absent"
    with pytest.raises(TooManyFailures, match="no recorded tags"):
        run_local(config_for(pool, tmp_path / "none", recipe), Recorder())
