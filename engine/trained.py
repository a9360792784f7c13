"""The selector that a finished run of `iterselect` ended with, as files: classifier, hard set, clusters, cut.

It gives new rows the scores that the run would have given them: M from the last classifier, R to the final hard set,
F = alpha * M + (1 - alpha) * R and the cluster (engine/recipes/iterselect.py). A row of the run's own pool is known by
its id and gets the very numbers that it has in the run's `scores/`. Nothing here trains, judges or selects.

Shapes: N rows scored, D dims, H hard rows, K clusters, P rows of the run's pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.algorithms.hard_similarity import clip_similarity, update_best
from engine.algorithms.kmeans import nearest_centroid
from engine.algorithms.ranking import nth_best
from engine.algorithms.similarity import Nearest, merge_nearest, nearest_rows
from engine.artifacts import Step, take_rows
from engine.config import RunConfig
from engine.data.vectors import vectors_from_arrow
from engine.errors import ConfigError, DataError
from engine.labelling import LoopConfig
from engine.lineage import steps_of
from engine.recipes.iterselect import load_centroids
from engine.run_folder import read_manifest, run_steps
from engine.schema import HARD, ID, PROBABILITY, ROW, VECTOR, id_words
from engine.settings import config_of
from engine.shards import Rows, scored_columns
from engine.store import Store
from engine.trainer import ProbeScores
from engine.yaml_document import Document

SCORED = ("probability", "similarity", "score")


@dataclass(frozen=True)
class TrainedSelector:
    """What a run leaves behind for new rows.

    Attributes:
        run: the folder of its outputs.
        config: of the run; `recipe` is that of `iterselect`.
        pool, diverse, checkpoint: its steps `ingest`, `diverse` (with the centroids) and the last classifier.
        log: the tables (row, hard, vector) in the order in which the run's hard set grew.
        encoder: arguments of the run's encoder, pinned.
    """

    run: Store
    config: RunConfig
    pool: Step
    diverse: Step
    checkpoint: Step
    log: tuple[Step, ...]
    encoder: dict[str, Any]

    @property
    def recipe(self) -> LoopConfig:
        assert isinstance(self.config.recipe, LoopConfig)
        return self.config.recipe

    @property
    def fingerprints(self) -> list[str]:
        """Of everything that the scores of a new row depend on besides the row."""
        return [step.fingerprint for step in (self.diverse, self.checkpoint, *self.log)]


def load_selector(out: str) -> TrainedSelector:
    """The selector of a finished run.

    Raises:
        DataError: E441, there is no finished run.
        ConfigError: E226, its recipe leaves no selector behind.
    """
    run = Store(out)
    record = read_manifest(run)
    recipe = record["config"]["recipe"]["name"]
    if recipe != "iterselect":
        why, fix = "its selectors rank the rows of a pool against each other", "run it on both pools, or on their union"
        if recipe == "apply":
            why, fix = "it applied another run's", f"apply that one: {record['config']['recipe']['run']}"
        raise ConfigError(
            f"recipe {recipe} has no selector that stands on its own", where=run.root, why=why, fix=fix, code="E226"
        )
    named = {step.name: step for step in steps_of(run)}
    labels = [name for name in named if name.startswith("rounds/") and name.endswith("/labels")]
    classifiers = [name for name in named if name.startswith("rounds/") and name.endswith("/classifier")]
    turns = [name for name in named if name.startswith("inference/")]
    return TrainedSelector(
        run=run,
        config=config_of(Document(record["config"], run.path("run.json"))),
        pool=run_steps(run)["ingest"],
        diverse=named["diverse"],
        checkpoint=named[max(classifiers)],
        log=tuple(named[name] for name in [*sorted(labels), *sorted(turns)]),
        encoder=dict(named["embed"].settings["encoder"]),
    )


class HardSet:
    """D^H as the run grew it, in memory: 2 * H * D bytes.

    Args:
        selector: of the run.

    Attributes:
        blocks: per table of the log, (H, D) float16 vectors and (H,) int64 rows of the run's pool.
        entries: per table of the log, the name of its step.
    """

    def __init__(self, selector: TrainedSelector) -> None:
        self.blocks: list[tuple[np.ndarray, np.ndarray]] = []
        self.entries = [step.name for step in selector.log]
        for step in selector.log:
            table = step.read_all([ROW, HARD, VECTOR])
            hard_I = table[HARD].fill_null(False).to_numpy()
            self.blocks.append((vectors_from_arrow(table[VECTOR])[hard_I], table[ROW].to_numpy()[hard_I]))
        rows_H = np.concatenate([rows for _, rows in self.blocks])
        words_H = id_words(take_rows(selector.pool, rows_H, [ID])[ID])
        order_H = np.argsort(words_H, kind="stable")
        self._words_H, self._rows_H = words_H[order_H], rows_H[order_H]

    def rows_of(self, words_N: np.ndarray) -> np.ndarray:
        """(N,) int64 rows of the run's pool, by id, of those rows that are in D^H; -1 for all others."""
        if not len(self._words_H):
            return np.full(len(words_N), -1)
        at_N = np.minimum(np.searchsorted(self._words_H, words_N), len(self._words_H) - 1)
        return np.where(self._words_H[at_N] == words_N, self._rows_H[at_N], -1)

    def similarity(self, x_ND: np.ndarray, words_N: np.ndarray) -> np.ndarray:
        """(N,) float32 R: largest cosine to D^H, the row itself excluded, in [0, 1].

        The tables are gone through one by one, as the run did, so that rounding is the same.
        """
        rows_N = self.rows_of(words_N)
        best_N = np.full(len(x_ND), -np.inf, dtype=np.float32)
        for hard_HD, hard_rows_H in self.blocks:
            best_N = update_best(best_N, x_ND, rows_N, hard_HD, hard_rows_H)
        return clip_similarity(best_N)

    def nearest(self, x_D: np.ndarray, word: np.uint64, k: int) -> list[tuple[int, float, str]]:
        """(row of the run's pool, cosine, entry of the log) of the k rows of D^H most similar to one row, best first.

        Args:
            x_D: (D,) float16; word: of the row's id, to leave itself out.
        """
        own = self.rows_of(np.array([word]))
        entry_of: dict[int, str] = {}
        found: list[Nearest] = []
        for name, (hard_HD, hard_rows_H) in zip(self.entries, self.blocks, strict=True):
            entry_of |= dict.fromkeys(hard_rows_H.tolist(), name)
            if len(hard_HD):
                found.append(nearest_rows(hard_HD, hard_rows_H, hard_rows_H.astype(np.uint64), x_D[None], own, k))
        if not found:
            return []
        best = merge_nearest(found, k)
        pairs = zip(best.rows_Qk[0].tolist(), best.similarity_Qk[0].tolist(), strict=True)
        return [(row, cosine, entry_of[row]) for row, cosine in pairs if row >= 0]


