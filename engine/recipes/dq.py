"""Dataset Quantization: bins from the most to the least representative rows, and a random draw from each.

DQ (Zhou et al., ICCV 2023, arXiv 2308.10524), its language part. The pool is cut into k bins, one after another; with D
the rows no earlier bin took and S the bin's rows so far, the next row of a bin maximises the graph-cut gain

    gain(x) = sum over D of x.p - 2 sum over S of x.p = x . (sum_D p - 2 sum_S p)

which for unit vectors orders as the paper's P(x) does. Linear in x, so sums of vectors replace the published N x N
matrix. Then every bin gives the same share of its rows, drawn by a hash of (seed, id).

Needs: vectors, of the whole pair as in the paper's code. No labels, no language model.
Cost: (k-1)/k N picks from what is left, about N^2 D multiplications, whatever the budget.
Known bias: the first bins hold what is near the mean; a uniform draw from all bins keeps the pool's distribution, with
less chance in it than `random`.

Differs from the paper in: N mod k rows, which never enter a bin in its code, are in the last bin; the draw is seeded
and gives exactly the budget, the bins' shares by largest remainder; vectors have norm 1. The image part (GradCAM, MAE)
is not here.
"""

from __future__ import annotations

import time
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine.algorithms.facility import check_rows
from engine.algorithms.greedy import GraphCut
from engine.algorithms.sampling import cluster_quotas, smallest_per_group
from engine.artifacts import Step
from engine.config import RecipeConfig
from engine.greedy_index import GreedyIndex
from engine.greedy_selection import VectorConfig, embed, picked_rows, with_index
from engine.pick_log import PickLog
from engine.recipes.base import Context, Selection
from engine.schema import ID, ROW, id_words, seeded_hash


class Config(VectorConfig, RecipeConfig):
    name: Literal["dq"] = "dq"
    text: Literal["prompt", "pair"] = Field(
        default="pair", description="What is embedded: the prompt, or prompt and response as one text"
    )
    bins: int = Field(default=10, ge=1, description="Number of bins, k; the paper's released sets have 5 or 10")
    max_rows: int = Field(default=300_000, ge=1, description="Most rows that are cut into bins")


def select(context: Context) -> Selection:
    config = context.config.recipe
    assert isinstance(config, Config)
    rows = context.pool_rows
    fix = "raise recipe.max_rows, or take facility_location or kcenter, which do not pick every row"
    check_rows(rows, config.max_rows, "the pool", fix)
    vectors = embed(context, config)
    bins = min(config.bins, rows)
    picks = context.step("picks", {"method": "dq", "bins": bins}, [vectors.fingerprint])

    def make(index: GreedyIndex) -> None:
        rule = GraphCut(index.total_D, rows // bins)
        index.greedy(rule, PickLog(picks, index.dim()), rows // bins * (bins - 1), context.runtime.observer)

    with_index(context, vectors, [picks], make)
    scores = write_bins(context, picks, bins)
    selected = context.select_rows(
        "selected",
        drawn_rows(context, scores, bins),
        "drawn from its bin",
        {"scores": scores.fingerprint, "seed": context.config.seed},
    )
    return Selection(selected, scores, "not drawn from its bin")


def write_bins(context: Context, picks: Step, bins: int) -> Step:
    """A step parallel to the pool's parts: the bin of each row, from 0; what no bin picked is in the last."""
    target = context.step("scores", {"column": "bin"}, [picks.fingerprint])
    if not context.reused(target):
        started = time.monotonic()
        order_P = picked_rows(picks)
        bin_N = np.full(context.pool_rows, bins - 1, dtype=np.int32)
        bin_N[order_P] = np.arange(len(order_P)) // (context.pool_rows // bins)
        done = target.committed()
        for part in context.pool.require().parts:
            rows_M = context.pool.read(part.index, [ROW])[ROW]
            if part.index not in done:
                target.commit(part.index, pa.table([rows_M, pa.array(bin_N[rows_M.to_numpy()])], names=[ROW, "bin"]))
        target.finish(started=started, rows=context.pool_rows)
    return target


def drawn_rows(context: Context, scores: Step, bins: int) -> np.ndarray:
    """(budget,) rows: of every bin its share, the smallest hashes first."""
    counts_K = np.zeros(bins, dtype=np.int64)
    for part in scores.require().parts:
        counts_K += np.bincount(scores.read(part.index, ["bin"])["bin"].to_numpy(), minlength=bins)
    quotas_K = cluster_quotas(counts_K, context.budget, "proportional")
    kept = np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.uint64)
    for part in scores.require().parts:
        keys_M = seeded_hash(id_words(context.pool.read(part.index, [ID])[ID]), context.config.seed, "dq")
        table = scores.read(part.index)
        found = table[ROW].to_numpy(), table["bin"].to_numpy(), keys_M
        rows, groups, keys = (np.concatenate(pair) for pair in zip(kept, found, strict=True))
        chosen = smallest_per_group(groups, keys, quotas_K)
        kept = rows[chosen], groups[chosen], keys[chosen]
    return kept[0]
