"""The baselines beside every selection: what random, balanced random and longest would have taken.

The figures need no training run: overlap with the selection, length, and how many sources and clusters are covered.
Two random ones are kept as rows to train on: one with as many rows as the selection, one with as many characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.algorithms.baselines import random_draw_until
from engine.artifacts import Step
from engine.recipes.balanced_random import balanced_by_source
from engine.recipes.base import Context, Selection
from engine.recipes.longest import longest_rows
from engine.recipes.random import random_rows
from engine.schema import ID, PROMPT, RESPONSE, ROW, SOURCE, SYSTEM, TOOLS, id_words

SETS = SELECTED, SAME_ROWS, SAME_CHARS = ("selected", "random_same_rows", "random_same_chars")


def compare_with_baselines(context: Context, selection: Selection) -> list[dict[str, Any]]:
    """One line for the selection, one per baseline of the same size, one for the whole pool.

    Returns:
        name, rows, overlap (share of the selection, None for the pool), mean characters of prompt and response,
        sources covered, clusters covered (None without clusters).
    """
    selected = selection.selected.read_all([ROW])[ROW].to_numpy()
    subsets = {
        context.config.recipe.name: selected,
        "random": random_rows(context),
        "balanced_random": balanced_by_source(context),
        "longest": longest_rows(context),
        "(pool)": np.arange(context.pool_rows),
    }
    return describe(context, selection, {name: np.sort(rows) for name, rows in subsets.items()}, selected)


def describe(
    context: Context, selection: Selection, subsets: dict[str, np.ndarray], selected: np.ndarray
) -> list[dict[str, Any]]:
    """The table, in one pass over the pool's parts."""
    sums = {name: np.zeros(2, dtype=np.int64) for name in subsets}
    sources: dict[str, set[str]] = {name: set() for name in subsets}
    clusters: dict[str, set[int]] = {name: set() for name in subsets}
    has_clusters = selection.scores is not None and "cluster" in selection.scores.read(0).column_names
    for part in context.pool.require().parts:
        table = context.pool.read(part.index, [ROW, PROMPT, RESPONSE, SOURCE])
        rows = table[ROW].to_numpy()
        lengths = np.stack([pc.utf8_length(table[name]).to_numpy() for name in (PROMPT, RESPONSE)], axis=1)  # pyright: ignore
        names = table[SOURCE].to_numpy(zero_copy_only=False)
        labels = selection.scores.read(part.index, ["cluster"])["cluster"].to_numpy() if has_clusters else None  # pyright: ignore
        for name, subset in subsets.items():
            inside = np.isin(rows, subset, assume_unique=True)
            sums[name] += lengths[inside].sum(axis=0)
            sources[name].update(names[inside])
            if labels is not None:
                clusters[name].update(labels[inside].tolist())
    return [
        {
            "name": name,
            "rows": len(rows),
            "overlap": None if name == "(pool)" else round(float(np.isin(rows, selected).mean()), 4),
            "prompt_chars": round(float(sums[name][0] / max(1, len(rows))), 1),
            "response_chars": round(float(sums[name][1] / max(1, len(rows))), 1),
            "sources": len(sources[name]),
            "clusters": len(clusters[name]) if has_clusters else None,
        }
        for name, rows in subsets.items()
    ]


@dataclass(frozen=True)
class TrainingSet:
    """Rows to train on: the selection, or what it is compared with."""

    step: Step  # row, id, rank, reason
    rows: int
    characters: int  # of system prompt, prompt, response and tools
    overlap: float  # share of the rows that the selection has too


def training_sets(context: Context, selection: Selection) -> dict[str, TrainingSet]:
    """The selection and its two random baselines; both draw in the same order, by hash of (seed, id).

    The second one stands for "the same number of tokens": rows are drawn until they have as many characters as the
    selection. Tokens are not counted, because the tokenizer is that of the model trained later. Memory: 16 bytes a row
    of the pool.
    """
    words, chars = [], []
    for part in context.pool.require().parts:
        table = context.pool.read(part.index, [ID, SYSTEM, PROMPT, RESPONSE, TOOLS])
        words.append(id_words(table[ID]))
        chars.append(characters(table))
    words_N, chars_N = np.concatenate(words), np.concatenate(chars)  # the pool's parts hold rows 0..N-1 in order
    selected = selection.selected.read_all([ROW])[ROW].to_numpy()
    seed, total = context.config.seed, int(chars_N[selected].sum())
    matched = random_draw_until(words_N, chars_N, seed, total)
    reason = "drawn at random"
    steps = {
        SELECTED: selection.selected,
        SAME_ROWS: context.select_rows("random", random_rows(context), reason, {"seed": seed}),
        SAME_CHARS: context.select_rows(SAME_CHARS, matched, reason, {"seed": seed, "characters": total}),
    }
    rows = {name: step.read_all([ROW])[ROW].to_numpy() for name, step in steps.items()}
    return {
        name: TrainingSet(
            step, len(rows[name]), int(chars_N[rows[name]].sum()), float(np.isin(rows[name], selected).mean())
        )
        for name, step in steps.items()
    }


def characters(table: pa.Table) -> np.ndarray:
    """(M,) int64 characters of each row of the pool: system prompt, prompt, response and tools."""
    columns = [pc.utf8_length(table[name]).to_numpy() for name in (SYSTEM, PROMPT, RESPONSE, TOOLS)]  # pyright: ignore
    return np.stack(columns).sum(axis=0, dtype=np.int64)
