"""The longest responses: a baseline that many published methods fail to beat.

Length is the number of characters of the response; ties are broken by id. See "Long Is More for Alignment"
(Zhao et al. 2024, arXiv 2402.04833), which counts tokens; characters need no tokenizer and rank almost the same.

Needs: nothing.
Cost: one reading of the pool, seconds per million rows.
Known bias: takes lists, essays and repetition; a judge that likes length will like it.

Differs from the paper in: characters in place of tokens.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow.compute as pc

from engine.algorithms.ranking import top_rows
from engine.config import RecipeConfig
from engine.recipes.base import Context, Selection
from engine.schema import ID, RESPONSE, ROW, id_words


class Config(RecipeConfig):
    """No settings of its own."""

    name: Literal["longest"] = "longest"


def longest_rows(context: Context) -> np.ndarray:
    """(budget,) rows of the pool, longest response first."""
    kept = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.float64)
    for part in context.pool.require().parts:
        table = context.pool.read(part.index, [ROW, ID, RESPONSE])
        lengths = pc.utf8_length(table[RESPONSE]).to_numpy().astype(np.float64)  # pyright: ignore[reportAttributeAccessIssue]
        found = table[ROW].to_numpy(), id_words(table[ID]), lengths
        rows, words, sizes = (np.concatenate(pair) for pair in zip(kept, found, strict=True))
        keep = top_rows(sizes, words, context.budget)
        kept = rows[keep], words[keep], sizes[keep]
    return kept[0]


def select(context: Context) -> Selection:
    selected = context.select_rows("longest", longest_rows(context), "among the longest responses", {})
    return Selection(selected, None, "shorter response")
