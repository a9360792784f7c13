"""The pictures of a comparison and of a card: Vega-Lite charts that become SVG or PNG without browser or network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

CELL = 46  # pixels of one cell of a matrix
FAINT = 0.1  # the colours reach this far at least: an overlap by chance is no dark cell
PADDING = 12  # labels are measured in another font than they may be drawn in


def overlap_chart(found: Mapping[str, Any]) -> Any:
    """Jaccard of every pair as a heat map, similar methods beside one another.

    Returns:
        An `altair.Chart`.
    """
    import altair

    names = [entry["name"] for entry in found["methods"]]
    order = [names[m] for m in found["order"]]
    rows = [
        {"a": names[a], "b": names[b], "jaccard": value, "chance": found["chance"][a][b], "text": f"{100 * value:.0f}"}
        for a, line in enumerate(found["jaccard"])
        for b, value in enumerate(line)
        if a != b
    ]
    base = altair.Chart(altair.Data(values=rows)).encode(
        x=altair.X("a:N", sort=order, title=None, axis=altair.Axis(labelAngle=-45)),
        y=altair.Y("b:N", sort=order, title=None),
    )
    top = max([FAINT, *(row["jaccard"] for row in rows)])
    cells = base.mark_rect().encode(
        color=altair.Color("jaccard:Q", title="Jaccard", scale=altair.Scale(scheme="blues", domain=[0, top]))
    )
    dark = f"datum.jaccard > {0.6 * top}"
    labels = base.mark_text(fontSize=11).encode(
        text="text:N", color=altair.condition(dark, altair.value("white"), altair.value("black"))
    )
    chance = f"two random selections: {100 * found['chance'][0][0]:.0f} %"
    title = altair.Title("Rows in common, % of the rows of either", subtitle=chance)
    return (cells + labels).properties(width=CELL * len(names), height=CELL * len(names), title=title, padding=PADDING)


def shift_chart(found: Mapping[str, Any]) -> Any:
    """How far each selection's lengths and sources are from the pool's, in bits.

    Returns:
        An `altair.Chart`.
    """
    import altair

    labels = {
        "prompt_chars": "prompt length",
        "response_chars": "response length",
        "turns": "turns",
        "source": "source",
    }
    rows = [
        {"method": entry["name"], "of": labels[name], "bits": value}
        for entry in found["methods"]
        for name, value in entry["shift"].items()
        if value is not None
    ]
    order = [found["methods"][m]["name"] for m in found["order"]]
    return (
        altair.Chart(altair.Data(values=rows))
        .mark_bar()
        .encode(
            x=altair.X("bits:Q", title="bits"),
            y=altair.Y("method:N", sort=order, title=None),
            column=altair.Column("of:N", title="divergence from the pool", sort=list(labels.values())),
        )
        .properties(width=150, height=18 * len(order), padding=PADDING)
    )


def share_chart(
    title: str, unit: str, edges: np.ndarray, counts: Mapping[str, np.ndarray], *, log: bool = False
) -> Any:
    """Histograms of a few sets over one another, each as shares of its own rows.

    Args:
        title: of the chart.
        unit: of the x axis.
        edges: (B + 1,) of the bins, ascending.
        counts: name -> (B,) rows in every bin, not all of them 0.
        log: the x axis is logarithmic; a bin from 0 is then drawn from half its end.

    Returns:
        An `altair.Chart`.
    """
    import altair

    total = sum(counts.values(), np.zeros(len(edges) - 1, dtype=np.int64))
    used = np.flatnonzero(total)
    rows = [
        {
            "from": float(edges[k] or edges[k + 1] / 2) if log else float(edges[k]),
            "to": float(edges[k + 1]),
            "share": float(found[k] / max(1, found.sum())),
            "rows": name,
        }
        for name, found in counts.items()
        for k in range(used[0], used[-1] + 1)
    ]
    scale = altair.Scale(type="log" if log else "linear", nice=False, zero=False)
    return (
        altair.Chart(altair.Data(values=rows))
        .mark_bar(opacity=0.55)
        .encode(
            x=altair.X("from:Q", title=unit, scale=scale, axis=altair.Axis(tickCount=8, format="~s" if log else "~g")),
            x2="to:Q",
            y=altair.Y("share:Q", title="share of the rows", stack=None, axis=altair.Axis(format="%")),
            y2=altair.datum(0),
            color=altair.Color("rows:N", title=None, sort=list(counts)),
        )
        .properties(width=480, height=200, title=title)
    )
