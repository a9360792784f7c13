"""The rows that a trained selector measures its cut and its range of R on: the pool of a run, or a sample.

It reads ids and numbers, no texts and no vectors, and computes no score but F from M and R.
"""

# Shape letters: P rows that the cut is measured on.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.algorithms.ranking import nth_best
from engine.artifacts import Step
from engine.errors import DataError
from engine.lineage import steps_of
from engine.schema import ID, id_words
from engine.shards import Rows, scored_columns
from engine.trained import REFERENCE, REFERENCE_SCORES, SCORED, TrainedSelector


@dataclass(frozen=True)
class PoolScores:
    """The rows that a selector's cut is measured on, by its own scores; nan where the classifier failed."""

    words_P: np.ndarray  # uint64
    columns: dict[str, np.ndarray]  # SCORED -> (P,) float32; "cluster" -> (P,) int32
    selected: int  # rows above the cut

    @property
    def cut(self) -> float:
        """F of the row at which the best of the pool by F are as many as the run selected.

        With `one_shot` inference these are the run's selection. Iterative inference took its rows turn by turn, each
        turn by the F of its moment; the cut is where its last F, that of the final hard set, would have cut. Of an
        update: the F at which its sample of all rows so far has the share above it that the first run selected.
        """
        found = nth_best(self.columns["score"], self.selected)
        if found is None:
            raise DataError("the run has no row with a score to cut at", fix="apply with budget=", code="E473")
        return found

    @property
    def share(self) -> float:
        """Of the rows, those above the cut."""
        return self.selected / len(self.words_P)

    def scale(self, similarity: str) -> tuple[float, float]:
        """The range of R that becomes [0, 1] in F."""
        r = self.columns["similarity"]
        return (0.0, 1.0) if similarity == "clip" else (float(r.min()), float(r.max()))


def pool_scores(selector: TrainedSelector) -> PoolScores:
    """Ids and numbers of the rows that a finished run measures its cut on; no texts.

    Of `iterselect`: its whole `scores/`. Of an update: its step `reference_scores`.
    """
    if selector.texts.name == REFERENCE:
        (scored,) = (step for step in steps_of(selector.run) if step.name == REFERENCE_SCORES)
        return reference_scores(selector, scored)
    words, pieces, selected = [], [], 0
    for name in selector.run.list("scores"):
        table = pq.read_table(selector.run.open_read(f"scores/{name}"), columns=[ID, *SCORED, "cluster", "selected"])
        words.append(id_words(table[ID]))
        selected += table["selected"].to_numpy(zero_copy_only=False).sum()
        pieces.append(table.select([*SCORED, "cluster"]))
    return PoolScores(np.concatenate(words), columns_of(pa.concat_tables(pieces)), int(selected))


def columns_of(table: pa.Table) -> dict[str, np.ndarray]:
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def reference_scores(selector: TrainedSelector, scored: Step) -> PoolScores:
    """The rows of an update's sample by its own scores, F on their own range of R.

    Args:
        scored: `ScoreNewRows` over the sample; its F is not used.
    """
    words_P = id_words(selector.texts.read_all([ID])[ID])
    columns = columns_of(scored.read_all([*SCORED, "cluster"]))
    selected = max(1, round(selector.texts.require().extra["share"] * len(words_P)))
    found = PoolScores(words_P, columns, selected)
    names = ("probability", "similarity", "cluster")
    rows = Rows(np.arange(len(words_P)), words_P, *(columns[name] for name in names))
    rescored = scored_columns(rows, selector.recipe.alpha, found.scale(selector.recipe.similarity))
    columns["score"] = rescored["score"].to_numpy(zero_copy_only=False)
    return found
