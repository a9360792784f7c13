"""Selectors with a quota per group: the best rows of every cluster, source or other label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine.algorithms.ranking import top_rows
from engine.algorithms.sampling import cluster_quotas, largest_per_group, weighted_keys
from engine.artifacts import take_rows
from engine.schema import ROW, SOURCE
from engine.selecting.base import Narrowing, Sized
from engine.selecting.ranks import Keep


class Quota(Sized):
    """Every group gives a number of rows: those of highest score, or drawn at random, by weight or evenly."""

    kind: Literal["quota"] = "quota"
    group: str = Field(description="Score that names a row's group, such as a cluster; or `source`")
    share: Literal["proportional", "equal"] = Field(
        default="proportional", description="Rows of a group: in proportion to its size, or as many as any other's"
    )
    at_least: int = Field(default=0, ge=0, description="Rows that every group gives, however small its share is")
    by: str | None = Field(default=None, description="Score that rows are taken by within a group")
    take: Literal["highest", "lowest", "weighted", "random"] = Field(
        default="highest", description="Which rows of a group; weighted: drawn in proportion to the score"
    )

    @property
    def reads(self) -> Sequence[str]:
        return [name for name in (self.group, self.by) if name not in (None, SOURCE)]

    def narrow(self, narrowing: Narrowing, num: int) -> Narrowing:
        narrowing = narrowing.scored(self.reads)
        if self.take == "weighted" and self.by is not None:
            narrowing = Keep(by=self.by, above=0.0).narrow(narrowing, num)
        counts: Counter[str] = Counter()
        for _, groups in self._groups(narrowing):
            counts.update(groups)
        names = sorted(counts)
        quotas_K = cluster_quotas(
            np.array([counts[name] for name in names], dtype=np.int64), num, self.share, self.at_least
        )
        place = {name: k for k, name in enumerate(names)}
        none = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0, np.uint64)
        rows_I, groups_I, values_I, words_I = none
        for table, groups in self._groups(narrowing):
            words_M = narrowing.words(table[ROW].to_numpy())
            rows_I = np.concatenate([rows_I, table[ROW].to_numpy()])
            groups_I = np.concatenate([groups_I, np.array([place[name] for name in groups], dtype=np.int64)])
            values_I = np.concatenate([values_I, self._values(table, words_M, narrowing.context.config.seed)])
            words_I = np.concatenate([words_I, words_M])
            at = largest_per_group(groups_I, values_I, words_I, quotas_K)
            rows_I, groups_I, values_I, words_I = rows_I[at], groups_I[at], values_I[at], words_I[at]
        order = top_rows(values_I, words_I, len(rows_I))
        return narrowing.kept(
            rows_I[order], f"beyond the quota of its {self.group}", f"in the quota of its {self.group}"
        )

    def _groups(self, narrowing: Narrowing) -> Iterator[tuple[pa.Table, list[str]]]:
        """The rows left, part by part, with the name of each one's group."""
        for table in narrowing.parts(self.reads):
            if self.group == SOURCE:
                found = take_rows(narrowing.context.pool, table[ROW].to_numpy(), [SOURCE])[SOURCE]
            else:
                found = table[self.group]
            yield table, [str(value) for value in found.to_pylist()]

    def _values(self, table: pa.Table, words_M: np.ndarray, seed: int) -> np.ndarray:
        if self.take == "random" or self.by is None:
            return weighted_keys(words_M, np.ones(len(words_M)), seed, "quota")
        scores_M = table[self.by].to_numpy().astype(np.float64)
        if self.take == "weighted":
            return weighted_keys(words_M, scores_M, seed, "quota")
        return scores_M if self.take == "highest" else -scores_M
