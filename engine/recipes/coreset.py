"""Coreset: K-Means, then k-center from the cluster centres, so that few rows cover the pool.

"Maybe Only 0.5% Data is Needed" (Chen et al., arXiv 2305.09246; no published code): sentence vectors, clusters,
KCenterGreedy. The cluster centres count as selected before the first pick; then the next pick is

    argmin over i of  max over centres and selected s of  cos(i, s)

Needs: vectors. No labels, no language model. The paper's pool is the data of one task; give one task's rows.
Cost: K-Means, and one inner product per row and pick, N m D multiplications.
Known bias: as `kcenter`, though the centres keep it from spending picks on what is central.

Differs from the paper in: the number of clusters, which it does not give, is ours. Its clusterer is K-Means in two
summaries; SelectLLM's code uses HDBSCAN instead, drops what that calls noise, and hands the centres to k-center as
here. Restricting the pool to a task is left to whoever makes the pool.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.algorithms.greedy import KCenter
from engine.config import RecipeConfig
from engine.greedy_index import GreedyIndex
from engine.greedy_selection import VectorConfig, cluster, embed, picked_rows, with_index
from engine.pick_log import PickLog
from engine.recipes.base import Context, Selection


class Config(VectorConfig, RecipeConfig):
    name: Literal["coreset"] = "coreset"
    clusters: int = Field(default=100, ge=1, description="K of K-Means; at most a tenth of the pool's rows")
    iterations: int = Field(default=20, ge=1, description="Most K-Means iterations")


def select(context: Context) -> Selection:
    config = context.config.recipe
    assert isinstance(config, Config)
    vectors = embed(context, config)
    clusters = max(1, min(config.clusters, context.pool_rows // 10))
    around = {"clusters": clusters, "iterations": config.iterations, "seed": context.config.seed}
    centroids = context.step("centroids", around, [vectors.fingerprint])
    picks = context.step("picks", {"method": "coreset", "budget": context.budget}, [centroids.fingerprint])
    scores = context.step("scores", {"column": "similarity"}, [picks.fingerprint])

    def make(index: GreedyIndex) -> None:
        centroids_KD = cluster(context, index, centroids, clusters, config.iterations)
        log, observer = PickLog(picks, index.dim(), seeds=centroids), context.runtime.observer
        index.greedy(KCenter(), log, context.budget, observer)
        index.write_state(KCenter(), log, "similarity", scores, observer, centroids_KD)

    with_index(context, vectors, [centroids, picks, scores], make)
    reason = "farthest from the cluster centres and the rows selected before it"
    selected = context.select_rows("selected", picked_rows(picks), reason, {"picks": picks.fingerprint})
    facts = {"clusters": centroids.require().extra["clusters"]}
    return Selection(selected, scores, "nearer to a centre or a selected row", facts=facts)
