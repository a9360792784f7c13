"""Random rows in equal numbers from every source or cluster: the fair anchor for methods that diversify.

Groups too small for their share pass the rest on to the others. Inside a group the draw is by hash of (seed, id).

Needs: the rows' sources; vectors when `by: cluster`.
Cost: one hash per row, about a second per million rows; with clusters an encoder pass and K-Means.
Known bias: small sources weigh more than in the pool.

Differs from the paper in: there is none.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from engine.algorithms.baselines import balanced_draw
from engine.config import RecipeConfig
from engine.recipes.base import Context, Selection
from engine.schema import ID, ROW, SOURCE, id_words, seeded_hash


class Config(RecipeConfig):
    name: Literal["balanced_random"] = "balanced_random"
    by: Literal["source", "cluster"] = Field("source", description="What the draw is balanced over")
    clusters: int = Field(100, ge=1, description="Number of K-Means clusters when by is cluster")
    iterations: int = Field(20, ge=1, description="Most K-Means iterations")


def balanced_by_source(context: Context) -> np.ndarray:
    """(budget,) rows, the same number from every source as far as they last."""
    numbers: dict[str, int] = {}  # a source's name -> its group, in order of appearance
    rows, words, groups = [], [], []
    for part in context.pool.require().parts:
        table = context.pool.read(part.index, [ROW, ID, SOURCE])
        rows.append(table[ROW].to_numpy())
        words.append(id_words(table[ID]))
        groups.append([numbers.setdefault(name, len(numbers)) for name in table[SOURCE].to_pylist()])
    # Groups by name, so that leftovers of the equal shares go to the same sources for any order of the rows.
    rank = np.argsort(np.argsort(np.array(list(numbers), dtype=object)))
    groups_N = rank[np.concatenate(groups)]
    picked = balanced_draw(np.concatenate(words), groups_N, context.config.seed, context.budget)
    return np.concatenate(rows)[picked]


def balanced_by_cluster(context: Context, config: Config) -> np.ndarray:
    """(budget,) rows, the same number from every K-Means cluster as far as they last."""
    seed = context.config.seed
    index = context.index(context.vectors())
    result = context.kmeans(index, config.clusters, config.iterations, context.kmeans_method(config.clusters))
    drawn = index.draw(result.centroids_KD, result.counts_K, context.budget, "equal", seed, "balanced_random")
    index.close()
    return drawn.rows[np.argsort(seeded_hash(drawn.words, seed, "balanced_random"), kind="stable")]


def select(context: Context) -> Selection:
    config = context.config.recipe
    assert isinstance(config, Config)
    rows = balanced_by_source(context) if config.by == "source" else balanced_by_cluster(context, config)
    vectors = context.vectors().fingerprint if config.by == "cluster" else ""
    settings = {"seed": context.config.seed, **config.model_dump(), "vectors": vectors}
    if config.by == "cluster":
        settings["kmeans"] = context.kmeans_method(config.clusters)
    selected = context.select_rows("balanced_random", rows, f"drawn at random, balanced by {config.by}", settings)
    return Selection(selected, None, "not drawn")