class ScoreNewRows:
    """Stage: M, R, F and cluster of rows under a trained selector.

    Reads `id`, `vector`, and `probability` where the classifier is one that reads texts and had a pass of its own.
    """

    columns_out = (
        pa.field("probability", pa.float32()),
        pa.field("similarity", pa.float32()),
        pa.field("score", pa.float32()),
        pa.field("cluster", pa.int32()),
    )

    def __init__(self, selector: TrainedSelector, scale: tuple[float, float]) -> None:
        self.selector, self.scale = selector, scale
        self.hard = HardSet(selector)
        self.probe = ProbeScores(selector.checkpoint) if selector.recipe.classifier.kind == "probe" else None

    def __call__(self, table: pa.Table) -> pa.Table:
        x_ND, words_N = vectors_from_arrow(table[VECTOR]), id_words(table[ID])
        if self.probe is not None:
            probability_N = self.probe.of(np.arange(len(table)), x_ND)
        else:
            probability_N = table[PROBABILITY].to_numpy(zero_copy_only=False).astype(np.float32)
        cluster_N, _ = nearest_centroid(x_ND, load_centroids(self.selector.diverse, x_ND.shape[1]))
        rows = Rows(np.arange(len(table)), words_N, probability_N, self.hard.similarity(x_ND, words_N), cluster_N)
        return scored_columns(rows, self.selector.recipe.alpha, self.scale)


@dataclass(frozen=True)
class PoolScores:
    """What the run's `scores/` say of its P rows; nan where the classifier failed."""

    words_P: np.ndarray  # uint64
    columns: dict[str, np.ndarray]  # SCORED -> (P,) float32; "cluster" -> (P,) int32
    selected: int  # rows

    @property
    def cut(self) -> float:
        """F of the row at which the best of the pool by F are as many as the run selected.

        With `one_shot` inference these are the run's selection. Iterative inference took its rows turn by turn, each
        turn by the F of its moment; the cut is where its last F, that of the final hard set, would have cut.
        """
        found = nth_best(self.columns["score"], self.selected)
        if found is None:
            raise DataError("the run has no row with a score to cut at", fix="apply with budget=", code="E473")
        return found

    def scale(self, similarity: str) -> tuple[float, float]:
        """The range of R that becomes [0, 1] in F."""
        r = self.columns["similarity"]
        return (0.0, 1.0) if similarity == "clip" else (float(r.min()), float(r.max()))


def pool_scores(run: Store) -> PoolScores:
    """Ids and numbers of a finished run's `scores/`, all parts; no texts."""
    words, pieces, selected = [], [], 0
    for name in run.list("scores"):
        table = pq.read_table(run.open_read(f"scores/{name}"), columns=[ID, *SCORED, "cluster", "selected"])
        words.append(id_words(table[ID]))
        selected += table["selected"].to_numpy(zero_copy_only=False).sum()
        pieces.append(table.select([*SCORED, "cluster"]))
    table = pa.concat_tables(pieces)
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    return PoolScores(np.concatenate(words), columns, int(selected))
