"""The comparison as plain data: overlaps, ranks, shifts, agreement. What `--json` prints and the page draws."""

# Shape letters: N rows of all pools together, M methods.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.compare.collect import LENGTHS, Choice, Pool
from engine.compare.measures import (
    chance_jaccard,
    divergence,
    jaccard,
    neighbours_first,
    shared_rows,
    spearman,
    tenths,
)

EXAMPLES = 8  # rows shown of each kind


def compare(pool: Pool, choices: Sequence[Choice], notes: Sequence[str]) -> dict[str, Any]:
    """Everything that is said about the selections.

    Returns:
        JSON-able: `pool_rows`, `notes`, `methods` (one mapping each), `shared`, `jaccard`, `chance` (M x M lists),
        `rank_correlation` and `score_correlation` (M x M, None where not defined), `order` (similar methods beside one
        another), `agreement` (how many rows 1, 2, ... methods chose), `agreed` and `disputed` (positions of rows).
    """
    chosen_MN = np.stack([choice.chosen_N for choice in choices])
    similar_MM = jaccard(chosen_MN)
    sizes_M = chosen_MN.sum(axis=1)
    runs = [index for index, choice in enumerate(choices) if choice.facts]
    votes_N = chosen_MN[runs].sum(axis=0)
    return {
        "pool_rows": len(pool.words_N),
        "notes": list(notes),
        "methods": [describe(pool, choice) for choice in choices],
        "shared": shared_rows(chosen_MN).tolist(),
        "jaccard": np.round(similar_MM, 4).tolist(),
        "chance": np.round(chance_jaccard(sizes_M, len(pool.words_N)), 4).tolist(),
        "rank_correlation": matrix(choices, rank_correlation),
        "score_correlation": matrix(choices, score_correlation),
        "order": neighbours_first(similar_MM),
        "agreement": np.bincount(votes_N, minlength=len(runs) + 1).tolist(),
        "agreed": most_agreed(pool, choices, runs),
        "disputed": {choices[m].name: disputed(choices[m], votes_N) for m in runs} if len(runs) > 1 else {},
    }


def describe(pool: Pool, choice: Choice) -> dict[str, Any]:
    """Size, means, and the divergence of each property from the pool's distribution, in bits."""
    inside_N = choice.chosen_N
    found: dict[str, Any] = {"name": choice.name, "rows": choice.rows, **choice.facts}
    shift: dict[str, float | None] = {}
    for name in LENGTHS:
        found[name] = round(float(pool.lengths[name][inside_N].mean()), 1) if choice.rows else None
        shift[name] = shifted(tenths(pool.lengths[name]), inside_N)
    shift["source"] = shifted(pool.source_N, inside_N)
    found["sources"] = len(np.unique(pool.source_N[inside_N]))
    return {**found, "shift": shift}


def shifted(groups_N: np.ndarray, inside_N: np.ndarray) -> float | None:
    """Divergence of the groups inside from those of all rows; None for an empty selection."""
    if not inside_N.any():
        return None
    size = int(groups_N.max()) + 1
    counts = np.bincount(groups_N[inside_N], minlength=size), np.bincount(groups_N, minlength=size)
    return round(divergence(*counts), 4)


def matrix(choices: Sequence[Choice], measure: Any) -> list[list[float | None]]:
    """(M, M) of a symmetric measure, rounded."""
    found = [[measure(a, b) for b in choices] for a in choices]
    return [[None if value is None else round(value, 4) for value in line] for line in found]


def rank_correlation(a: Choice, b: Choice) -> float | None:
    """Spearman's, of the ranks of the rows that both chose."""
    both_N = a.chosen_N & b.chosen_N
    return spearman(a.rank_N[both_N], b.rank_N[both_N])


def score_correlation(a: Choice, b: Choice) -> float | None:
    """Spearman's, of the scores of all rows that both scored."""
    if a.score_N is None or b.score_N is None:
        return None
    both_N = np.isfinite(a.score_N) & np.isfinite(b.score_N)
    return spearman(a.score_N[both_N], b.score_N[both_N])


def most_agreed(pool: Pool, choices: Sequence[Choice], runs: Sequence[int]) -> list[int]:
    """Positions of the rows that most runs chose, then by best mean rank, then by id."""
    if len(runs) < 2:
        return []
    votes_N = sum(choices[m].chosen_N.astype(np.int64) for m in runs)
    assert isinstance(votes_N, np.ndarray)
    ranks_N = sum(np.where(choices[m].chosen_N, choices[m].rank_N / max(1, choices[m].rows), 1.0) for m in runs)
    order = np.lexsort((pool.words_N, ranks_N, -votes_N))[:EXAMPLES]  # pyright: ignore[reportArgumentType]
    return [int(at) for at in order if votes_N[at] > 1]


def disputed(choice: Choice, votes_N: np.ndarray) -> list[int]:
    """Positions of the rows that only this run chose, its best first."""
    alone = np.flatnonzero(choice.chosen_N & (votes_N == 1))
    return alone[np.argsort(choice.rank_N[alone], kind="stable")][:EXAMPLES].tolist()
