"""The pool's vectors, shared out over members, and what iterative selection asks of them.

A member (`PoolShard`) holds the float16 vectors of some parts and derives all its state from a log of committed
entries, so a member that was lost is rebuilt by replaying the log and a repeated call is harmless. `PoolIndex` is the
recipe's side: one object that looks like a single big array whatever the number of shards. Every reduce is exact, so
the shard count never shows in a result. It knows nothing of Ray, rounds or judges.

Shapes: N rows of a shard, D dims, K clusters, H hard rows, Q queries, I rows asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa

from engine.algorithms.hard_similarity import clip_similarity, update_best
from engine.algorithms.kmeans import (
    ArrayPoints,
    Fit,
    PartialSums,
    merge_cluster_samples,
    merge_samples,
    nearest_centroid,
)
from engine.algorithms.ranking import combine_scores, top_rows
from engine.algorithms.sampling import cluster_quotas, smallest_per_group
from engine.algorithms.similarity import Nearest, merge_nearest, nearest_rows
from engine.artifacts import Step
from engine.data.vectors import vectors_from_arrow, vectors_to_arrow
from engine.models.threads import map_batches_on_cpu
from engine.runtime import Group, Resources, Runtime
from engine.schema import HARD, ID, ROW, VECTOR, id_words, seeded_hash

Thin = tuple[int, int]  # largest hash of a row of a sample, seed of the hash


class Scores(Protocol):
    """Where a shard gets its rows' probability of being hard from."""

    def of(self, rows_N: np.ndarray, x_ND: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Rows:
    """Some rows of the pool, as parallel arrays."""

    rows: np.ndarray  # int64
    words: np.ndarray  # uint64, first half of the id
    probability: np.ndarray  # float32, NaN when no scores were asked for
    similarity: np.ndarray  # float32 in [0, 1], to the hard set
    cluster: np.ndarray  # int32, -1 when not clustered

    def take(self, picked_I: np.ndarray) -> Rows:
        return Rows(*(getattr(self, name)[picked_I] for name in self.__dataclass_fields__))

    @staticmethod
    def concat(pieces: Sequence[Rows]) -> Rows:
        return Rows(*(np.concatenate([getattr(p, name) for p in pieces]) for name in Rows.__dataclass_fields__))


class PoolShard:
    """One member: the vectors of some parts, which of their rows are still candidates, and their similarity to the
    hard set.

    Args:
        pool, vectors: parallel steps.
        parts: indices of the parts this member holds.
        threads: CPU threads it may use.
    """

    def __init__(self, pool: Step, vectors: Step, parts: Sequence[int], threads: int) -> None:
        from engine.models.threads import set_threads

        set_threads(threads)
        ids = [pool.read(part, [ROW, ID]) for part in parts]
        self.parts = list(parts)
        self.part_rows = [table.num_rows for table in ids]
        self.rows_N = np.concatenate([table[ROW].to_numpy() for table in ids])
        self.words_N = np.concatenate([id_words(table[ID]) for table in ids])
        self.x_ND = np.concatenate([vectors_from_arrow(vectors.read(part, [VECTOR])[VECTOR]) for part in parts])
        self.alive_N = np.ones(len(self.rows_N), dtype=bool)
        self.best_N = np.full(len(self.rows_N), -np.inf, dtype=np.float32)
        self.applied: list[str] = []
        self.points: ArrayPoints | None = None
        self.sampled: tuple[Thin, ArrayPoints] | None = None

    def _catch_up(self, log: Sequence[Step]) -> None:
        """Applies the entries not seen yet: their rows leave the candidates, and the hard ones join the hard set."""
        for entry in log[len(self.applied) :]:
            table = entry.read_all([ROW, HARD, VECTOR])
            rows_I = table[ROW].to_numpy()
            hard_I = table[HARD].fill_null(False).to_numpy()
            self.alive_N[self._find(rows_I)] = False
            x_ID = vectors_from_arrow(table[VECTOR])
            self.best_N = update_best(self.best_N, self.x_ND, self.rows_N, x_ID[hard_I], rows_I[hard_I])
            self.applied.append(entry.fingerprint)
            self.points = None  # the rows to cluster have changed

    def _find(self, rows_I: np.ndarray) -> np.ndarray:
        """Positions in this shard of those rows that it holds. Rows ascend within a shard."""
        at = np.searchsorted(self.rows_N, rows_I)
        at = np.minimum(at, len(self.rows_N) - 1)
        return at[self.rows_N[at] == rows_I]

    def _points(self, log: Sequence[Step], thin: Thin | None = None) -> ArrayPoints:
        """The candidates, or those of them that a sample holds; of samples the last one is kept."""
        self._catch_up(log)
        if self.points is None:
            self.points, self.sampled = ArrayPoints(self.x_ND, self.words_N, self.alive_N), None
        if thin is None:
            return self.points
        if self.sampled is None or self.sampled[0] != thin:
            self.sampled = thin, self.points.thinned(*thin)
        return self.sampled[1]

    def _probability(self, at_I: np.ndarray, scores: Scores | None) -> np.ndarray:
        """M of some rows, NaN when no scores were asked for."""
        if scores is None:
            return np.full(len(at_I), np.nan, dtype=np.float32)
        return scores.of(self.rows_N[at_I], self.x_ND[at_I])

    def _rows(self, at_I: np.ndarray, probability_I: np.ndarray, cluster_I: np.ndarray | None = None) -> Rows:
        return Rows(
            self.rows_N[at_I],
            self.words_N[at_I],
            probability_I,
            clip_similarity(self.best_N[at_I]),
            np.full(len(at_I), -1, dtype=np.int32) if cluster_I is None else cluster_I.astype(np.int32),
        )

    def count(self, log: Sequence[Step], thin: Thin | None = None) -> int:
        return self._points(log, thin).count()

    def sample(
        self, log: Sequence[Step], num_rows: int, seed: int, thin: Thin | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """This shard's part of a hash-chosen sample: ((M,) uint64 hashes, (M, D) vectors), M <= num_rows."""
        return self._points(log, thin).sample_with_hashes(num_rows, seed)

    def assign(self, log: Sequence[Step], centroids_KD: np.ndarray, thin: Thin | None = None) -> PartialSums:
        return self._points(log, thin).assign(centroids_KD)

    def cluster_samples(
        self, log: Sequence[Step], centroids_KD: np.ndarray, quotas_K: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `ArrayPoints.cluster_samples`."""
        return self._points(log).cluster_samples(centroids_KD, quotas_K, seed)

    def fit_each(self, fit: Fit, clusters: Sequence[tuple[np.ndarray, int]]) -> list[np.ndarray]:
        """Fits clusters whose rows need not be this member's, a thread for each."""
        return list(map_batches_on_cpu(lambda cluster: fit(*cluster), clusters))

    def draw(
        self,
        log: Sequence[Step],
        centroids_KD: np.ndarray,
        quotas_K: np.ndarray,
        seed: int,
        purpose: str,
        scores: Scores | None,
    ) -> tuple[Rows, np.ndarray]:
        """Candidates for a per-cluster draw: of each cluster the rows with the smallest hashes, up to its quota."""
        self._catch_up(log)
        at_A = np.flatnonzero(self.alive_N)
        labels_A, _ = nearest_centroid(self.x_ND, centroids_KD, at_A)
        keys_A = seeded_hash(self.words_N[at_A], seed, purpose)
        probability_A = self._probability(at_A, scores)
        if scores is not None:  # a row that the classifier failed on has no score and is never ranked
            labels_A = np.where(np.isfinite(probability_A), labels_A, -1)
        picked = smallest_per_group(labels_A, keys_A, quotas_K)
        return self._rows(at_A[picked], probability_A[picked], labels_A[picked]), keys_A[picked]

    def lookup(self, log: Sequence[Step], rows_I: np.ndarray, scores: Scores | None) -> tuple[Rows, np.ndarray]:
        """The rows asked for that this shard holds, with their (I, D) float16 vectors."""
        self._catch_up(log)
        at_I = self._find(rows_I)
        return self._rows(at_I, self._probability(at_I, scores)), self.x_ND[at_I]

    def top(self, log: Sequence[Step], scores: Scores, alpha: float, scale: tuple[float, float], num: int) -> Rows:
        """This shard's best `num` rows by F = alpha * M + (1 - alpha) * R, labelled rows included."""
        self._catch_up(log)
        at_N = np.arange(len(self.rows_N))
        rows = self._rows(at_N, self._probability(at_N, scores))
        rows = rows.take(np.flatnonzero(np.isfinite(rows.probability)))
        f = combine_scores(rows.probability, rescale(rows.similarity, scale), alpha)
        return rows.take(top_rows(f, rows.words, num))

    def similarity_range(self, log: Sequence[Step]) -> tuple[float, float]:
        """Smallest and largest R of this shard."""
        self._catch_up(log)
        similarity = clip_similarity(self.best_N)
        return float(similarity.min()), float(similarity.max())

    def nearest(self, queries_QD: np.ndarray, query_rows_Q: np.ndarray) -> Nearest:
        """The most similar other row of this shard for each query."""
        return nearest_rows(self.x_ND, self.rows_N, self.words_N, queries_QD, query_rows_Q, 1)

    def nearest_to_part(self, vectors: Step, part: int, k: int) -> Nearest:
        """The k most similar other rows of this shard for each row of a part of the vectors."""
        table = vectors.read(part, [ROW, VECTOR])
        queries_QD = vectors_from_arrow(table[VECTOR])
        return nearest_rows(self.x_ND, self.rows_N, self.words_N, queries_QD, table[ROW].to_numpy(), k)

    def nearest_free(self, queries_QD: np.ndarray, taken_M: np.ndarray, k: int) -> Nearest:
        """The k rows of this shard most similar to each query, but for the rows taken."""
        free_N = ~np.isin(self.rows_N, taken_M)
        none_Q = np.full(len(queries_QD), -1)
        return nearest_rows(self.x_ND, self.rows_N, self.words_N, queries_QD, none_Q, k, free_N)

    def write_scores(
        self,
        log: Sequence[Step],
        centroids_KD: np.ndarray,
        scores: Scores,
        alpha: float,
        scale: tuple[float, float],
        target: Step,
    ) -> None:
        """Commits M, R, F and cluster of every row, one part of `target` per part held."""
        self._catch_up(log)
        offset = 0
        done = target.committed()
        for part, count in zip(self.parts, self.part_rows, strict=True):
            at = np.arange(offset, offset + count)
            offset += count
            if part in done:
                continue
            labels, _ = nearest_centroid(self.x_ND, centroids_KD, at)
            rows = self._rows(at, self._probability(at, scores), labels)
            target.commit(part, scored_columns(rows, alpha, scale).add_column(0, ROW, pa.array(rows.rows)))


def scored_columns(rows: Rows, alpha: float, scale: tuple[float, float]) -> pa.Table:
    """M, R, F and cluster of some rows, as `scores/` has them; M and F are null where the classifier failed.

    Args:
        scale: the range of R that becomes [0, 1], see `PoolIndex.scale`.
    """
    failed = np.isnan(rows.probability)
    f = combine_scores(np.where(failed, 0.0, rows.probability), rescale(rows.similarity, scale), alpha)
    columns = [
        pa.array(rows.probability, mask=failed),
        rows.similarity,
        pa.array(f.astype(np.float32), mask=failed),
        rows.cluster,
    ]
    return pa.table(columns, names=["probability", "similarity", "score", "cluster"])


def rescale(similarity_N: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """R mapped from `scale` to [0, 1]; zeros when the range is empty."""
    low, high = scale
    return (similarity_N - low) / (high - low) if high > low else np.zeros_like(similarity_N)


class PoolIndex:
    """The pool as one object: the same answers whatever the number of shards. Also the `Points` of K-Means.

    Args:
        runtime: makes the members.
        pool, vectors: parallel, complete steps.
    """

    member: ClassVar[type[PoolShard]] = PoolShard

    def __init__(self, runtime: Runtime, pool: Step, vectors: Step) -> None:
        parts = [part.index for part in vectors.require().parts]
        num_shards = max(1, min(runtime.shards, len(parts)))
        held = [list(map(int, piece)) for piece in np.array_split(parts, num_shards)]
        resources = Resources(cpus=runtime.threads, resident=True)
        shards = [{"pool": pool, "vectors": vectors, "parts": h, "threads": runtime.threads} for h in held]
        self.group: Group = runtime.group(self.member, shards, resources)
        self.log: list[Step] = []
        self.thin: Thin | None = None
        self._dim = int(vectors.read(parts[0], [VECTOR]).schema.field(VECTOR).type.list_size)

    def remember(self, entry: Step) -> None:
        """Adds a committed table (row, hard, vector): its rows stop being candidates; the hard ones join D^H."""
        self.log.append(entry)

    def count(self) -> int:
        return sum(self.group.call("count", self.log, self.thin))

    def dim(self) -> int:
        return self._dim

    def sample(self, num_rows: int, seed: int) -> np.ndarray:
        return merge_samples(self.group.call("sample", self.log, num_rows, seed, self.thin), num_rows)[1]

    def assign(self, centroids_KD: np.ndarray) -> PartialSums:
        return reduce(add, self.group.call("assign", self.log, centroids_KD, self.thin))

    def thinned(self, limit: int, seed: int) -> PoolIndex:
        """The same members and log, of which K-Means sees the rows of a sample only."""
        view = copy.copy(self)
        view.thin = (limit, seed)
        return view

    def fit_clusters(self, centroids_KD: np.ndarray, fine_K: np.ndarray, rows: int, fit: Fit) -> list[np.ndarray]:
        pieces = self.group.call("cluster_samples", self.log, centroids_KD, rows * fine_K, fit.seed)
        clusters = merge_cluster_samples(pieces, fine_K, rows)
        size = min(self.group.size, len(clusters))
        fitted = dict(self.group.dispatch("fit_each", [(fit, clusters[number::size]) for number in range(size)]))
        return [fitted[place % size][place // size] for place in range(len(clusters))]

    def draw(
        self,
        centroids_KD: np.ndarray,
        counts_K: np.ndarray,
        num: int,
        rule: Any,
        seed: int,
        purpose: str,
        scores: Scores | None = None,
    ) -> Rows:
        """A diverse subset: each cluster gives its quota of candidates, chosen by hash, sorted by id."""
        quotas_K = cluster_quotas(counts_K, num, rule)
        pieces = self.group.call("draw", self.log, centroids_KD, quotas_K, seed, purpose, scores)
        rows = Rows.concat([piece[0] for piece in pieces])
        keys = np.concatenate([piece[1] for piece in pieces])
        chosen = rows.take(smallest_per_group(rows.cluster, keys, quotas_K))
        return chosen.take(np.argsort(chosen.words, kind="stable"))

    def lookup(self, rows_I: np.ndarray, scores: Scores | None = None) -> tuple[Rows, np.ndarray]:
        """Rows and their vectors, in the order asked for."""
        pieces = self.group.call("lookup", self.log, rows_I, scores)
        rows = Rows.concat([piece[0] for piece in pieces])
        x_ID = np.concatenate([piece[1] for piece in pieces])
        at = np.argsort(rows.rows, kind="stable")[np.argsort(np.argsort(rows_I, kind="stable"), kind="stable")]
        return rows.take(at), x_ID[at]

    def top(self, scores: Scores, alpha: float, similarity: str, num: int) -> Rows:
        """The `num` best rows of the pool by F, best first, ties by id."""
        scale = self.scale(similarity)
        rows = Rows.concat(self.group.call("top", self.log, scores, alpha, scale, num))
        f = combine_scores(rows.probability, rescale(rows.similarity, scale), alpha)
        return rows.take(top_rows(f, rows.words, num))

    def scale(self, similarity: str) -> tuple[float, float]:
        """The range of R that becomes [0, 1]: itself ("clip") or the pool's smallest and largest ("minmax")."""
        if similarity == "clip":
            return 0.0, 1.0
        lows, highs = zip(*self.group.call("similarity_range", self.log), strict=True)
        return min(lows), max(highs)

    def scaled(self, similarity_N: np.ndarray, similarity: str) -> np.ndarray:
        """R of some rows as it enters F."""
        return rescale(similarity_N, self.scale(similarity))

    def vectors_arrow(self, rows_I: np.ndarray) -> pa.Array:
        """The vectors of some rows as an Arrow column."""
        return vectors_to_arrow(self.lookup(rows_I)[1])

    def nearest(self, queries_QD: np.ndarray, query_rows_Q: np.ndarray) -> np.ndarray:
        """(Q,) row of the most similar other row of the pool."""
        return merge_nearest(self.group.call("nearest", queries_QD, query_rows_Q), 1).rows_Qk[:, 0]

    def nearest_to_part(self, vectors: Step, part: int, k: int) -> Nearest:
        """The k most similar other rows of the pool for each row of a part of the vectors."""
        return merge_nearest(self.group.call("nearest_to_part", vectors, part, k), k)

    def nearest_free(self, queries_QD: np.ndarray, taken_M: np.ndarray, k: int) -> Nearest:
        """The k rows of the pool most similar to each query, but for the rows taken."""
        return merge_nearest(self.group.call("nearest_free", queries_QD, taken_M, k), k)

    def write_scores(
        self, centroids_KD: np.ndarray, scores: Scores, alpha: float, similarity: str, target: Step
    ) -> None:
        self.group.call("write_scores", self.log, centroids_KD, scores, alpha, self.scale(similarity), target)

    def close(self) -> None:
        self.group.close()
