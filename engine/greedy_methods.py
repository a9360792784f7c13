"""Greedy methods in a space, each with its settings: recipes run them in the whole pool, selectors in some rows.

Every method gives rows best first. The formulas are in engine/algorithms, the papers in the recipes of the same name.
It knows nothing of where the space's rows come from.

Shapes: N rows of the space, K clusters, P picks, M rows of a part.
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import numpy as np
from pydantic import Field

from engine.algorithms.exact import ONE
from engine.algorithms.facility import Sampling
from engine.algorithms.greedy import Picks
from engine.algorithms.greedy_rules import GraphCut, Herding, KCenter
from engine.algorithms.sampling import cluster_quotas, smallest_per_group
from engine.artifacts import Step
from engine.config_base import Strict
from engine.greedy_clusters import (
    BinsInCluster,
    FacilityInCluster,
    KCenterInCluster,
    rows_in_bins,
    rows_per_bin,
    start_keys,
)
from engine.greedy_index import GreedyIndex
from engine.greedy_selection import Clusters, Picked, Scoped, Work
from engine.pick_log import PickLog
from engine.recipes.base import Context
from engine.schema import ID, ROW, id_words, seeded_hash
from engine.space import Space


class KCenterSettings(Scoped):
    max_rows: int = Field(default=1_000_000, ge=1, description="Most rows that are one pool or one cluster")


class CoresetSettings(Strict):
    clusters: int = Field(default=100, ge=1, description="K of K-Means; at most a tenth of the rows")
    iterations: int = Field(default=20, ge=1, description="Most K-Means iterations")


class FacilitySettings(Scoped):
    variant: Literal["lazy", "stochastic"] = Field(
        default="lazy", description="lazy: the exact greedy selection; stochastic: tries a sample for every pick"
    )
    epsilon: float = Field(
        default=0.1, gt=0.0, lt=1.0, description="stochastic: what it may lose on average, as a share of the best f"
    )
    two_rounds: bool = Field(
        default=False,
        description="scope cluster: the clusters name candidates, among which those are chosen that stand for any row "
        "best; otherwise rows stand for their own cluster only",
    )
    candidates: float = Field(default=2.0, ge=1.0, description="two_rounds: candidates per row to select")

    def sampling(self, num: int, seed: int) -> Sampling | None:
        """For a selection of `num` rows; None for lazy."""
        return None if self.variant == "lazy" or not num else Sampling.of(self.epsilon, num, seed)


class GraphCutSettings(Scoped):
    bins: int = Field(default=10, ge=1, description="Number of bins, k; the paper's released sets have 5 or 10")
    max_rows: int = Field(default=300_000, ge=1, description="Most rows that are cut into bins as one pool or cluster")


def kcenter(context: Context, space: Space, settings: KCenterSettings, num: int, scored: bool = False) -> Picked:
    """Farthest rows first, from the row of smallest hash of (seed, id); in clusters, from one in each."""
    seed, observer = context.config.seed, context.runtime.observer
    keys = {"seed": seed, "budget": num}
    work = Work(context, space, "kcenter", keys, settings.clusters(space.count), "similarity" if scored else None)

    def make(index: GreedyIndex, centroids_KD: np.ndarray | None) -> None:
        log = PickLog(work.picks, index.dim())
        if centroids_KD is None:
            start_at_random(context, space, index, log)
            index.greedy(KCenter(), log, num, observer)
            if work.scores:
                index.write_state(KCenter(), log, "similarity", work.scores, observer)
            return
        counts_K = index.assign(centroids_KD).counts_K
        settings.check_clusters(counts_K)
        quotas_K = cluster_quotas(counts_K, num, "proportional")
        index.in_clusters(log, centroids_KD, quotas_K, [KCenterInCluster(seed)] * len(quotas_K), observer)
        if work.scores:
            index.write_nearest(work.picks, quotas_K, centroids_KD, work.scores, observer)

    work.run(make)
    return work.picked(work.best_first())


def start_at_random(context: Context, space: Space, index: GreedyIndex, log: PickLog) -> None:
    """Picks the row of smallest seeded hash, unless something is picked."""
    if len(log):
        return
    best: tuple[int, int] | None = None
    for part in space.rows.require().parts:
        table = space.rows.read(part.index, [ROW, ID])
        keys_M = start_keys(id_words(table[ID]), context.config.seed)
        at = int(np.argmin(keys_M))
        found = int(keys_M[at]), table[ROW][at].as_py()
        best = found if best is None else min(best, found)
    assert best is not None
    rows, x = index.lookup(np.array([best[1]]))
    log.add(Picks(rows.rows, rows.words, np.array([2 * ONE]), x))


def coreset(context: Context, space: Space, settings: CoresetSettings, num: int, scored: bool = False) -> Picked:
    """k-center from the cluster centres."""
    clusters = Clusters(max(1, min(settings.clusters, space.count // 10)), settings.iterations)
    work = Work(context, space, "coreset", {"budget": num}, clusters, "similarity" if scored else None)

    def make(index: GreedyIndex, centroids_KD: np.ndarray | None) -> None:
        log, observer = PickLog(work.picks, index.dim(), seeds=work.centroids), context.runtime.observer
        index.greedy(KCenter(), log, num, observer)
        if work.scores:
            index.write_state(KCenter(), log, "similarity", work.scores, observer, centroids_KD)

    work.run(make)
    return work.picked()


def herding(context: Context, space: Space, num: int, scored: bool = False) -> Picked:
    """Rows that keep the selection's mean nearest to the space's."""
    work = Work(context, space, "herding", {"budget": num}, column="mean_similarity" if scored else None)

    def make(index: GreedyIndex, _: np.ndarray | None) -> None:
        log, observer = PickLog(work.picks, index.dim()), context.runtime.observer
        rule = Herding(index.total_D, space.count)
        index.greedy(rule, log, num, observer)
        if work.scores:
            index.write_state(rule, log, "mean_similarity", work.scores, observer)

    work.run(make)
    return work.picked()


def facility_location(
    context: Context, space: Space, settings: FacilitySettings, num: int, scored: bool = False
) -> Picked:
    """Rows that stand for the others best."""
    settings.check_pool(space.count)
    seed, observer = context.config.seed, context.runtime.observer
    keys = {"budget": num, "variant": settings.variant}
    if settings.variant == "stochastic":
        keys |= {"epsilon": settings.epsilon, "seed": seed}
    wanted = min(space.count, math.ceil(settings.candidates * num))
    first: Step | None = None
    clusters = settings.clusters(space.count)
    if clusters is not None and settings.two_rounds:
        first = Work(context, space, "facility_location", keys | {"budget": wanted}, clusters).picks
        keys |= {"candidates": first.fingerprint}
    work = Work(context, space, "facility_location", keys, clusters, "similarity" if scored else None)

    def pick_in_clusters(index: GreedyIndex, log: PickLog, centroids_KD: np.ndarray, rows: int) -> np.ndarray:
        counts_K = index.assign(centroids_KD).counts_K
        settings.check_clusters(counts_K)
        quotas_K = cluster_quotas(counts_K, rows, "proportional")
        methods_K = [FacilityInCluster(settings.sampling(quota, seed)) for quota in quotas_K.tolist()]
        index.in_clusters(log, centroids_KD, quotas_K, methods_K, observer)
        return quotas_K

    def make(index: GreedyIndex, centroids_KD: np.ndarray | None) -> None:
        log = PickLog(work.picks, index.dim())
        if centroids_KD is not None and first is None:
            quotas_K = pick_in_clusters(index, log, centroids_KD, num)
            if work.scores:
                index.write_nearest(work.picks, quotas_K, centroids_KD, work.scores, observer)
            return
        if centroids_KD is not None and first is not None:
            pick_in_clusters(index, PickLog(first, index.dim()), centroids_KD, wanted)
        index.facility_location(log, num, settings.sampling(num, seed), observer, first)
        if work.scores:
            index.write_state(KCenter(), log, "similarity", work.scores, observer, centroids_KD)

    work.run(make)
    return work.picked(work.best_first())


def graph_cut(context: Context, space: Space, settings: GraphCutSettings, num: int) -> Picked:
    """Bins from the most to the least representative rows, and a random draw from each; the step `scores` is made."""
    settings.check_pool(space.count)
    observer = context.runtime.observer
    bins = min(settings.bins, space.count)
    work = Work(context, space, "dq", {"bins": bins}, settings.clusters(space.count), "bin")
    scores = work.scores
    assert scores is not None

    def make(index: GreedyIndex, centroids_KD: np.ndarray | None) -> None:
        log = PickLog(work.picks, index.dim())
        if centroids_KD is None:
            counts_K = np.array([space.count])
            rule = GraphCut(index.total_D, int(rows_per_bin(counts_K, bins)[0]))
            index.greedy(rule, log, int(rows_in_bins(counts_K, bins)[0]), observer)
        else:
            counts_K = index.assign(centroids_KD).counts_K
            settings.check_clusters(counts_K)
            index.in_clusters(
                log, centroids_KD, rows_in_bins(counts_K, bins), [BinsInCluster(bins)] * len(counts_K), observer
            )
        index.write_bins(work.picks, counts_K, bins, centroids_KD, scores, observer)

    work.run(make)
    picked = work.picked(drawn_rows(context, space, scores, bins, num))
    return Picked(picked.rows, f"{scores.fingerprint}/{context.config.seed}", scores, picked.facts)


def diverse(context: Context, space: Space, order_M: np.ndarray, similarity: float, num: int) -> Picked:
    """Rows in the given order (row numbers of the space), but none too similar to one before it; maybe fewer."""
    digest = hashlib.sha256(order_M.astype("<i8").tobytes()).hexdigest()
    work = Work(context, space, "diverse", {"order": digest, "similarity": similarity, "budget": num})

    def make(index: GreedyIndex, _: np.ndarray | None) -> None:
        log = PickLog(work.picks, index.dim())
        index.cosine_filter(log, order_M, similarity, num, context.runtime.observer)

    work.run(make)
    return work.picked()


def drawn_rows(context: Context, space: Space, scores: Step, bins: int, num: int) -> np.ndarray:
    """(num,) rows: of every cluster its share, in it of every bin its share, the smallest hashes first."""

    def groups_of(part: int) -> tuple[np.ndarray, np.ndarray]:
        table = scores.read(part)
        cluster_M = table["cluster"].to_numpy() if "cluster" in table.column_names else 0
        return table[ROW].to_numpy(), table["bin"].to_numpy() + bins * cluster_M

    counts = np.zeros(0, np.int64)
    for part in scores.require().parts:
        found = np.bincount(groups_of(part.index)[1], minlength=len(counts))
        counts = found + np.pad(counts, (0, len(found) - len(counts)))
    counts_KB = np.pad(counts, (0, -len(counts) % bins)).reshape(-1, bins)
    share_K = cluster_quotas(counts_KB.sum(axis=1), num, "proportional")
    quotas = np.concatenate(
        [cluster_quotas(c, s, "proportional") for c, s in zip(counts_KB, share_K.tolist(), strict=True)]
    )
    kept = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint64)
    for part in scores.require().parts:
        keys_M = seeded_hash(id_words(space.rows.read(part.index, [ID])[ID]), context.config.seed, "dq")
        rows, groups, keys = (np.concatenate(pair) for pair in zip(kept, (*groups_of(part.index), keys_M), strict=True))
        chosen = smallest_per_group(groups, keys, quotas)
        kept = rows[chosen], groups[chosen], keys[chosen]
    return kept[0][np.lexsort((kept[2], kept[1] % bins))]
