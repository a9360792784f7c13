"""Greedy selection within one cluster, whose rows any process may hold: what members are handed one after another.

Each form says how many rows it picks from a cluster and in which order; the mathematics is in engine/algorithms. It
knows nothing of Ray, of members or of recipes.

Shapes: N rows of the cluster, D dims, P picks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from engine.algorithms.columns import columns_for
from engine.algorithms.exact import ONE, vector_sum
from engine.algorithms.facility import ArrayFacility, MergedFacility, Sampling, facility_location
from engine.algorithms.greedy import ArrayGreedy, Each, MergedGreedy, Picks, greedy
from engine.algorithms.greedy_rules import GraphCut, KCenter
from engine.schema import seeded_hash


@dataclass(frozen=True)
class ClusterRows:
    """The rows of one cluster, ascending, and the pieces in which threads take them."""

    rows_N: np.ndarray  # int64
    words_N: np.ndarray  # uint64
    x_ND: np.ndarray  # float16
    pieces: Sequence[slice]
    each: Each

    def shards(self, make: Any, *more: Any) -> list[Any]:
        """One shard per piece."""
        return [make(self.x_ND[at], self.rows_N[at], self.words_N[at], *more) for at in self.pieces]


class InCluster(Protocol):
    """A greedy method among the rows of one cluster. Travels to the members."""

    def picks(self, cluster: ClusterRows, num: int) -> Iterator[Picks]:
        """`num` picks, in blocks."""
        ...


@dataclass(frozen=True)
class FacilityInCluster:
    """Facility location; the rows stand for their own cluster only."""

    sampling: Sampling | None

    def picks(self, cluster: ClusterRows, num: int) -> Iterator[Picks]:
        columns = columns_for(len(cluster.rows_N))
        shards = cluster.shards(ArrayFacility, vector_sum(cluster.x_ND), None, columns)
        return facility_location(MergedFacility(shards, cluster.each), num, sampling=self.sampling)


@dataclass(frozen=True)
class KCenterInCluster:
    """k-center from the row of smallest seeded hash."""

    seed: int

    def picks(self, cluster: ClusterRows, num: int) -> Iterator[Picks]:
        rule = KCenter()
        pool = MergedGreedy(cluster.shards(ArrayGreedy, rule), cluster.each)
        at = np.argmin(start_keys(cluster.words_N, self.seed), keepdims=True)
        first = Picks(cluster.rows_N[at], cluster.words_N[at], np.array([2 * ONE]), cluster.x_ND[at])
        pool.add(first)
        yield first
        yield from greedy(pool, rule, num, 1)


@dataclass(frozen=True)
class BinsInCluster:
    """Graph-cut bins of the cluster."""

    bins: int

    def picks(self, cluster: ClusterRows, num: int) -> Iterator[Picks]:
        rule = GraphCut(vector_sum(cluster.x_ND), int(rows_per_bin(np.array([len(cluster.rows_N)]), self.bins)[0]))
        return greedy(MergedGreedy(cluster.shards(ArrayGreedy, rule), cluster.each), rule, num)


def start_keys(words_N: np.ndarray, seed: int) -> np.ndarray:
    """(N,) uint64; k-center starts from the smallest."""
    return seeded_hash(words_N, seed, "start")


def rows_per_bin(counts_K: np.ndarray, bins: int) -> np.ndarray:
    """(K,) rows in every bin of a cluster but its last, which has what is left; at least 1."""
    return np.maximum(1, counts_K // bins)


def rows_in_bins(counts_K: np.ndarray, bins: int) -> np.ndarray:
    """(K,) rows of each cluster that are picked into bins: those of all bins but the last.

    A cluster of fewer rows than bins has as many bins as rows.
    """
    return rows_per_bin(counts_K, bins) * (np.minimum(bins, counts_K) - 1).clip(min=0)
