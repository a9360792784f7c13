"""Coreset: K-Means, then k-center from the cluster centres, so that few rows cover the pool.

"Maybe Only 0.5% Data is Needed" (Chen et al., arXiv 2305.09246; no published code): sentence vectors, clusters,
KCenterGreedy. The cluster centres count as selected before the first pick; then the next pick is

    argmin over i of  max over centres and selected s of  cos(i, s)

Needs: vectors. No labels, no language model. The paper's pool is the data of one task; give one task's rows.
Cost: K-Means, and one inner product per row and pick, N m D multiplications. A million rows, 10,000 picks and 384
dimensions: 4e12 multiplications.
Known bias: as `kcenter`, though the centres keep it from spending picks on what is central.

Differs from the paper in: the number of clusters, which it does not give, is ours. Its clusterer is K-Means in two
summaries; SelectLLM's code uses HDBSCAN instead, drops what that calls noise, and hands the centres to k-center as
here. Restricting the pool to a task is left to whoever makes the pool.
"""

from __future__ import annotations

from typing import Literal

from engine.config import RecipeConfig
from engine.greedy_methods import CoresetSettings, coreset
from engine.greedy_selection import VectorConfig, pool_space, selection
from engine.recipes.base import Context, Selection


class Config(CoresetSettings, VectorConfig, RecipeConfig):
    name: Literal["coreset"] = "coreset"


def select(context: Context) -> Selection:
    config = context.config.recipe
    assert isinstance(config, Config)
    picked = coreset(context, pool_space(context, config), config, context.budget, scored=True)
    reason = "farthest from the cluster centres and the rows selected before it"
    return selection(context, picked, reason, "nearer to a centre or a selected row")
