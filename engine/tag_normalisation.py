"""Normalised tags from tags as they were given: a map over the distinct tags, then one pass over the rows.

The map (step `tag_map`) holds every distinct tag, in how many queries it is, and what became of it: dropped as rare,
respelled, merged with near tags, merged into one it implies (the mathematics is in engine/algorithms/tag_rules.py). The
pass (step `normal_tags`) is the union over a row's queries, and InsTag's complexity: the mean number of tags of a
query. The file knows nothing of who gave the tags or what is selected by them.
"""

# Shape letters: N rows, Q queries of all rows, T tags of all queries, G distinct tags, D dimensions.

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from engine.algorithms.ragged import distinct_tags
from engine.algorithms.tag_rules import implied, named_groups, near_groups, same_by_rules, scaled
from engine.artifacts import Step, write_table
from engine.config_base import Strict
from engine.data.tag_lists import TagLists
from engine.data.vectors import vectors_from_arrow
from engine.recipes.base import Context
from engine.runtime import StageSpec
from engine.schema import ERROR, ROW, VECTOR

QUERY_TAGS = "query_tags"  # list of lists: the tags of each query
TAGS, COMPLEXITY = "tags", "tag_complexity"
RAW_COLUMNS = [pa.field(QUERY_TAGS, pa.list_(pa.list_(pa.string()))), pa.field(ERROR, pa.large_string())]
PART_ROWS = 4096  # of the steps over distinct tags
LEAST_SUPPORT = 10  # a rule that fewer queries speak for says nothing in any pool


class Normalisation(Strict):
    """When two tags are one, and which are dropped."""

    min_count: int | Literal["auto"] = Field(
        default="auto", description="Tags in fewer queries are dropped; auto: 20 as published, fewer in smaller pools"
    )
    stem: bool = Field(default=True, description="Words with the same stem (English, Snowball) are the same")
    min_similarity: float | None = Field(
        default=0.95, gt=0.0, le=1.0, description="Tags whose vectors are at least this similar are merged; null: none"
    )
    min_samples: int = Field(
        default=2, ge=1, description="DBSCAN: near tags, itself included, that let a tag spread its group"
    )
    min_support: int | Literal["auto"] = Field(
        default="auto", description="Queries that speak for a rule; auto: 40 as published, fewer in smaller pools"
    )
    min_confidence: float | None = Field(
        default=0.99, gt=0.5, le=1.0, description="A tag is merged into one that so often comes with it; null: none"
    )


class NormalTags:
    """Stage: the tags and the complexity of each row.

    Args:
        names: step `tag_map`; None takes tags as they are.
    """

    columns_in = (QUERY_TAGS, ERROR)
    columns_out = (
        pa.field(TAGS, pa.list_(pa.string())),
        pa.field(COMPLEXITY, pa.float64()),
        pa.field(ERROR, pa.large_string()),
    )

    def __init__(self, names: Step | None) -> None:
        self.names: dict[str, str | None] | None = None
        if names is not None:
            table = names.read_all(["tag", "name"])
            self.names = dict(zip(table["tag"].to_pylist(), table["name"].to_pylist(), strict=True))

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = [self._row(queries) for queries in table[QUERY_TAGS].to_pylist()]
        columns = [pa.array([row[k] for row in rows], field.type) for k, field in enumerate(self.columns_out[:2])]
        return pa.table([*columns, table[ERROR]], names=[TAGS, COMPLEXITY, ERROR])

    def _row(self, queries: Sequence[Sequence[str]] | None) -> tuple[list[str] | None, float | None]:
        if queries is None:
            return None, None
        named = [{tag if self.names is None else self.names[tag] for tag in query} - {None} for query in queries]
        union = sorted({tag for query in named for tag in query if tag is not None})
        return union, sum(map(len, named)) / max(len(named), 1)


def normal_tags(context: Context, raw: Step, config: Normalisation | None) -> Step:
    """The step `normal_tags`, parallel to the pool's parts.

    Args:
        raw: parallel to the pool's parts, with RAW_COLUMNS.
        config: None takes tags as they are.
    """
    names = None if config is None else tag_map(context, raw, config)
    target = context.step("normal_tags", {}, [raw.fingerprint, *([names.fingerprint] if names else [])])
    context.runtime.map_parts(StageSpec.of("normal_tags", NormalTags, names=names), raw, target)
    return target


