"""A member that selects greedily among its share of the pool's vectors.

It holds a selector's state of its rows and brings it up to date from the picks made so far, which every call names, so
a member that was lost is rebuilt from storage. The mathematics is in engine/algorithms; `engine.greedy_index` is the
side that calls. It knows nothing of Ray or of recipes.

Shapes: N rows of a shard, D dims, K centroids, P picks, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from engine.algorithms.columns import columns_for
from engine.algorithms.exact import ONE, check_units, largest_similarity, vector_sum
from engine.algorithms.facility import ArrayFacility, MergedFacility, Sampling
from engine.algorithms.greedy import ArrayGreedy, Frontier, MergedGreedy, Picks
from engine.algorithms.greedy_rules import Rule
from engine.algorithms.kmeans import nearest_centroid
from engine.algorithms.near_duplicates import ArrayKept
from engine.artifacts import Step
from engine.data.vectors import vectors_from_arrow
from engine.greedy_clusters import ClusterRows, InCluster, rows_in_bins, rows_per_bin
from engine.models.threads import map_batches_on_cpu
from engine.pick_log import PicksSoFar
from engine.schema import ROW, VECTOR
from engine.shards import PoolShard

PIECE_ROWS = 4096  # a thread is worth its start from about here
Settled = tuple[np.ndarray, np.ndarray, int, bool]  # arguments of FacilityPool.settle


@dataclass(frozen=True)
class Around:
    """What facility location is about, besides a member's own rows."""

    total_D: np.ndarray  # float64, sum of all rows of all shards
    candidates: Step | None  # a step whose rows may be picked; all when None


def each_piece(function: Callable[[Any], Any], pieces: Sequence[Any]) -> list[Any]:
    """Results in order: several pieces in threads of their own, one without starting any."""
    import torch

    if len(pieces) > 1:
        return list(map_batches_on_cpu(function, pieces))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on tiles, torch's own threads wait for one another longer than they work
    try:
        return [function(piece) for piece in pieces]
    finally:
        torch.set_num_threads(threads)


