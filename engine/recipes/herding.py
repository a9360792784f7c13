"""Herding: rows whose mean stays as close as possible to the mean of the pool.

Welling, ICML 2009; Chen, Welling and Smola, UAI 2010 (arXiv 1203.3472); with the vectors of a network, iCaRL (arXiv
1611.07725). A common baseline, not a method of its own for instruction data. With D the pool and S the rows selected,
the next pick is

    argmin over x of  | mean(D) - mean(S + x) |

Needs: vectors. No labels, no language model.
Cost: one inner product per row and pick, N m D multiplications, and one pass over the vectors for every pick. A million
rows, 10,000 picks and 384 dimensions: 4e12 multiplications.
Known bias: keeps the pool's mean and thereby its proportions; rare topics stay rare.

Differs from the paper in: nothing for unit vectors; a row is selected once at most.
"""

from __future__ import annotations

from typing import Literal

from engine.config import RecipeConfig
from engine.greedy_methods import herding
from engine.greedy_selection import VectorConfig, pool_space, selection
from engine.recipes.base import Context, Selection


class Config(VectorConfig, RecipeConfig):
    name: Literal["herding"] = "herding"


def select(context: Context) -> Selection:
    config = context.config.recipe
    assert isinstance(config, Config)
    picked = herding(context, pool_space(context, config), context.budget, scored=True)
    reason = "brought the selection's mean closest to the pool's"
    return selection(context, picked, reason, "another row brought the mean closer")
