"""Selectors by vectors: rows that cover, represent or differ from one another, among those that are left.

The methods are those of the recipes with the same names, run in the space of the rows left (engine/greedy_methods). A
row has a vector whatever its scores, so nothing is out for want of one.
"""

# Shape letters: M rows left, I rows chosen.

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from engine.algorithms.ranking import top_rows
from engine.greedy_methods import (
    FacilitySettings,
    GraphCutSettings,
    KCenterSettings,
    diverse,
    facility_location,
    graph_cut,
    herding,
    kcenter,
)
from engine.greedy_selection import PairConfig, VectorConfig, embed
from engine.schema import ROW, seeded_hash
from engine.selecting.base import Narrowing, Sized
from engine.selecting.ranks import Top
from engine.space import Space, some_rows, whole_pool


class InSpace(VectorConfig, Sized):
    """Base of selectors that choose in the space of the rows left."""

    def space(self, narrowing: Narrowing) -> Space:
        return some_rows(narrowing.context, embed(narrowing.context, self), narrowing.rows())


class KCenter(KCenterSettings, InSpace):
    """Farthest rows first: every row left has a selected one near it. See recipe `kcenter`."""

    kind: Literal["kcenter"] = "kcenter"

    def narrow(self, narrowing: Narrowing, num: int) -> Narrowing:
        space = self.space(narrowing)
        picked = kcenter(narrowing.context, space, self, min(num, space.count))
        chosen = "farthest from the rows selected before it"
        return narrowing.kept(space.pool_rows(picked.rows), "nearer to a selected row", chosen)


class Herding(InSpace):
    """Rows whose mean stays nearest to that of the rows left. See recipe `herding`."""

    kind: Literal["herding"] = "herding"

    def narrow(self, narrowing: Narrowing, num: int) -> Narrowing:
        space = self.space(narrowing)
        picked = herding(narrowing.context, space, min(num, space.count))
        chosen = "brought the selection's mean closest to that of the rows left"
        return narrowing.kept(space.pool_rows(picked.rows), "another row brought the mean closer", chosen)


class FacilityLocation(FacilitySettings, PairConfig, InSpace):
    """The rows that stand for those left best. See recipe `facility_location`."""

    kind: Literal["facility_location"] = "facility_location"

    def narrow(self, narrowing: Narrowing, num: int) -> Narrowing:
        space = self.space(narrowing)
        picked = facility_location(narrowing.context, space, self, min(num, space.count))
        return narrowing.kept(space.pool_rows(picked.rows), "rows like it are selected", "stands for many rows")


class GraphCut(GraphCutSettings, PairConfig, InSpace):
    """A draw from bins of falling representativeness. See recipe `dq`."""

    kind: Literal["graph_cut"] = "graph_cut"

    def narrow(self, narrowing: Narrowing, num: int) -> Narrowing:
        space = self.space(narrowing)
        picked = graph_cut(narrowing.context, space, self, min(num, space.count))
        return narrowing.kept(space.pool_rows(picked.rows), "not drawn from its bin", "drawn from its bin")


class Diverse(PairConfig, Sized):
    """Rows in the order of a score, but for those too similar to one taken before: DEITA's filter (arXiv 2312.15685).

    Fewer rows than wanted are left when all others are too similar. Its code leaves out what is above the threshold,
    here what is equal to it too.
    """

    kind: Literal["diverse"] = "diverse"
    by: str | None = Field(
        default=None,
        description="Name of the score; without one the order of what is left, by a hash of the seed where it has none",
    )
    order: Literal["highest", "lowest"] = Field(default="highest", description="Which values come first")
    similarity: float = Field(
        default=0.9, gt=-1.0, description="Rows with this cosine similarity or more to a row before them are left out"
    )

    @property
    def reads(self) -> Sequence[str]:
        return () if self.by is None else (self.by,)

    def narrow(self, narrowing: Narrowing, num: int) -> Narrowing:
        narrowing = narrowing.scored(self.reads)
        order_M = self._ordered(narrowing)
        context = narrowing.context
        space = whole_pool(context, embed(context, self))  # a walk seldom sees every row, so none is copied
        rows_I = diverse(context, space, order_M, self.similarity, min(num, len(order_M))).rows
        walked = len(order_M)
        if len(rows_I) == num:
            walked = int(np.argmax(order_M == rows_I[-1]))
        out = order_M[:walked][~np.isin(order_M[:walked], rows_I)]
        narrowing = narrowing.without(out, f"similarity of {self.similarity:g} or more to a row taken before it")
        return narrowing.kept(rows_I, "enough rows were taken before it", "unlike the rows taken before it")

    def _ordered(self, narrowing: Narrowing) -> np.ndarray:
        """(M,) int64, the rows left, best first."""
        if self.by is None and narrowing.order_I is not None:
            return narrowing.order_I
        ranked = None if self.by is None else Top(by=self.by, order=self.order)
        rows, words, values = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], [np.empty(0)]
        for table in narrowing.parts(self.reads):
            rows.append(table[ROW].to_numpy())
            words.append(narrowing.words(rows[-1]))
            if ranked is not None:
                values.append(ranked.value(table, words[-1]))
        rows_M, words_M = np.concatenate(rows), np.concatenate(words)
        if ranked is not None:
            return rows_M[top_rows(np.concatenate(values), words_M, len(rows_M))]
        return rows_M[np.argsort(seeded_hash(words_M, narrowing.context.config.seed, "diverse"))]
