"""The pictures of a comparison, as Vega-Lite charts that become SVG or PNG without a browser or a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CELL = 46  # pixels of one cell of a matrix


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
    top = max((row["jaccard"] for row in rows), default=1.0)
    cells = base.mark_rect().encode(
        color=altair.Color("jaccard:Q", title="Jaccard", scale=altair.Scale(scheme="blues", domain=[0, max(top, 0.01)]))
    )
    dark = f"datum.jaccard > {0.6 * max(top, 0.01)}"
    labels = base.mark_text(fontSize=11).encode(
        text="text:N", color=altair.condition(dark, altair.value("white"), altair.value("black"))
    )
    chance = f"two random selections: {100 * found['chance'][0][0]:.0f} %"
    title = altair.Title("Rows in common, % of the rows of either", subtitle=chance)
    return (cells + labels).properties(width=CELL * len(names), height=CELL * len(names), title=title)


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
            x=altair.X("bits:Q", title="divergence from the pool, bits"),
            y=altair.Y("method:N", sort=order, title=None),
            column=altair.Column("of:N", title=None, sort=list(labels.values())),
        )
        .properties(width=150, height=18 * len(order))
    )


def svg(chart: Any) -> str:
    """The chart as one SVG element that refers to nothing outside itself."""
    import vl_convert

    return vl_convert.vegalite_to_svg(chart.to_dict())


def png(chart: Any) -> bytes:
    """The chart as a PNG, twice the size on paper."""
    import vl_convert

    return vl_convert.vegalite_to_png(chart.to_dict(), scale=2)
