"""How the selection differs from the pool: shares per bin or group, with a divergence; and the histogram of scores.

The divergence is Jensen-Shannon's in bits: 0 for equal distributions, 1 for distributions that share nothing. Lengths
are divided at the deciles of the pool, as in `iterselect compare`. Shares need no totals, so samples will do.
"""

# Shape letters: N rows of the pool, S selected rows, B bins.

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.algorithms.ranking import nth_best
from engine.compare.measures import decile_edges, divergence
from engine.screen import line

MOST_GROUPS = 12  # groups shown; the others are added up
LABEL_CHARS = 40
SCORE_BINS = 40  # at most


def by_length(label: str, pool_N: np.ndarray, selected_S: np.ndarray, edges: Sequence[int]) -> dict[str, Any]:
    """Shares of whole numbers such as lengths.

    Args:
        label: of the property.
        edges: (B - 1,) first value of every bin but the lowest, ascending; bins beyond the values are left out.

    Returns:
        `label`, `chart` (its name), `bits` (None for an empty selection), `bins`: name, pool and selected share.
    """
    top = int(max(pool_N.max(initial=0), selected_S.max(initial=0)))
    bounds = [edge for edge in edges if edge <= top]
    names = []
    for low, high in zip([0, *bounds], [*bounds, top + 1], strict=True):
        names.append(f"{low:,}" if high - low == 1 else f"{low:,}-{high - 1:,}")
    counts = [np.bincount(np.searchsorted(bounds, x, side="right"), minlength=len(names)) for x in (pool_N, selected_S)]
    first = int(np.flatnonzero(counts[0] + counts[1])[0]) if len(pool_N) else 0
    deciles = decile_edges(pool_N)
    tenths = [np.bincount(np.searchsorted(deciles, x), minlength=len(deciles) + 1) for x in (pool_N, selected_S)]
    bins = shares(names[first:], counts[0][first:], counts[1][first:])
    return {
        "label": label,
        "chart": chart_name(label),
        "bits": bits(*tenths),
        "bins": bins,
    }


def by_group(label: str, pool: Counter[str], selected: Counter[str]) -> dict[str, Any]:
    """Shares of named groups, the largest of the pool first; as `by_length` otherwise. The divergence is of all."""
    names = [name for name, _ in pool.most_common()] + sorted(set(selected) - set(pool))
    counts = [np.array([found[name] for name in names], dtype=np.int64) for found in (pool, selected)]
    shown = names[:MOST_GROUPS]
    bins = shares([group_name(name) for name in shown], counts[0][: len(shown)], counts[1][: len(shown)], counts)
    if len(names) > len(shown):
        rest = [found[MOST_GROUPS:].sum() / max(1, found.sum()) for found in counts]
        bins.append({"name": f"{len(names) - len(shown):,} more", "pool": rest[0], "selected": rest[1]})
    return {"label": label, "chart": chart_name(label), "bits": bits(*counts), "bins": bins}


def chart_name(label: str) -> str:
    """Name of the chart and of its files."""
    return f"share-{label.partition(' ')[0]}"


def group_name(name: object) -> str:
    """A name from data, short enough for an axis."""
    text = line(str(name)[: 4 * LABEL_CHARS])
    return text if len(text) <= LABEL_CHARS else f"{text[: LABEL_CHARS - 3]}..."


def bits(pool_B: np.ndarray, selected_B: np.ndarray) -> float | None:
    return round(divergence(selected_B, pool_B), 4) if selected_B.sum() and pool_B.sum() else None


def shares(
    names: Sequence[str], pool_B: np.ndarray, selected_B: np.ndarray, of: Sequence[np.ndarray] | None = None
) -> list[dict[str, Any]]:
    """One entry per bin; `of` are the counts that the shares are shares of, the bins' own when None."""
    pool, selected = (max(1, int(counts.sum())) for counts in (of or (pool_B, selected_B)))
    return [
        {"name": name, "pool": float(a / pool), "selected": float(b / selected)}
        for name, a, b in zip(names, pool_B, selected_B, strict=True)
    ]


def score_histogram(
    pool_N: np.ndarray,
    inside_N: np.ndarray,
    selected_S: np.ndarray,
    rows: int,
    selected_rows: int,
    cut: float | None = None,
) -> dict[str, Any] | None:
    """Rows per bin of the score, selected and left out, and the cut.

    Args:
        pool_N: (N,) scores of the sample of the pool, nan where there is none.
        inside_N: (N,) bool, which of them are selected.
        selected_S: (S,) scores of the sample of the selection.
        rows, selected_rows: of the whole pool and selection, to which the counts of samples are scaled.
        cut: the score at which the selection ended, if it ended at one.

    Returns:
        `edges` (B + 1,), `selected` and `rest` (B,) rows, `cut` as given or else the score that as many rows reach as
        were selected, where a selection by this score alone would end, and `cut_applied`, whether it was given. None
        without two different scores.
    """
    finite = np.concatenate([pool_N, selected_S])
    finite = finite[np.isfinite(finite)]
    if not len(finite) or finite.min() == finite.max():
        return None
    edges = even_edges(float(finite.min()), float(finite.max()))
    rest_N, known_S = pool_N[~inside_N & np.isfinite(pool_N)], selected_S[np.isfinite(selected_S)]
    scale = rows / len(pool_N), selected_rows / max(1, len(selected_S))
    reached = max(1, round(len(pool_N) * selected_rows / rows))
    return {
        "edges": edges.tolist(),
        "selected": (np.histogram(known_S, edges)[0] * scale[1]).tolist(),
        "rest": (np.histogram(rest_N, edges)[0] * scale[0]).tolist(),
        "cut": nth_best(pool_N, reached) if cut is None else cut,
        "cut_applied": cut is not None,
    }


def even_edges(low: float, high: float) -> np.ndarray:
    """Edges of at most SCORE_BINS bins over [low, high], multiples of 1, 2 or 5 times a power of ten."""
    least = (high - low) / (SCORE_BINS - 2) or abs(high) or 1.0
    power = 10.0 ** np.floor(np.log10(least))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
    return step * np.arange(np.floor(low / step), np.floor(high / step) + 2)


def gini(counts_B: np.ndarray) -> float | None:
    """Gini coefficient of counts: 0 when all are equal, near 1 when one has everything; None without a row."""
    counts_B = np.sort(np.asarray(counts_B, dtype=np.float64))
    size, total = len(counts_B), counts_B.sum()
    if not total:
        return None
    return float(2 * np.sum(np.arange(1, size + 1) * counts_B) / (size * total) - (size + 1) / size)
