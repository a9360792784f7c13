"""k-center: farthest point first, so that every row of the pool has a selected row near it.

Gonzalez 1985; as active learning, Sener and Savarese, ICLR 2018 (arXiv 1708.00489), algorithm 1. MoDS (arXiv
2311.15653), DiverseEvol (arXiv 2311.08182) and WaveCoder (arXiv 2312.14187) select with it. The next pick is

    argmin over i of  max over selected s of  cos(i, s)

which on unit vectors is the row of largest Euclidean distance to its nearest selected row. The largest distance that
is left is at most twice the smallest possible.

Needs: vectors. No labels, no language model.
Cost: one inner product per row and pick, N m D multiplications. Pools above `max_rows` are cut into K-Means clusters,
each of which gives rows in proportion to its size, chosen within it: N m D / K. A million rows, 10,000 picks and 384
dimensions: 4e12 multiplications.
Known bias: selects the outliers first, rows with odd text among them; clean the pool before, or take
`facility_location`.

Differs from the paper in: cosine similarity instead of Euclidean distance (the same order on unit vectors); the first
row is drawn by a hash of (seed, id), where the published codes draw unseeded. MoDS embeds the instruction alone with
bert-base-uncased, DiverseEvol the whole pair with the model being tuned: set `text` and `encoder.model`.
"""

from __future__ import annotations

from typing import Literal

from engine.config import RecipeConfig
from engine.greedy_methods import KCenterSettings, kcenter
from engine.greedy_selection import VectorConfig, pool_space, selection
from engine.recipes.base import Context, Selection


class Config(KCenterSettings, VectorConfig, RecipeConfig):
    name: Literal["kcenter"] = "kcenter"


def select(context: Context) -> Selection:
    config = context.config.recipe
    assert isinstance(config, Config)
    picked = kcenter(context, pool_space(context, config), config, context.budget, scored=True)
    return selection(context, picked, "farthest from the rows selected before it", "nearer to a selected row")