def tag_map(context: Context, raw: Step, config: Normalisation) -> Step:
    """The step `tag_map`: tag, queries, its name after each step. Holds the codes of all tags in this process."""
    settings: dict[str, Any] = config.model_dump()
    if config.min_similarity is not None:
        settings["encoder"] = context.encoder()
    target = context.step("tag_map", settings, [raw.fingerprint])
    if context.reused(target):
        return target
    started = time.monotonic()
    lists = TagLists()
    for part in raw.require().parts:
        lists.add(pc.list_flatten(raw.read(part.index, [QUERY_TAGS])[QUERY_TAGS]))  # pyright: ignore[reportAttributeAccessIssue]
    tags_T, starts_Q1 = distinct_tags(*lists.arrays())
    context.runtime.observer.step_started("tag_map", len(lists.names))
    steps = named(context, raw, config, lists.names, tags_T, starts_Q1)
    counts_G = np.bincount(tags_T, minlength=len(lists.names))
    table = map_table(lists.names, counts_G, steps)
    write_table(target, table, PART_ROWS)
    kept = len(set(table["name"].drop_null().to_pylist()))
    context.runtime.observer.note(f"{len(lists.names):,} tags as given, {kept:,} after normalisation")
    seconds = time.monotonic() - started
    context.runtime.observer.step_done("tag_map", len(lists.names), seconds, 0, reused=False)
    return target


def named(
    context: Context, raw: Step, config: Normalisation, names: list[str], tags_T: np.ndarray, starts_Q1: np.ndarray
) -> dict[str, dict[str, str]]:
    """What each step of the normalisation makes of the names that it gets; a tag that is missing is dropped."""
    num_queries = len(starts_Q1) - 1
    counts_G = np.bincount(tags_T, minlength=len(names))
    least = scaled(20, num_queries, 1) if config.min_count == "auto" else config.min_count
    kept = {name: int(count) for name, count in zip(names, counts_G, strict=True) if count >= least}
    by_rules = same_by_rules(kept, stemmer() if config.stem else str)
    counts = Counter[str]()
    for tag, name in by_rules.items():
        counts[name] += kept[tag]
    near = {name: name for name in counts}
    if config.min_similarity is not None and counts:
        ordered = sorted(counts)
        x_GD = tag_vectors(context, raw, config, ordered)
        group_G = near_groups(x_GD, config.min_similarity, config.min_samples)
        near = named_groups(ordered, np.array([counts[name] for name in ordered]), group_G)
    final = {name: name for name in near.values()}
    if config.min_confidence is not None and final:
        ordered = sorted(final)
        places = {name: place for place, name in enumerate(ordered)}
        new_G = np.array([places[near[by_rules[name]]] if name in by_rules else -1 for name in names], dtype=np.int32)
        support = scaled(40, num_queries, LEAST_SUPPORT) if config.min_support == "auto" else config.min_support
        final |= implied(*distinct_tags(new_G[tags_T], starts_Q1), ordered, support, config.min_confidence)
    return {"rules": by_rules, "near": near, "implied": final}


def stemmer() -> Any:
    """Stem of an English word."""
    import snowballstemmer

    return snowballstemmer.stemmer("english").stemWord


def tag_vectors(context: Context, raw: Step, config: Normalisation, names: list[str]) -> np.ndarray:
    """(G, D) float16 unit vectors of tags."""
    rules = {"min_count": config.min_count, "stem": config.stem}
    source = context.step("tag_names", rules, [raw.fingerprint])
    write_table(source, pa.table({ROW: np.arange(len(names)), "tag": names}), PART_ROWS)
    vectors = context.embedded("tag_vectors", source, "tag")
    return vectors_from_arrow(vectors.read_all([VECTOR])[VECTOR])


def map_table(names: list[str], counts_G: np.ndarray, steps: dict[str, dict[str, str]]) -> pa.Table:
    """One row per tag as it was given, in alphabetical order, with its name after each step; null: dropped."""
    columns: dict[str, list[Any]] = {"tag": sorted(names)}
    counts = dict(zip(names, counts_G.tolist(), strict=True))
    columns["queries"] = [counts[tag] for tag in columns["tag"]]
    columns["spelled"] = [steps["rules"].get(tag) for tag in columns["tag"]]
    columns["near"] = [steps["near"].get(name) for name in columns["spelled"]]
    columns["name"] = [steps["implied"].get(name) for name in columns["near"]]
    types = [pa.string(), pa.int64(), pa.string(), pa.string(), pa.string()]
    return pa.table([pa.array(values, kind) for values, kind in zip(columns.values(), types, strict=True)], [*columns])
