"""Similarity to a target set: the largest or the mean cosine similarity to its examples.

Both are whole numbers in units of 2^-32 (engine/algorithms/exact.py), so they are the same for any order of the
examples. A pool row that is among the examples has similarity 1: leave the target set out of the pool.
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
from pydantic import Field

from engine.algorithms.exact import ONE, check_units, largest_similarity, similarity_to_sum, vector_sum
from engine.artifacts import Step
from engine.data.vectors import vectors_from_arrow
from engine.greedy_selection import embed
from engine.recipes.base import Context
from engine.runtime import StageSpec
from engine.schema import ERROR, VECTOR
from engine.scoring.base import Measured, Score
from engine.targets import TargetConfig, target_set

LARGEST, MEAN = "largest", "mean"


class SimilarityToSet:
    """Stage: largest and mean similarity of each vector to those of a step."""

    columns_in = (VECTOR,)
    columns_out = (
        pa.field(LARGEST, pa.float64()),
        pa.field(MEAN, pa.float64()),
        pa.field(ERROR, pa.large_string()),
    )

    def __init__(self, target: Step) -> None:
        self.target_TD = vectors_from_arrow(target.read_all([VECTOR])[VECTOR])
        check_units(self.target_TD, "vectors of the target set")
        self.total_D = vector_sum(self.target_TD)

    def __call__(self, table: pa.Table) -> pa.Table:
        x_ND = vectors_from_arrow(table[VECTOR])
        check_units(x_ND)
        largest_N = largest_similarity(x_ND, self.target_TD) / ONE
        mean_N = similarity_to_sum(x_ND, self.total_D, len(self.target_TD)) / ONE
        errors = pa.nulls(len(table), pa.large_string())
        return pa.table([pa.array(largest_N), pa.array(mean_N), errors], names=[LARGEST, MEAN, ERROR])


class TargetSimilarity(TargetConfig, Measured):
    """Similarity to a target set. Several turns: as the prompt, or the pair, is embedded."""

    kind: Literal["target_similarity"] = "target_similarity"
    take: Literal["max", "mean"] = Field(default="max", description="Largest similarity to an example, or the mean")

    def measure(self, context: Context) -> Score:
        vectors = embed(context, self)
        _, examples = target_set(context, self)
        target = context.step("target_similarity", {}, [vectors.fingerprint, examples.fingerprint])
        stage = StageSpec.of("target_similarity", SimilarityToSet, target=examples)
        context.runtime.map_parts(stage, vectors, target)
        return Score.of(target, LARGEST if self.take == "max" else MEAN)
