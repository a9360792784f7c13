"""What the methods share that select by vectors alone: which text is embedded, where rows are chosen, and their steps.

A selection in a `Space` is a few steps: `centroids` when rows are chosen in each cluster, `picks` (row, score and
vector in the order of picking), and `scores`, what the method keeps of every row. Members are made only when something
is left to compute. It knows no method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine.algorithms.facility import check_rows
from engine.artifacts import Step, take_rows, write_table
from engine.config_base import Strict
from engine.data.vectors import vectors_from_arrow, vectors_to_arrow
from engine.greedy_index import GreedyIndex
from engine.pick_log import SCORE
from engine.recipes.base import Context, Selection
from engine.runtime import StageSpec
from engine.schema import ID, PROMPT, RESPONSE, ROW, VECTOR, id_words
from engine.shards import PoolIndex
from engine.space import Space, whole_pool

TEXT = "What is embedded: the prompt, or prompt and response as one text"


class VectorConfig(Strict):
    """What everything on vectors can be told."""

    text: Literal["prompt", "pair"] = Field(default="prompt", description=TEXT)


class PairConfig(VectorConfig):
    """The same, for methods that are published on whole pairs."""

    text: Literal["prompt", "pair"] = Field(default="pair", description=TEXT)


class Scoped(Strict):
    """Where rows are chosen."""

    scope: Literal["auto", "pool", "cluster"] = Field(
        default="auto",
        description="pool: among all rows; cluster: in each K-Means cluster, in proportion to its size; auto: pool, up "
        "to max_rows",
    )
    max_rows: int = Field(default=100_000, ge=1, description="Most rows that are one pool or one cluster")
    cluster_rows: int = Field(default=20_000, ge=1, description="scope cluster: rows of a cluster, on average")
    iterations: int = Field(default=20, ge=1, description="scope cluster: most K-Means iterations")

    def whole(self, rows: int) -> bool:
        """Whether that many rows are one pool."""
        return self.scope == "pool" or (self.scope == "auto" and rows <= self.max_rows)

    def check_pool(self, rows: int) -> None:
        """Refuses a pool too large for methods that compare all rows with one another (`check_rows`)."""
        if self.whole(rows):
            check_rows(rows, self.max_rows, "the pool", "set scope=cluster, or raise max_rows")

    def check_clusters(self, counts_K: np.ndarray) -> None:
        """Refuses clusters that are too large (`check_rows`)."""
        check_rows(int(counts_K.max()), self.max_rows, "the largest cluster", "lower cluster_rows, or raise max_rows")

    def clusters(self, rows: int) -> Clusters | None:
        """None when the rows are one pool."""
        return None if self.whole(rows) else Clusters(max(1, round(rows / self.cluster_rows)), self.iterations)


@dataclass(frozen=True)
class Clusters:
    """K-Means: clusters wanted, and most iterations."""

    count: int
    iterations: int


@dataclass(frozen=True)
class Picked:
    """What a method chose in a space.

    Attributes:
        rows: (P,) int64 rows of the space, best first.
        fingerprint: of what determines them.
        scores: step parallel to the space's parts with what the method keeps of every row, if it was asked for.
        facts: JSON-able figures for the summary.
    """

    rows: np.ndarray
    fingerprint: str
    scores: Step | None
    facts: Mapping[str, Any] = field(default_factory=dict)


class Work:
    """The steps of one selection.

    Args:
        method, settings: what determines the picks besides the vectors.
        clusters: K-Means is made first.
        column: of the step `scores`, which is made only when it is given.
    """

    def __init__(
        self,
        context: Context,
        space: Space,
        method: str,
        settings: Mapping[str, Any],
        clusters: Clusters | None = None,
        column: str | None = None,
    ) -> None:
        self.context, self.space, self.clusters = context, space, clusters
        self.centroids: Step | None = None
        if clusters is not None:
            self.centroids = centroids_step(context, space.fingerprint, clusters.count, clusters.iterations)
        inputs = [(self.centroids or space).fingerprint]
        self.picks = context.step("picks", {"method": method, **settings}, inputs)
        self.scores = context.step("scores", {"column": column}, [self.picks.fingerprint]) if column else None

    def run(self, make: Callable[[GreedyIndex, np.ndarray | None], None]) -> None:
        """Runs `make`, given the members and the (K, D) centroids, which completes the steps, unless they are."""
        steps = [step for step in (self.centroids, self.picks, self.scores) if step is not None]
        if all(step.record() for step in steps):
            for step in steps:
                self.context.reused(step)
            return
        index = GreedyIndex(self.context.runtime, self.space.rows, self.space.vectors)
        try:
            centroids_KD = None
            if self.centroids is not None and self.clusters is not None:
                centroids_KD = cluster(
                    self.context, index, self.centroids, self.clusters.count, self.clusters.iterations
                )
            make(index, centroids_KD)
        finally:
            index.close()

    def picked(self, rows_P: np.ndarray | None = None) -> Picked:
        """The outcome: rows in the order of picking unless others are given."""
        rows_P = self.picks.read_all([ROW])[ROW].to_numpy() if rows_P is None else rows_P
        facts = {} if self.centroids is None else {"clusters": self.centroids.require().extra["clusters"]}
        return Picked(rows_P, self.picks.fingerprint, self.scores, facts)

    def best_first(self) -> np.ndarray:
        """(P,) int64 rows of largest score first, ties by id: for one pool that is the order of picking."""
        table = self.picks.read_all([ROW, SCORE])
        rows_P = table[ROW].to_numpy()
        words_P = id_words(take_rows(self.space.rows, rows_P, [ID])[ID])
        return rows_P[np.lexsort((words_P, -table[SCORE].to_numpy()))]


def centroids_step(context: Context, vectors: str, clusters: int, iterations: int) -> Step:
    """The step of K-Means over vectors of this fingerprint."""
    around = {"clusters": clusters, "iterations": iterations, "seed": context.config.seed}
    return context.step("centroids", {**around, "kmeans": context.kmeans_method(clusters)}, [vectors])


def cluster(context: Context, index: PoolIndex, target: Step, clusters: int, iterations: int) -> np.ndarray:
    """K-Means over the members' rows: a step with a unit vector per cluster, float16 so that similarities to it are
    exact.

    Returns:
        (K, D) float32, what the step holds; K is at most `clusters`.
    """
    if not context.reused(target):
        context.runtime.observer.step_started(target.name, index.count())
        result = context.kmeans(index, clusters, iterations, context.kmeans_method(clusters))
        table = pa.table({VECTOR: vectors_to_arrow(result.centroids_KD)})
        record = write_table(target, table, len(table), {"clusters": len(table), "inertia": result.inertia[-1]})
        context.runtime.observer.step_done(target.name, record.rows, record.seconds, 0, reused=False)
    return vectors_from_arrow(target.read_all([VECTOR])[VECTOR]).astype(np.float32)


def embed(context: Context, config: VectorConfig) -> Step:
    """One unit vector per row of the pool: the step `embed`, or `embed_pairs`."""
    from engine.models.pairs import EmbedPairs

    if config.text == "prompt":
        return context.vectors()
    settings = context.encoder()
    target = context.step("embed_pairs", {"encoder": settings}, [context.pool.fingerprint])
    stage = StageSpec(
        name="embed_pairs",
        factory=EmbedPairs,
        kwargs={"encoder": settings},
        columns_in=[PROMPT, RESPONSE],
        columns_out=[pa.field(VECTOR, pa.null())],
        resources=context.resources(),
    )
    context.runtime.map_parts(stage, context.pool, target)
    return target


def pool_space(context: Context, config: VectorConfig) -> Space:
    """The whole pool, with the vectors the recipe is told to take."""
    return whole_pool(context, embed(context, config))


def selection(context: Context, picked: Picked, reason: str, default_reason: str) -> Selection:
    """Of a recipe that chose in the whole pool, and gives one reason for all its rows."""
    selected = context.select_rows("selected", picked.rows, reason, {"picks": picked.fingerprint})
    return Selection(selected, picked.scores, default_reason, facts=picked.facts)
