"""k-center: farthest point first, so that every row of the pool has a selected row near it.

Gonzalez 1985; as active learning, Sener and Savarese, ICLR 2018 (arXiv 1708.00489), algorithm 1. MoDS (arXiv
2311.15653), DiverseEvol (arXiv 2311.08182) and WaveCoder (arXiv 2312.14187) select with it. The next pick is

    argmin over i of  max over selected s of  cos(i, s)

which on unit vectors is the row of largest Euclidean distance to its nearest selected row. The largest distance that
is left is at most twice the smallest possible.

Needs: vectors. No labels, no language model.
Cost: one inner product per row and pick, N m D multiplications.
Known bias: selects the outliers first, rows with odd text among them; clean the pool before, or take
`facility_location`.

Differs from the papers in: cosine similarity instead of Euclidean distance (the same order on unit vectors); the first
row is drawn by a hash of (seed, id), where the published codes draw unseeded. MoDS embeds the instruction alone with
bert-base-uncased, DiverseEvol the whole pair with the model being tuned: set `text` and `encoder.model`.
"""

from __future__ import annotations

from typing import Literal

from engine.algorithms.greedy import KCenter
from engine.config import RecipeConfig
from engine.greedy_index import GreedyIndex
from engine.greedy_selection import VectorConfig, embed, picked_rows, start_at_random, with_index
from engine.pick_log import PickLog
from engine.recipes.base import Context, Selection


class Config(VectorConfig, RecipeConfig):
    name: Literal["kcenter"] = "kcenter"


def select(context: Context) -> Selection:
    config = context.config.recipe
    assert isinstance(config, Config)
    vectors = embed(context, config)
    settings = {"method": "kcenter", "seed": context.config.seed, "budget": context.budget}
    picks = context.step("picks", settings, [vectors.fingerprint])
    scores = context.step("scores", {"column": "similarity"}, [picks.fingerprint])

    def make(index: GreedyIndex) -> None:
        log, observer = PickLog(picks, index.dim()), context.runtime.observer
        start_at_random(context, index, log)
        index.greedy(KCenter(), log, context.budget, observer)
        index.write_state(KCenter(), log, "similarity", scores, observer)

    with_index(context, vectors, [picks, scores], make)
    reason = "farthest from the rows selected before it"
    selected = context.select_rows("selected", picked_rows(picks), reason, {"picks": picks.fingerprint})
    return Selection(selected, scores, "nearer to a selected row")
