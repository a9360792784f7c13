"""The golden score of Nuggets (arXiv 2312.10302): the share of anchor tasks that a row helps as a one-shot example.

Anchors are the rows nearest to the K-Means centres of the pool, the step `anchors`; the pass is the step `one_shot`
(engine/models/one_shot.py). Several turns: the last response, given everything before it as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine.artifacts import Step, take_rows, write_table
from engine.data.vectors import vectors_from_arrow
from engine.greedy_selection import PairConfig, embed
from engine.recipes.base import Context
from engine.schema import ID, PROMPT, RESPONSE, ROW, SYSTEM, VECTOR
from engine.scoring.arithmetic import columns_of, finite
from engine.scoring.base import Measured, Score
from engine.scoring.clusters import cluster_centroids
from engine.token_scoring import CausalModelConfig, one_shot

HELPED, ANCHORS = "anchors_helped", "anchors"


class OneShotConfig(PairConfig, CausalModelConfig):
    """How anchors are chosen and rows tried on them."""

    max_tokens: int = Field(
        default=1024,
        ge=8,
        description="Longest row plus anchor; a row with no room for the longest anchor has no score",
    )
    template: Literal["alpaca", "plain"] = Field(default="alpaca", description="How prompt and response become a text")
    anchors: int = Field(
        default=100, ge=1, description="K-Means clusters, one anchor each; at most a tenth of the rows"
    )
    iterations: int = Field(default=20, ge=1, description="Most K-Means iterations")
    anchor_tokens: int = Field(default=256, ge=8, description="A longer anchor is left out, in tokens")


class OneShot(OneShotConfig, Measured):
    """Share of the anchors whose response becomes more likely when the row stands before them as an example."""

    kind: Literal["one_shot"] = "one_shot"

    @property
    def carries(self) -> Sequence[str]:
        return HELPED, ANCHORS

    def measure(self, context: Context) -> Score:
        anchors = anchor_rows(context, embed(context, self), self.anchors, self.iterations)
        step = one_shot(context, self, anchors, self.anchor_tokens, self.template)
        return Score(step, (HELPED, ANCHORS), golden_scores, {"value": "golden"})


def golden_scores(table: pa.Table) -> pa.Array:
    """(N,) float64 from HELPED and ANCHORS; null where these are."""
    helped_N, anchors_N = columns_of(table, [HELPED, ANCHORS])
    return finite(helped_N / anchors_N)


def anchor_rows(context: Context, vectors: Step, clusters: int, iterations: int) -> Step:
    """The row nearest to each K-Means centre, of equally near ones the lowest id: the step `anchors`.

    Two centres may share a row, so there may be fewer anchors than clusters.
    """
    centroids = cluster_centroids(context, vectors, clusters, iterations)
    target = context.step("anchors", {}, [context.pool.fingerprint, centroids.fingerprint])
    if target.record() is None:
        centroids_KD = vectors_from_arrow(centroids.read_all([VECTOR])[VECTOR])
        index = context.index(vectors)
        try:
            rows = np.unique(index.nearest(centroids_KD, np.full(len(centroids_KD), -1)))
        finally:
            index.close()
        table = take_rows(context.pool, rows, [ID, SYSTEM, PROMPT, RESPONSE])
        write_table(target, table.select([ROW, ID, SYSTEM, PROMPT, RESPONSE]), len(table))
    return target
