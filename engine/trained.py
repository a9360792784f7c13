"""The selector that a finished run of `iterselect` or `update` ended with: classifier, hard set, clusters, cut.

It gives new rows the scores that the run would have given them: M from the last classifier, R to the final hard set,
F = alpha * M + (1 - alpha) * R and the cluster (engine/recipes/iterselect.py). A row of the run's own pool is known by
its id and gets the very numbers that it has in the run's `scores/`. An update has a hard set of rows that are not in
its pool and a sample of all rows so far to measure its cut on (engine/takeover.py). Nothing here trains, judges or
selects.

Shapes: N rows scored, D dims, H hard rows, K clusters, P rows that the cut is measured on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.algorithms.hard_similarity import clip_similarity, update_best
from engine.algorithms.kmeans import nearest_centroid
from engine.algorithms.similarity import Nearest, merge_nearest, nearest_rows
from engine.artifacts import Step, take_rows
from engine.config import RunConfig
from engine.data.vectors import vectors_from_arrow
from engine.errors import ConfigError
from engine.labelling import LoopConfig
from engine.lineage import steps_of
from engine.recipes.iterselect import load_centroids
from engine.run_folder import read_manifest, run_steps
from engine.schema import FILE, HARD, ID, LINE, PROBABILITY, PROMPT, ROW, VECTOR, id_words
from engine.settings import config_of
from engine.shards import Rows, scored_columns
from engine.store import Store
from engine.trainer import ProbeScores
from engine.yaml_document import Document

SCORED = ("probability", "similarity", "score")
SELECTORS = ("iterselect", "update")  # recipes that leave one behind
# Steps of an update: what it took over, the sample of all rows so far, and its scores.
LABELS_BEFORE, HARD_BEFORE = "labels_before", "hard_before"
REFERENCE, REFERENCE_SCORES = "reference", "reference_scores"
TAKEN_OVER = (LABELS_BEFORE, HARD_BEFORE)
HOW = "how"  # of a row that was taken over: how it came into the hard set


@dataclass(frozen=True)
class TrainedSelector:
    """What a run leaves behind for new rows.

    Attributes:
        run: the folder of its outputs.
        config: of the run; `recipe` is that of `iterselect` or `update`.
        pool, diverse, checkpoint: its steps `ingest`, `diverse` (with the centroids) and the last classifier.
        texts, vectors: of the rows that its cut is measured on: the pool, or an update's sample of all rows so far.
        log: the tables (row, hard, vector) in the order in which the run's hard set grew; those of rows that are not in
            `pool` have `id, file, line, prompt, how` too, and numbers below -1 for these rows.
        encoder: arguments of the run's encoder, pinned.
    """

    run: Store
    config: RunConfig
    pool: Step
    diverse: Step
    checkpoint: Step
    texts: Step
    vectors: Step
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
    if recipe not in SELECTORS:
        why, fix = "its selectors rank the rows of a pool against each other", "run it on both pools, or on their union"
        if recipe == "apply":
            why, fix = "it applied another run's", f"apply that one: {record['config']['recipe']['run']}"
        raise ConfigError(
            f"recipe {recipe} has no selector that stands on its own", where=run.root, why=why, fix=fix, code="E226"
        )
    named, pool = {step.name: step for step in steps_of(run)}, run_steps(run)["ingest"]
    before = [name for name in TAKEN_OVER if name in named]
    labels = [name for name in named if name.startswith("rounds/") and name.endswith("/labels")]
    classifiers = [name for name in named if name.startswith("rounds/") and name.endswith("/classifier")]
    turns = [name for name in named if name.startswith("inference/")]
    return TrainedSelector(
        run=run,
        config=config_of(Document(record["config"], run.path("run.json"))),
        pool=pool,
        diverse=named["diverse"],
        checkpoint=named[max(classifiers)],
        texts=named.get(REFERENCE, pool),
        vectors=named.get(REFERENCE, named["embed"]),
        log=tuple(named[name] for name in [*before, *sorted(labels), *sorted(turns)]),
        encoder=dict(named["embed"].settings["encoder"]),
    )


class RowsById:
    """Finds rows by the first words of their ids.

    Args:
        words_M: (M,) uint64, distinct.
        rows_M: (M,) int64 row numbers.
    """

    def __init__(self, words_M: np.ndarray, rows_M: np.ndarray) -> None:
        order_M = np.argsort(words_M, kind="stable")
        self._words_M, self._rows_M = words_M[order_M], rows_M[order_M]

    def rows_of(self, words_N: np.ndarray) -> np.ndarray:
        """(N,) int64 rows by id; -1 for those that are not there."""
        if not len(self._words_M):
            return np.full(len(words_N), -1)
        at_N = np.minimum(np.searchsorted(self._words_M, words_N), len(self._words_M) - 1)
        return np.where(self._words_M[at_N] == words_N, self._rows_M[at_N], -1)


class HardSet(RowsById):
    """D^H as the run grew it, in memory: 2 * H * D bytes.

    Args:
        selector: of the run.

    Attributes:
        blocks: per table of the log, (H, D) float16 vectors and (H,) int64 rows of the run's pool, below -1 for rows
            that are not in it.
        entries: per table of the log, the name of its step.
    """

    def __init__(self, selector: TrainedSelector) -> None:
        self.blocks: list[tuple[np.ndarray, np.ndarray]] = []
        self.entries = [step.name for step in selector.log]
        words = []
        for step in selector.log:
            names = [ROW, HARD, VECTOR, *([ID] if step.name in TAKEN_OVER else [])]
            table = step.read_all(names)
            hard_I = table[HARD].fill_null(False).to_numpy()
            rows_H = table[ROW].to_numpy()[hard_I]
            self.blocks.append((vectors_from_arrow(table[VECTOR])[hard_I], rows_H))
            ids = table.filter(pa.array(hard_I)) if ID in names else take_rows(selector.pool, rows_H, [ID])
            words.append(id_words(ids[ID]))
        super().__init__(np.concatenate(words), np.concatenate([rows for _, rows in self.blocks]))

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
        """(row as in the log, cosine, entry of the log) of the k rows of D^H most similar to one row, best first.

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
        return [(row, cosine, entry_of[row]) for row, cosine in pairs if row != -1]


def entered(name: str) -> str:
    """How a row came into the hard set, from the name of the step that brought it."""
    number = int(name.split("/")[1]) + 1
    return f"judged hard in round {number}" if name.startswith("rounds/") else f"taken in inference turn {number}"


def hard_rows(selector: TrainedSelector, rows: Sequence[int], entry: str) -> list[dict[str, Any]]:
    """What is known of rows of the hard set that one table of the log brought.

    Returns:
        In the order of `rows`: `id`, `file`, `line`, `prompt`, `how` it came into the hard set.
    """
    about = [ID, FILE, LINE, PROMPT]
    if entry not in TAKEN_OVER:
        found = take_rows(selector.pool, np.array(rows, np.int64), about).select(about).to_pylist()
        return [{**row, HOW: entered(entry)} for row in found]
    (step,) = (step for step in selector.log if step.name == entry)
    wanted = pa.array(rows, pa.int64())
    parts = [step.read(part.index, [ROW, *about, HOW]) for part in step.require().parts]
    table = pa.concat_tables([part.filter(pc.is_in(part[ROW], wanted)) for part in parts])  # pyright: ignore
    known = {row[ROW]: row for row in table.to_pylist()}
    return [{name: known[row][name] for name in (*about, HOW)} for row in rows]


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
