"""Herding: rows whose mean stays as close as possible to the mean of the pool.

Welling, ICML 2009; Chen, Welling and Smola, UAI 2010 (arXiv 1203.3472); with the vectors of a network, iCaRL (arXiv
1611.07725). A common baseline, not a method of its own for instruction data. With D the pool and S the rows selected,
the next pick is

    argmin over x of  | mean(D) - mean(S + x) |

Needs: vectors. No labels, no language model.
Cost: one inner product per row and pick, N m D multiplications, and one pass over the vectors for every pick.
Known bias: keeps the pool's mean and thereby its proportions; rare topics stay rare.

Differs from the papers in: nothing for unit vectors; a row is selected once at most.
"""

from __future__ import annotations

from typing import Literal

from engine.algorithms.greedy import Herding
from engine.config import RecipeConfig
from engine.greedy_index import GreedyIndex
from engine.greedy_selection import VectorConfig, embed, picked_rows, with_index
from engine.pick_log import PickLog
from engine.recipes.base import Context, Selection


class Config(VectorConfig, RecipeConfig):
    name: Literal["herding"] = "herding"


def select(context: Context) -> Selection:
    config = context.config.recipe
    assert isinstance(config, Config)
    vectors = embed(context, config)
    picks = context.step("picks", {"method": "herding", "budget": context.budget}, [vectors.fingerprint])
    scores = context.step("scores", {"column": "mean_similarity"}, [picks.fingerprint])

    def make(index: GreedyIndex) -> None:
        log, observer = PickLog(picks, index.dim()), context.runtime.observer
        rule = Herding(index.total_D, context.pool_rows)
        index.greedy(rule, log, context.budget, observer)
        index.write_state(rule, log, "mean_similarity", scores, observer)

    with_index(context, vectors, [picks, scores], make)
    reason = "brought the selection's mean closest to the pool's"
    selected = context.select_rows("selected", picked_rows(picks), reason, {"picks": picks.fingerprint})
    return Selection(selected, scores, "another row brought the mean closer")
