"""What the recipes share that select by vectors alone: which text is embedded, and the way from picks to a selection.

The picks are a step, `steps/picks-<8 hex>`: row, score and vector in the order of picking. Members are made only when
something is left to compute. It knows no method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine.algorithms.exact import ONE
from engine.algorithms.greedy import Picks
from engine.algorithms.kmeans import kmeans
from engine.artifacts import Step, write_table
from engine.config_base import Strict
from engine.data.vectors import vectors_from_arrow, vectors_to_arrow
from engine.greedy_index import GreedyIndex
from engine.pick_log import PickLog
from engine.recipes.base import Context
from engine.runtime import StageSpec
from engine.schema import ID, PROMPT, RESPONSE, ROW, VECTOR, id_words, seeded_hash
from engine.shards import PoolIndex


class VectorConfig(Strict):
    """What everything on vectors can be told."""

    text: Literal["prompt", "pair"] = Field(
        default="prompt", description="What is embedded: the prompt, or prompt and response as one text"
    )


def embed(context: Context, config: VectorConfig) -> Step:
    """One unit vector per row of the pool: the step `embed`, or `embed_pairs`."""
    from engine.models.pairs import EmbedPairs

    if config.text == "prompt":
        return context.vectors()
    settings = context.encoder()
    target = context.step("embed_pairs", {"encoder": settings}, [context.pool.fingerprint])
    stage = StageSpec(
        name="embed_pairs",
        factory=EmbedPairs,
        kwargs={"encoder": settings},
        columns_in=[PROMPT, RESPONSE],
        columns_out=[pa.field(VECTOR, pa.null())],
        resources=context.resources(),
    )
    context.runtime.map_parts(stage, context.pool, target)
    return target


def with_index(context: Context, vectors: Step, steps: list[Step], make: Callable[[GreedyIndex], None]) -> None:
    """Runs `make`, which completes the steps, unless they are complete."""
    if all(step.record() for step in steps):
        for step in steps:
            context.reused(step)
        return
    index = GreedyIndex(context.runtime, context.pool, vectors)
    try:
        make(index)
    finally:
        index.close()


def start_at_random(context: Context, index: GreedyIndex, log: PickLog) -> None:
    """Picks the row of smallest seeded hash, unless something is picked."""
    if len(log):
        return
    best: tuple[int, int] | None = None
    for part in context.pool.require().parts:
        table = context.pool.read(part.index, [ROW, ID])
        keys_N = seeded_hash(id_words(table[ID]), context.config.seed, "start")
        at = int(np.argmin(keys_N))
        found = int(keys_N[at]), table[ROW][at].as_py()
        best = found if best is None else min(best, found)
    assert best is not None
    rows, x = index.lookup(np.array([best[1]]))
    log.add(Picks(rows.rows, rows.words, np.array([2 * ONE]), x))


def cluster(context: Context, index: PoolIndex, target: Step, clusters: int, iterations: int) -> np.ndarray:
    """K-Means over the pool: a step with a unit vector per cluster, float16 so that similarities to it are exact.

    Returns:
        (K, D) float32, what the step holds; K is at most `clusters`.
    """
    if not context.reused(target):
        context.runtime.observer.step_started(target.name, context.pool_rows)
        result = kmeans(index, clusters, seed=context.config.seed, iterations=iterations)
        table = pa.table({VECTOR: vectors_to_arrow(result.centroids_KD)})
        record = write_table(target, table, len(table), {"clusters": len(table), "inertia": result.inertia[-1]})
        context.runtime.observer.step_done(target.name, record.rows, record.seconds, 0, reused=False)
    return vectors_from_arrow(target.read_all([VECTOR])[VECTOR]).astype(np.float32)


def picked_rows(picks: Step) -> np.ndarray:
    """(P,) int64 rows in the order of picking."""
    return picks.read_all([ROW])[ROW].to_numpy()
