"""The map of the pool: which rows are on it, where, and how near the selected rows lie to one another."""

# Shape letters: I rows of the map, D dimensions.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from engine.artifacts import Step
from engine.report.collect import Collected
from engine.report.examples import rounded
from engine.report.rows import texts_of, vectors_of
from engine.report.space import near_duplicates, nearest_other, principal_plane, spread, umap_plane
from engine.schema import PROMPT, ROW
from engine.web_page import shown

Method = Literal["pca", "umap"]
POOL_POINTS, SELECTED_POINTS = 3_000, 1_000  # rows of the map, besides those of the table
NEAR_ROWS = 3_000  # selected rows, and as many of the pool, whose nearest other is looked for
PAIRS, PAIR_CHARS = 8, 300
SIMILARITY_BINS = 30


@dataclass(frozen=True)
class Layout:
    """Rows on the map, in the order of `rows_I`."""

    rows_I: np.ndarray
    plane_I2: np.ndarray
    facts: dict[str, Any]  # method, points, explained


def lay_out(found: Collected, step: Step, examples: Sequence[int], method: Method) -> Layout:
    """Places a sample of the pool, a sample of the selection, and the rows of the table.

    Args:
        step: with one vector per row.
        examples: rows of the table.
        method: "pca", fitted on a sample of the pool, or "umap".
    """
    heads = found.pool[ROW].slice(0, POOL_POINTS).to_numpy(), found.selected[ROW].slice(0, SELECTED_POINTS).to_numpy()
    together = np.concatenate([*heads, np.array(examples, dtype=np.int64)])
    _, first = np.unique(together, return_index=True)
    rows_I = together[np.sort(first)]  # the sample of the pool stays first
    x_ID = vectors_of(step, rows_I)
    explained = None
    if method == "pca":
        plane_I2, explained = principal_plane(x_ID)
    else:
        plane_I2 = umap_plane(x_ID, int(found.config["seed"]))
    return Layout(rows_I, plane_I2, {"method": method, "points": len(rows_I), "explained": explained})


def points(found: Collected, layout: Layout, facts: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The dots: id, x, y, selected, score, cluster."""
    dots = []
    for row, (x, y) in zip(layout.rows_I.tolist(), layout.plane_I2.tolist(), strict=True):
        entry = facts[row]
        dot = {"id": entry["id"], "x": round(x, 4), "y": round(y, 4), "selected": entry["selected"]}
        if found.score is not None:
            dot["score"] = rounded(entry.get(found.score))
        if found.cluster is not None:
            dot["cluster"] = entry.get(found.cluster)
        dots.append(dot)
    return dots


def closeness(found: Collected, step: Step) -> dict[str, Any] | None:
    """How similar selected rows are to their nearest other, against as many rows of the pool; and the closest pairs.

    Rows that were not sampled cannot be found as neighbours, so a share over samples is too low rather than too high.
    None for fewer than two selected rows.
    """
    selected = found.selected[ROW].slice(0, NEAR_ROWS).to_numpy()
    if len(selected) < 2:
        return None
    drawn = found.pool[ROW].slice(0, len(selected)).to_numpy()
    at_I, cosine_I = nearest_other(vectors_of(step, selected))
    _, drawn_I = nearest_other(vectors_of(step, drawn))
    pairs = near_duplicates(at_I, cosine_I, PAIRS)
    rows = np.unique([selected[place] for a, b, _ in pairs for place in (a, b)]).astype(np.int64)
    texts = texts_of(found.steps["ingest"], rows) if len(rows) else {}
    edges = np.linspace(min(0.0, float(min(cosine_I.min(), drawn_I.min()))), 1.0, SIMILARITY_BINS + 1)
    return {
        "selected": spread(cosine_I),
        "random": spread(drawn_I),
        "all": len(selected) == found.totals.selected,
        "edges": edges.tolist(),
        "histogram": {
            name: (np.histogram(values.clip(max=1.0), edges)[0] / len(values)).tolist()
            for name, values in (("selected", cosine_I), ("random rows", drawn_I))
        },
        "pairs": [
            {
                "cosine": round(cosine, 4),
                "prompts": [shown(texts[int(selected[place])][PROMPT], PAIR_CHARS) for place in (a, b)],
            }
            for a, b, cosine in pairs
        ],
    }
