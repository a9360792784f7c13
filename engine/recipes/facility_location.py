"""Facility location: the rows that stand for the whole pool best, so that every row has a similar one among them.

The diversity of Superfiltering.D (Li et al., ACL 2024, arXiv 2402.00530); greedy submodular maximisation (Nemhauser,
Wolsey and Fisher 1978). Of all rows the next pick adds most to

    f(S) = sum over rows i of  max over selected s of  cos(i, s)

`lazy` (Minoux 1978) makes exactly the picks of trying every row for every pick; `stochastic` (Mirzasoleiman et al.,
AAAI 2015, arXiv 1409.7938) tries a random sample per pick. Large pools are cut into K-Means clusters, each of which
gives rows in proportion to its size, chosen within the cluster: N^2 inner products become N times a cluster's rows.

Needs: vectors. No labels, no language model.
Cost: `lazy` N^2 D multiplications and about as many again; `stochastic` N^2 ln(1/epsilon) D.
Known bias: selects the centres of dense regions first; outliers and rare topics last.

Differs from the paper in: works alone or on any pool, where Superfiltering.D first takes the best by IFD (make two runs
of it); negative similarities count, so f is not cut at 0; clusters for pools above `max_rows`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from engine.algorithms.facility import Sampling, check_rows
from engine.algorithms.greedy import KCenter
from engine.algorithms.sampling import cluster_quotas
from engine.artifacts import Step, take_rows
from engine.config import RecipeConfig
from engine.greedy_index import GreedyIndex
from engine.greedy_selection import VectorConfig, cluster, embed, with_index
from engine.pick_log import SCORE, PickLog
from engine.recipes.base import Context, Selection
from engine.schema import ID, ROW, id_words


class Config(VectorConfig, RecipeConfig):
    name: Literal["facility_location"] = "facility_location"
    text: Literal["prompt", "pair"] = Field(
        default="pair", description="What is embedded: the prompt, or prompt and response as one text"
    )
    variant: Literal["lazy", "stochastic"] = Field(
        default="lazy", description="lazy: the exact greedy selection; stochastic: tries a sample for every pick"
    )
    epsilon: float = Field(
        default=0.1, gt=0.0, lt=1.0, description="stochastic: what it may lose on average, as a share of the best f"
    )
    scope: Literal["auto", "pool", "cluster"] = Field(
        default="auto",
        description="pool: rows stand for any row; cluster: for their own cluster; auto: pool, up to max_rows",
    )
    max_rows: int = Field(default=100_000, ge=1, description="Most rows that are compared with one another")
    cluster_rows: int = Field(default=20_000, ge=1, description="scope cluster: rows of a cluster, on average")
    iterations: int = Field(default=20, ge=1, description="scope cluster: most K-Means iterations")


def select(context: Context) -> Selection:
    config = context.config.recipe
    assert isinstance(config, Config)
    whole = config.scope == "pool" or (config.scope == "auto" and context.pool_rows <= config.max_rows)
    if whole:
        fix = "set recipe.scope=cluster (rows then stand for their own cluster), or raise recipe.max_rows"
        check_rows(context.pool_rows, config.max_rows, "the pool", fix)
    vectors = embed(context, config)
    settings = {"budget": context.budget, "variant": config.variant}
    if config.variant == "stochastic":
        settings |= {"epsilon": config.epsilon, "seed": context.config.seed}
    clusters = max(1, round(context.pool_rows / config.cluster_rows))
    around = {"clusters": clusters, "iterations": config.iterations, "seed": context.config.seed}
    centroids = None if whole else context.step("centroids", around, [vectors.fingerprint])
    inputs = [(centroids or vectors).fingerprint]
    picks = context.step("picks", {"method": "facility_location", **settings}, inputs)
    scores = context.step("scores", {"column": "similarity"}, [picks.fingerprint])

    def make(index: GreedyIndex) -> None:
        log, observer = PickLog(picks, index.dim()), context.runtime.observer
        centroids_KD = None
        if centroids is None:
            index.facility_location(log, context.budget, sampling(context, config, context.budget), observer)
        else:
            centroids_KD = cluster(context, index, centroids, clusters, config.iterations)
            pick_in_clusters(context, config, index, log, centroids_KD)
        index.write_state(KCenter(), log, "similarity", scores, observer, centroids_KD)

    with_index(context, vectors, [picks, scores], make)
    reason = "stands for many rows" + ("" if whole else " of its cluster")
    selected = context.select_rows("selected", ranked(context, picks), reason, {"picks": picks.fingerprint})
    facts = {} if centroids is None else {"clusters": centroids.require().extra["clusters"]}
    return Selection(selected, scores, "rows like it are selected", facts=facts)


def sampling(context: Context, config: Config, num: int) -> Sampling | None:
    if config.variant == "lazy" or not num:
        return None
    return Sampling.of(config.epsilon, num, context.config.seed)


def pick_in_clusters(
    context: Context, config: Config, index: GreedyIndex, log: PickLog, centroids_KD: np.ndarray
) -> None:
    """Every cluster gives rows in proportion to its size."""
    counts_K = index.assign(centroids_KD).counts_K
    fix = "lower recipe.cluster_rows, or raise recipe.max_rows"
    check_rows(int(counts_K.max()), config.max_rows, "the largest cluster", fix)
    quotas_K = cluster_quotas(counts_K, context.budget, "proportional")
    samplings = [sampling(context, config, num) for num in quotas_K.tolist()]
    index.facility_in_clusters(log, centroids_KD, quotas_K, samplings, context.runtime.observer)


def ranked(context: Context, picks: Step) -> np.ndarray:
    """(P,) int64 rows, those that added most to f first, which for one pool is the order of picking."""
    table = picks.read_all([ROW, SCORE])
    rows_P = table[ROW].to_numpy()
    words_P = id_words(take_rows(context.pool, rows_P, [ID])[ID])
    return rows_P[np.lexsort((words_P, -table[SCORE].to_numpy()))]
