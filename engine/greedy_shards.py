"""A member that selects greedily among its share of the pool's vectors.

It holds a selector's state of its rows and brings it up to date from the picks made so far, which every call names, so
a member that was lost is rebuilt from storage. The mathematics is in engine/algorithms; `engine.greedy_index` is the
side that calls. It knows nothing of Ray or of recipes.

Shapes: N rows of a shard, D dims, K centroids, P picks, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from engine.algorithms.exact import ONE, check_units, vector_sum
from engine.algorithms.facility import ArrayFacility, MergedFacility, Sampling, facility_location
from engine.algorithms.greedy import ArrayGreedy, Frontier, MergedGreedy, Picks, Rule
from engine.algorithms.kmeans import nearest_centroid
from engine.algorithms.near_duplicates import ArrayKept
from engine.artifacts import Step
from engine.data.vectors import vectors_from_arrow
from engine.models.threads import map_batches_on_cpu
from engine.pick_log import PicksSoFar
from engine.schema import ROW, VECTOR
from engine.shards import PoolShard

PIECE_ROWS = 4096  # a thread is worth its start from about here
Settled = tuple[np.ndarray, np.ndarray, int, bool]  # arguments of FacilityPool.settle


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
        self.threads = threads
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

    def _facility(self, total_D: np.ndarray, picks: PicksSoFar, settled: Sequence[Settled] = ()) -> MergedFacility:
        def make() -> MergedFacility:
            pieces = [ArrayFacility(self.x_ND[at], self.rows_N[at], self.words_N[at], total_D) for at in self.cut]
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

    def facility_first(self, total_D: np.ndarray, picks: PicksSoFar) -> Picks:
        return self._facility(total_D, picks).first()

    def facility_frontier(
        self,
        total_D: np.ndarray,
        picks: PicksSoFar,
        settled: Sequence[Settled],
        width: int,
        picked: int,
        sampling: Sampling | None,
    ) -> Frontier:
        return self._facility(total_D, picks, settled).frontier(width, picked, sampling)

    def facility_gains(self, total_D: np.ndarray, picks: PicksSoFar, x_BD: np.ndarray) -> np.ndarray:
        return self._facility(total_D, picks).gains(x_BD)

    def facility_bounds(self, total_D: np.ndarray, picks: PicksSoFar, x_BD: np.ndarray) -> np.ndarray:
        return self._facility(total_D, picks).bounds(x_BD)

    def facility_of(
        self, x_ND: np.ndarray, rows_N: np.ndarray, words_N: np.ndarray, num: int, sampling: Sampling | None
    ) -> Picks:
        """Facility location among rows that need not be this member's: one cluster."""
        total_D = vector_sum(x_ND)
        pieces = [ArrayFacility(x_ND[at], rows_N[at], words_N[at], total_D) for at in self._pieces(len(rows_N))]
        return Picks.join(facility_location(MergedFacility(pieces, each_piece), num, sampling=sampling))

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
        columns = {ROW: self.rows_N, name: (kept_N / ONE).astype(np.float32)}
        if centroids_KD is not None:
            columns["cluster"] = self._labels(centroids_KD)
        table = pa.table({key: pa.array(values) for key, values in columns.items()})
        done = target.committed()
        offsets = np.cumsum([0, *self.part_rows])
        for part, low, high in zip(self.parts, offsets[:-1], offsets[1:], strict=True):
            if part not in done:
                target.commit(part, table.slice(low, high - low))
