"""Dataset Quantization: bins from the most to the least representative rows, and a random draw from each.

DQ (Zhou et al., ICCV 2023, arXiv 2308.10524), its language part. The pool is cut into k bins, one after another; with D
the rows no earlier bin took and S the bin's rows so far, the next row of a bin maximises the graph-cut gain

    gain(x) = sum over D of x.p - 2 sum over S of x.p = x . (sum_D p - 2 sum_S p)

which for unit vectors orders as the paper's P(x) does. Linear in x, so sums of vectors replace the published N x N
matrix. Then every bin gives the same share of its rows, drawn by a hash of (seed, id).

Needs: vectors, of the whole pair as in the paper's code. No labels, no language model.
Cost: (k-1)/k N picks from what is left, about N^2 D multiplications, whatever the budget. Pools above `max_rows` are
cut into K-Means clusters with bins of their own: N times a cluster's rows. A million rows of 384 dimensions: 4e14 at
once, 1e14 in clusters of 300,000.
Known bias: the first bins hold what is near the mean; a uniform draw from all bins keeps the pool's distribution, with
less chance in it than `random`.

Differs from the paper in: N mod k rows, which never enter a bin in its code, are in the last bin; the draw is seeded
and gives exactly the budget, the bins' shares by largest remainder; vectors have norm 1. The image part (GradCAM, MAE)
is not here.
"""

from __future__ import annotations

from typing import Literal

from engine.config import RecipeConfig
from engine.greedy_methods import GraphCutSettings, graph_cut
from engine.greedy_selection import PairConfig, pool_space, selection
from engine.recipes.base import Context, Selection


class Config(GraphCutSettings, PairConfig, RecipeConfig):
    name: Literal["dq"] = "dq"


def select(context: Context) -> Selection:
    config = context.config.recipe
    assert isinstance(config, Config)
    picked = graph_cut(context, pool_space(context, config), config, context.budget)
    return selection(context, picked, "drawn from its bin", "not drawn from its bin")
