"""The recipe's side of greedy selection over members that share the pool's vectors.

`GreedyIndex` runs the loops of engine/algorithms over a group of `GreedyShard`s, with one or two reduces per block of
picks, and gives what one array in one process gives. It knows nothing of Ray or of recipes.

Shapes: N rows of the pool, D dims, K clusters, M rows in a given order, B rows of a block.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from engine.algorithms.facility import Sampling, best_pick, facility_location
from engine.algorithms.greedy import Frontier, Picks, greedy, share
from engine.algorithms.greedy_rules import Rule
from engine.algorithms.near_duplicates import cosine_filter
from engine.artifacts import Step, StepRecord
from engine.events import Observer
from engine.greedy_clusters import InCluster
from engine.greedy_shards import Around, GreedyShard, Settled
from engine.pick_log import PickLog, fill
from engine.schema import ROW
from engine.shards import PoolIndex, PoolShard


@dataclass
class GroupGreedy:
    """`GreedyPool` over a group of members."""

    index: GreedyIndex
    rule: Rule
    log: PickLog

    def frontier(self, width: int) -> Frontier:
        group = self.index.group
        return Frontier.merge(group.call("greedy_frontier", self.rule, self.log.so_far(), share(width, group.size)))

    def count_right(self, picks: Picks) -> int:
        return min(self.index.group.call("greedy_count_right", self.rule, self.log.so_far(), picks))

    def add(self, picks: Picks) -> None:
        self.log.add(picks)


@dataclass
class GroupFacility:
    """`FacilityPool` over a group of members."""

    index: GreedyIndex
    around: Around
    log: PickLog
    settled: list[Settled] = field(default_factory=list)  # what members are told with the next frontier

    def first(self) -> Picks:
        return best_pick(self._call("facility_first"))

    def blocks(self, num: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        candidates = self.around.candidates
        rows_M = np.arange(self.index.num_rows) if candidates is None else candidates.read_all([ROW])[ROW].to_numpy()
        for start in range(0, len(rows_M), num):
            rows_B = rows_M[start : start + num]
            yield rows_B, self.index.lookup(rows_B)[1]

    def frontier(self, width: int, picked: int, sampling: Sampling | None) -> Frontier:
        settled, self.settled = self.settled, []
        wanted = share(width, self.index.group.size)
        return Frontier.merge(self._call("facility_frontier", settled, wanted, picked, sampling))

    def gain(self, row: int, x_D: np.ndarray) -> int:
        return sum(self._call("facility_gain", row, x_D))

    def bounds(self, rows_B: np.ndarray, x_BD: np.ndarray) -> np.ndarray:
        return np.sum(self._call("facility_bounds", rows_B, x_BD), axis=0)

    def settle(self, rows_B: np.ndarray, bounds_B: np.ndarray, picked: int, exact: bool) -> None:
        self.settled.append((rows_B, bounds_B, picked, exact))

    def add(self, picks: Picks) -> None:
        self.log.add(picks)

    def _call(self, method: str, *args: Any) -> list[Any]:
        return self.index.group.call(method, self.around, self.log.so_far(), *args)


@dataclass
class GroupKept:
    """`KeptPool` over a group of members: each compares with the kept rows that are its own."""

    index: GreedyIndex
    log: PickLog

    def vectors(self, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, x_BD = self.index.lookup(rows_B)
        return rows.words, x_BD

    def largest_kept(self, x_BD: np.ndarray) -> np.ndarray:
        return np.max(self.index.group.call("largest_kept", self.log.so_far(), x_BD), axis=0)

    def add(self, picks: Picks) -> None:
        self.log.add(picks)


class GreedyIndex(PoolIndex):
    """A `PoolIndex` whose members also select greedily. Every method gives the same for any number of shards.

    The methods fill a `PickLog`, from where it stands, and tell the observer.
    """

    member: ClassVar[type[PoolShard]] = GreedyShard

    @cached_property
    def num_rows(self) -> int:
        return self.count()

    @cached_property
    def total_D(self) -> np.ndarray:
        """(D,) float64, the exact sum of all vectors."""
        return np.sum(self.group.call("total"), axis=0)

    def greedy(self, rule: Rule, log: PickLog, num: int, observer: Observer) -> StepRecord:
        """k-center, herding or graph-cut bins, by the rule; see engine.algorithms.greedy."""
        return fill(log, num, greedy(GroupGreedy(self, rule, log), rule, num, len(log)), observer)

    def facility_location(
        self,
        log: PickLog,
        num: int,
        sampling: Sampling | None,
        observer: Observer,
        candidates: Step | None = None,
    ) -> StepRecord:
        """Over the whole pool; see engine.algorithms.facility.

        Args:
            candidates: complete step with the rows that may be picked; all may when None.
        """
        pool = GroupFacility(self, Around(self.total_D, candidates), log)
        return fill(log, num, facility_location(pool, num, len(log), sampling), observer)

    def in_clusters(
        self,
        log: PickLog,
        centroids_KD: np.ndarray,
        quotas_K: np.ndarray,
        methods_K: Sequence[InCluster],
        observer: Observer,
        gather_rows: int = 65_536,
    ) -> StepRecord:
        """Picks from each cluster its quota, whichever member is free.

        Picks are logged cluster by cluster; about `gather_rows` rows pass through this process at a time.
        """
        logged, ends_K = len(log), np.cumsum(quotas_K)  # an earlier process may have logged the first picks
        missing = np.flatnonzero((quotas_K > 0) & (ends_K > logged))

        def walk() -> Iterator[Picks]:
            for batch in self._cluster_batches(centroids_KD, missing, gather_rows):
                items = [(rows, words, x, methods_K[k], int(quotas_K[k])) for k, rows, words, x in batch]
                found = dict(self.group.dispatch("picks_in_cluster", items))
                for position, (k, *_) in enumerate(batch):
                    skip = max(0, int(logged - ends_K[k] + quotas_K[k]))
                    picks = found[position].after(skip)
                    log.add(picks)
                    yield picks

        return fill(log, int(quotas_K.sum()), walk(), observer)

    def _cluster_batches(
        self, centroids_KD: np.ndarray, clusters: np.ndarray, gather_rows: int
    ) -> Iterator[list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]]:
        """Cluster, rows, id words and vectors of some clusters at a time, rows ascending."""
        counts_K = self.assign(centroids_KD).counts_K
        groups = (np.cumsum(counts_K[clusters]) - 1) // gather_rows
        for group in np.unique(groups):
            wanted = clusters[groups == group]
            pieces = self.group.call("cluster_rows", centroids_KD, wanted.tolist())
            labels, rows, words, x = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
            order = [at[np.argsort(rows[at])] for at in (np.flatnonzero(labels == k) for k in wanted)]
            yield [(int(k), rows[at], words[at], x[at]) for k, at in zip(wanted, order, strict=True)]

    def cosine_filter(
        self, log: PickLog, order_M: np.ndarray, threshold: float, num: int, observer: Observer
    ) -> StepRecord:
        """Keeps rows in the given order; see engine.algorithms.near_duplicates."""
        start = int(np.argmax(order_M == log.rows[-1])) + 1 if len(log) else 0
        walk = cosine_filter(GroupKept(self, log), order_M, threshold, num, len(log), start)
        return fill(log, num, walk, observer)

    def write_state(
        self,
        rule: Rule,
        log: PickLog,
        name: str,
        target: Step,
        observer: Observer,
        centroids_KD: np.ndarray | None = None,
    ) -> StepRecord:
        """Makes a step, parallel to the pool's parts, of the first number the rule keeps per row."""
        return self._written(target, observer, "write_state", rule, log.so_far(), name, centroids_KD)

    def write_nearest(
        self, picks: Step, quotas_K: np.ndarray, centroids_KD: np.ndarray, target: Step, observer: Observer
    ) -> StepRecord:
        """As `write_state`: every row's largest similarity to a pick of its own cluster; null where there is none."""
        return self._written(target, observer, "write_nearest", picks, quotas_K, centroids_KD)

    def write_bins(
        self,
        picks: Step,
        counts_K: np.ndarray,
        bins: int,
        centroids_KD: np.ndarray | None,
        target: Step,
        observer: Observer,
    ) -> StepRecord:
        """As `write_state`: the graph-cut bin of every row."""
        return self._written(target, observer, "write_bins", picks, counts_K, bins, centroids_KD)

    def _written(self, target: Step, observer: Observer, method: str, *args: Any) -> StepRecord:
        started = time.monotonic()
        observer.step_started(target.name, self.num_rows)
        self.group.call(method, *args, target)
        record = target.finish(started=started, rows=self.num_rows)
        observer.step_done(target.name, record.rows, record.seconds, 0, reused=False)
        return record