class GreedyShard(PoolShard):
    """A member that also keeps the state of one greedy selection at a time.

    Its rows are cut into one piece per thread: pieces are shards like any others, so the cut changes no result.

    Raises:
        DataError: the vectors are not of norm 1.
    """

    def __init__(self, pool: Step, vectors: Step, parts: Sequence[int], threads: int) -> None:
        super().__init__(pool, vectors, parts, threads)
        check_units(self.x_ND)
        self.threads, self.pool_rows = threads, pool.require().rows
        self.cut = self._pieces(len(self.rows_N))
        self.state: Any = None
        self.state_of, self.known = "", 0
        self.centroids_KD, self.labels_N = np.empty((0, 0), np.float32), np.empty(0, np.int32)

    def _pieces(self, num_rows: int) -> list[slice]:
        count = min(self.threads, -(-num_rows // PIECE_ROWS))
        return [slice(at[0], at[-1] + 1) for at in np.array_split(np.arange(num_rows), count)]

    def _caught_up(self, key: str, make: Callable[[], Any], picks: PicksSoFar) -> Any:
        """The state named `key`, made anew if it is another than the last, with all picks applied."""
        key = f"{key}/{picks.step.fingerprint}"
        if key != self.state_of:
            self.state, self.state_of, self.known = make(), key, 0
        for rows_P, x_PD in picks.since(self.known):
            if len(rows_P):
                self.state.add_rows(rows_P, x_PD)
                self.known += len(rows_P)
        return self.state

    def _greedy(self, rule: Rule, picks: PicksSoFar) -> MergedGreedy:
        def make() -> MergedGreedy:
            seeds_KD = None
            if picks.seeds is not None:
                seeds_KD = vectors_from_arrow(picks.seeds.read_all([VECTOR])[VECTOR])
            pieces = each_piece(
                lambda at: ArrayGreedy(self.x_ND[at], self.rows_N[at], self.words_N[at], rule, seeds_KD), self.cut
            )
            return MergedGreedy(pieces, each_piece)

        return self._caught_up(type(rule).__name__, make, picks)

    def _facility(self, around: Around, picks: PicksSoFar, settled: Sequence[Settled] = ()) -> MergedFacility:
        def make() -> MergedFacility:
            free_N = np.ones(len(self.rows_N), dtype=bool)
            if around.candidates is not None:
                free_N = np.isin(self.rows_N, around.candidates.read_all([ROW])[ROW].to_numpy())
            columns = columns_for(self.pool_rows)
            pieces = [
                ArrayFacility(self.x_ND[at], self.rows_N[at], self.words_N[at], around.total_D, free_N[at], columns)
                for at in self.cut
            ]
            return MergedFacility(pieces, each_piece)

        state = self._caught_up("facility", make, picks)
        for found in settled:
            state.settle(*found)
        return state

    def total(self) -> np.ndarray:
        """(D,) float64, the exact sum of the vectors."""
        return np.sum(each_piece(lambda at: vector_sum(self.x_ND[at]), self.cut), axis=0)

    def greedy_frontier(self, rule: Rule, picks: PicksSoFar, width: int) -> Frontier:
        return self._greedy(rule, picks).frontier(width)

    def greedy_count_right(self, rule: Rule, picks: PicksSoFar, guessed: Picks) -> int:
        return self._greedy(rule, picks).count_right(guessed)

    def facility_first(self, around: Around, picks: PicksSoFar) -> Picks:
        return self._facility(around, picks).first()

    def facility_frontier(
        self,
        around: Around,
        picks: PicksSoFar,
        settled: Sequence[Settled],
        width: int,
        picked: int,
        sampling: Sampling | None,
    ) -> Frontier:
        return self._facility(around, picks, settled).frontier(width, picked, sampling)

    def facility_gain(self, around: Around, picks: PicksSoFar, row: int, x_D: np.ndarray) -> int:
        return self._facility(around, picks).gain(row, x_D)

    def facility_bounds(self, around: Around, picks: PicksSoFar, rows_B: np.ndarray, x_BD: np.ndarray) -> np.ndarray:
        return self._facility(around, picks).bounds(rows_B, x_BD)

    def picks_in_cluster(
        self, rows_N: np.ndarray, words_N: np.ndarray, x_ND: np.ndarray, method: InCluster, num: int
    ) -> Picks:
        """Selects among rows that need not be this member's: one cluster."""
        return Picks.join(method.picks(ClusterRows(rows_N, words_N, x_ND, self._pieces(len(rows_N)), each_piece), num))

    def largest_kept(self, picks: PicksSoFar, x_BD: np.ndarray) -> np.ndarray:
        """(B,) int64, of each vector the largest similarity to a kept row of this shard."""
        kept = self._caught_up("kept", lambda: ArrayKept(self.x_ND, self.rows_N, self.words_N), picks)
        return kept.largest_kept(x_BD)

    def cluster_rows(
        self, centroids_KD: np.ndarray, clusters: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Cluster, row, id word and vector of this shard's rows in some clusters."""
        at_M = np.flatnonzero(np.isin(self._labels(centroids_KD), clusters))
        return self.labels_N[at_M], self.rows_N[at_M], self.words_N[at_M], self.x_ND[at_M]

    def _labels(self, centroids_KD: np.ndarray) -> np.ndarray:
        if not np.array_equal(centroids_KD, self.centroids_KD):
            self.centroids_KD, self.labels_N = centroids_KD, nearest_centroid(self.x_ND, centroids_KD)[0]
        return self.labels_N

    def write_state(
        self, rule: Rule, picks: PicksSoFar, name: str, centroids_KD: np.ndarray | None, target: Step
    ) -> None:
        """Commits what the rule keeps first for every row, as a column of that name, and the cluster of each row."""
        state = self._greedy(rule, picks)
        kept_N = np.concatenate([piece.state_SN[0] for piece in state.shards])
        columns = {name: (kept_N / ONE).astype(np.float32)}
        self._write(columns | self._cluster_column(centroids_KD), target)

    def write_nearest(self, picks: Step, quotas_K: np.ndarray, centroids_KD: np.ndarray, target: Step) -> None:
        """Commits every row's cluster and largest similarity to a pick of that cluster, null where there is none.

        Args:
            picks: complete; cluster after cluster, each as many as its quota.
        """
        labels_N = self._labels(centroids_KD)
        x_PD = vectors_from_arrow(picks.read_all([VECTOR])[VECTOR])
        blocks = np.split(x_PD, np.cumsum(quotas_K)[:-1])
        order_N = np.argsort(labels_N, kind="stable")
        mine = np.split(order_N, np.cumsum(np.bincount(labels_N, minlength=len(blocks)))[:-1])
        found = each_piece(
            lambda pair: largest_similarity(self.x_ND[pair[0]], pair[1]), list(zip(mine, blocks, strict=True))
        )
        nearest_N = np.empty(len(labels_N), dtype=np.int64)
        nearest_N[order_N] = np.concatenate(found)
        similar_N = pa.array((nearest_N / ONE).astype(np.float32), mask=nearest_N == np.iinfo(np.int64).min)
        self._write({"similarity": similar_N} | self._cluster_column(centroids_KD), target)

    def write_bins(
        self, picks: Step, counts_K: np.ndarray, bins: int, centroids_KD: np.ndarray | None, target: Step
    ) -> None:
        """Commits the graph-cut bin of every row, the last one for what was not picked, and the cluster.

        Args:
            picks: complete; cluster after cluster, each as many as `rows_in_bins` of its rows.
            counts_K: rows of each cluster, one cluster when there are no centroids.
        """
        labels_N = np.zeros(len(self.rows_N), np.int32) if centroids_KD is None else self._labels(centroids_KD)
        bin_N = (np.minimum(bins, counts_K) - 1)[labels_N].astype(np.int32)
        rows_P, picked_K = picks.read_all([ROW])[ROW].to_numpy(), rows_in_bins(counts_K, bins)
        cluster_P = np.repeat(np.arange(len(counts_K)), picked_K)
        place_P = np.arange(len(rows_P)) - (np.cumsum(picked_K) - picked_K)[cluster_P]
        at_P = np.searchsorted(self.rows_N, rows_P).clip(max=len(self.rows_N) - 1)
        mine_P = self.rows_N[at_P] == rows_P
        bin_N[at_P[mine_P]] = (place_P // rows_per_bin(counts_K, bins)[cluster_P])[mine_P]
        self._write({"bin": bin_N} | self._cluster_column(centroids_KD), target)

    def _cluster_column(self, centroids_KD: np.ndarray | None) -> dict[str, np.ndarray]:
        return {} if centroids_KD is None else {"cluster": self._labels(centroids_KD)}

    def _write(self, columns: Mapping[str, Any], target: Step) -> None:
        """Commits columns over this member's rows, one part per part held."""
        table = pa.table({name: pa.array(values) for name, values in {ROW: self.rows_N, **columns}.items()})
        done = target.committed()
        offsets = np.cumsum([0, *self.part_rows])
        for part, low, high in zip(self.parts, offsets[:-1], offsets[1:], strict=True):
            if part not in done:
                target.commit(part, table.slice(low, high - low))
