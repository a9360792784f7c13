"""Uniform random rows: the anchor that every method must beat.

Each row gets a hash of (seed, id) and the smallest are taken, so the draw does not depend on the order of the pool.

Needs: nothing.
Cost: one hash per row, about a second per million rows.
Known bias: none; the selection is as repetitive as the pool.

Differs from the paper in: there is none.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from engine.algorithms.baselines import random_draw
from engine.config import RecipeConfig
from engine.recipes.base import Context, Selection
from engine.schema import ID, ROW, id_words


class Config(RecipeConfig):
    """No settings of its own."""

    name: Literal["random"] = "random"


def random_rows(context: Context) -> np.ndarray:
    """(budget,) rows of the pool in the order of their hash."""
    rows_I, words_I = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64)
    for part in context.pool.require().parts:
        table = context.pool.read(part.index, [ROW, ID])
        rows_I, words_I = (
            np.concatenate([rows_I, table[ROW].to_numpy()]),
            np.concatenate([words_I, id_words(table[ID])]),
        )
        kept = random_draw(words_I, context.config.seed, context.budget)
        rows_I, words_I = rows_I[kept], words_I[kept]
    return rows_I


def select(context: Context) -> Selection:
    rows = random_rows(context)
    selected = context.select_rows("random", rows, "drawn at random", {"seed": context.config.seed})
    return Selection(selected, None, "not drawn")
