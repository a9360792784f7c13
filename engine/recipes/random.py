"""Uniform random rows: the anchor that every method must beat.

Each row gets a hash of (seed, id) and the smallest are taken, so the draw does not depend on the order of the pool.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from engine.config import RecipeConfig
from engine.recipes.base import Context, Selection
from engine.schema import ID, ROW, id_words, seeded_hash


class Config(RecipeConfig):
    """No settings of its own."""

    name: Literal["random"] = "random"


def random_rows(context: Context) -> np.ndarray:
    """(budget,) rows of the pool in the order of their hash."""
    best_rows, best_keys = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64)
    for part in context.pool.require().parts:
        table = context.pool.read(part.index, [ROW, ID])
        keys = np.concatenate([best_keys, seeded_hash(id_words(table[ID]), context.config.seed, "random")])
        rows = np.concatenate([best_rows, table[ROW].to_numpy()])
        keep = np.argsort(keys, kind="stable")[: context.budget]
        best_rows, best_keys = rows[keep], keys[keep]
    return best_rows


def select(context: Context) -> Selection:
    rows = random_rows(context)
    selected = context.select_rows("random", rows, "drawn at random", {"seed": context.config.seed})
    return Selection(selected, None, "not drawn")
