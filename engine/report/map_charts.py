"""The map of the pool and the histogram that is linked to it: the page filters both, and the table, by either.

They only name their dots, the data set `points`: the page holds them once for all colours, files get them inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.report.charts import POINTS, REST, SELECTED, specification
from engine.report.shares import even_edges

MAP_HEIGHT, LINKED_HEIGHT = 420, 110


def map_charts(points: Sequence[Mapping[str, Any]], score: str | None) -> dict[str, Any]:
    """Name -> Vega-Lite specification: the map by each colour there is, and `linked`, the histogram of the score.

    Args:
        points: id, x, y, selected, and score or cluster where the run has them.
        score: name of the score.
    """
    import altair

    data = altair.NamedData(name=POINTS)
    drawn = {f"map-{name}": _map(data, points, colour) for name, colour in colours(points, score).items()}
    if score is not None and any(dot.get("score") is not None for dot in points):
        drawn["linked"] = linked(data, points, score)
    return {name: specification(chart) for name, chart in drawn.items()}


def colours(points: Sequence[Mapping[str, Any]], score: str | None) -> dict[str, Any]:
    """What the dots can be coloured by."""
    import altair

    top = altair.Legend(orient="top", gradientLength=160)
    groups = altair.Scale(domain=["selected", "left out"], range=[SELECTED, REST])
    found: dict[str, Any] = {"selected": altair.Color("group:N", title=None, scale=groups, legend=top)}
    if any(dot.get("score") is not None for dot in points):
        found["score"] = altair.Color("score:Q", title=score, scale=altair.Scale(scheme="viridis"), legend=top)
    if any(dot.get("cluster") is not None for dot in points):
        found["cluster"] = altair.Color("cluster:N", scale=altair.Scale(scheme="tableau20"), legend=None)
    return found


def _map(data: Any, points: Sequence[Mapping[str, Any]], colour: Any) -> Any:
    import altair

    brush = altair.selection_interval(name="brush", encodings=["x", "y"])
    size = altair.condition("datum.selected", altair.value(34), altair.value(16))
    fields = [name for name in ("id", "score", "cluster") if any(name in dot for dot in points)]
    return (
        altair.Chart(data)
        .transform_calculate(group="datum.selected ? 'selected' : 'left out'")
        .mark_circle()
        .encode(
            x=altair.X("x:Q", title=None, axis=None, scale=_around(points, "x")),
            y=altair.Y("y:Q", title=None, axis=None, scale=_around(points, "y")),
            color=colour,
            size=size,
            opacity=altair.condition("datum.selected", altair.value(0.9), altair.value(0.45)),
            order=altair.Order("selected:O"),
            tooltip=[f"{name}:N" for name in [*fields, "group"]],
        )
        .add_params(brush)
        .properties(width="container", height=MAP_HEIGHT)
    )


def _around(points: Sequence[Mapping[str, Any]], name: str) -> Any:
    """A scale that stays as it is when dots are filtered."""
    import altair

    values = [dot[name] for dot in points]
    low, high = min(values), max(values)
    room = 0.04 * (high - low) or 1.0
    return altair.Scale(domain=[low - room, high + room], nice=False, zero=False)


def _axis() -> Any:
    import altair

    return altair.Axis(tickCount=8, format="~g", labelOverlap=True)


def linked(data: Any, points: Sequence[Mapping[str, Any]], score: str) -> Any:
    """Histogram of the score of the dots inside the map's rectangle."""
    import altair

    known = [dot["score"] for dot in points if dot.get("score") is not None]
    edges = even_edges(min(known), max(known))
    low, high = float(edges[0]), float(edges[-1])
    brush = altair.selection_interval(name="range", encodings=["x"])
    groups = altair.Scale(domain=["selected", "left out"], range=[SELECTED, REST])
    scale = altair.Scale(domain=[low, high], nice=False)
    bins = altair.Bin(extent=[low, high], step=float(edges[1] - edges[0]))
    return (
        altair.Chart(data)
        .transform_calculate(group="datum.selected ? 'selected' : 'left out'")
        .mark_bar()
        .encode(
            x=altair.X("score:Q", bin=bins, title=score, scale=scale, axis=_axis()),
            y=altair.Y("count():Q", title="dots", axis=altair.Axis(tickCount=3)),
            color=altair.Color("group:N", scale=groups, legend=None),
        )
        .add_params(brush)
        .properties(width="container", height=LINKED_HEIGHT)
    )
