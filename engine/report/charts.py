"""The charts of a report, as Vega-Lite: drawn by the page at the width it has, and by vl-convert as SVG and PNG.

Names from data are values in them, never markup. Colours work on white and on black; the page sets those of the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SELECTED, REST = "#e8710a", "#7b95c4"  # of selected rows, and of the pool or the rest
ACCENT = "#1a9988"
FILE_WIDTH = 640  # pixels of a chart in a file; on the page it is as wide as its place
MOST_CLUSTERS = 60
POINTS = "points"  # data set of the dots of the map, which the page holds once
Facts = Mapping[str, Any]


def charts(facts: Facts, scatter: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Name -> Vega-Lite specification of every part that the run has something for.

    Args:
        facts: of `engine.report.facts.gather`, with `near`.
        scatter: rows of the score-length chart: score, chars, group.
    """
    drawn: dict[str, Any] = {"funnel": funnel(facts["funnel"]), "time": step_times(facts["steps"])}
    if facts["rounds"]:
        drawn |= {"rounds": rounds(facts["rounds"]), "rounds-cost": rounds_cost(facts["rounds"])}
    if facts["score"]:
        drawn |= {"score": score_histogram(facts["score"]), "score-length": score_length(scatter, facts["score"])}
    if facts["learned"]:
        drawn["source-auc"] = source_auc(facts["learned"])
    for part in facts["shares"]:
        drawn[part["chart"]] = share(part)
    if facts["clusters"]:
        drawn["clusters"] = clusters(facts["clusters"])
    if facts["near"]:
        drawn["near"] = nearest(facts["near"])
    if facts["left_out"]:
        drawn["left-out"] = counted(facts["left_out"], "reason", REST)
    if facts["rejected"]:
        drawn["rejected"] = counted(facts["rejected"], "reason", REST)
    return {name: specification(chart) for name, chart in drawn.items()}


def specification(chart: Any) -> dict[str, Any]:
    """Vega-Lite's JSON, without Altair's own look: the page and the files have theirs."""
    spec = chart.to_dict(validate=False)  # three times as fast; the tests draw every chart
    return {name: value for name, value in spec.items() if name not in ("config", "$schema")}


def _chart(rows: Sequence[Mapping[str, Any]], height: int) -> Any:
    import altair

    return altair.Chart(altair.Data(values=list(rows))).properties(width="container", height=height)


def _bars(rows: Sequence[Mapping[str, Any]], name: str, value: Any, colour: str) -> Any:
    """Horizontal bars in the order given, each with its figure."""
    import altair

    order = [row[name] for row in rows]
    top = max((row["rows"] if "rows" in row else row["seconds"] for row in rows), default=1) * 1.18 or 1
    base = _chart(rows, 22 * len(rows) + 10).encode(
        x=value.scale(domain=[0, top]),
        y=altair.Y(f"{name}:N", sort=order, title=None, axis=altair.Axis(ticks=False, domain=False)),
    )
    return base.mark_bar(color=colour, cornerRadiusEnd=2) + base.mark_text(align="left", dx=4).encode(text="text:N")


def counted(rows: Sequence[Mapping[str, Any]], name: str, colour: str) -> Any:
    import altair

    from engine.report.shares import group_name

    lines = [{name: group_name(row[name]), "rows": row["rows"], "text": f"{row['rows']:,}"} for row in rows]
    return _bars(lines, name, altair.X("rows:Q", title="rows", axis=altair.Axis(tickMinStep=1, tickCount=6)), colour)


def funnel(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows left after each stage."""
    return counted(rows, "stage", ACCENT)


def step_times(steps: Sequence[Mapping[str, Any]]) -> Any:
    """Seconds of each step."""
    import altair

    from engine.screen import duration

    lines = [{"step": s["step"], "seconds": s["seconds"], "text": duration(s["seconds"])} for s in steps]
    return _bars(lines, "step", altair.X("seconds:Q", title="seconds"), ACCENT)


def rounds(entries: Sequence[Mapping[str, Any]]) -> Any:
    """Hard rate, validation accuracy and AUC by round."""
    import altair

    names = {
        "hard_rate": "hard rate", "val_accuracy": "validation accuracy",
        "val_balanced_accuracy": "balanced accuracy", "val_auc": "validation AUC",
    }  # fmt: skip
    rows = [
        {"round": entry["round"], "value": entry.get(name), "of": label}
        for entry in entries
        for name, label in names.items()
        if entry.get(name) is not None
    ]
    colours = altair.Scale(domain=list(names.values()), range=[SELECTED, REST, "#8e6fc0", ACCENT])
    return (
        _chart(rows, 220)
        .mark_line(point=True)
        .encode(
            x=altair.X("round:O", title="round", axis=altair.Axis(labelAngle=0)),
            y=altair.Y("value:Q", title=None, scale=altair.Scale(domain=[0, 1]), axis=altair.Axis(format=".0%")),
            color=altair.Color("of:N", title=None, scale=colours, legend=altair.Legend(orient="bottom", columns=2)),
            tooltip=["round:O", "of:N", altair.Tooltip("value:Q", format=".3f")],
        )
    )


def rounds_cost(entries: Sequence[Mapping[str, Any]]) -> Any:
    """Judge calls by round, with USD where calls were paid."""
    import altair

    rows = []
    for entry in entries:
        text = f"{entry['judge_calls']:,}" + (f" · ${entry['usd']:.4g}" if entry["usd"] is not None else "")
        rows.append({"round": entry["round"], "calls": entry["judge_calls"], "text": text})
    base = _chart(rows, 220).encode(
        x=altair.X("round:O", title="round", axis=altair.Axis(labelAngle=0)),
        y=altair.Y("calls:Q", title="judge calls", axis=altair.Axis(tickMinStep=1)),
    )
    return base.mark_bar(color=REST, cornerRadiusEnd=2) + base.mark_text(dy=-6).encode(text="text:N")


def score_histogram(score: Facts) -> Any:
    """Rows by score, selected on top of the rest, and the cut."""
    import altair

    rows = [
        {"low": low, "high": high, "rows": count, "group": group}
        for group in ("selected", "left out")
        for low, high, count in zip(
            score["edges"], score["edges"][1:], score["selected" if group == "selected" else "rest"], strict=False
        )
        if count
    ]
    bars = (
        _chart(rows, 240)
        .mark_bar()
        .encode(
            x=altair.X("low:Q", title=score["name"], bin=altair.BinParams(binned=True), scale=altair.Scale(zero=False)),
            x2="high:Q",
            y=altair.Y("rows:Q", title="rows", stack="zero"),
            color=_groups("selected", "left out"),
            order=altair.Order("group:O"),
            tooltip=[altair.Tooltip("low:Q", format=".4g"), altair.Tooltip("rows:Q", format=",.0f"), "group:N"],
        )
    )
    text = f"{'cut' if score['cut_applied'] else 'as many'} {score['cut']:.3g}"
    cut = altair.Chart(altair.Data(values=[{"cut": score["cut"], "text": text}]))
    rule = cut.mark_rule(strokeDash=[5, 4], strokeWidth=1.5).encode(x="cut:Q")
    label = cut.mark_text(align="left", dx=5, baseline="top").encode(x="cut:Q", y=altair.value(0), text="text:N")
    return bars + rule + label


def _groups(first: str, second: str) -> Any:
    import altair

    scale = altair.Scale(domain=[first, second], range=[SELECTED, REST])
    return altair.Color("group:N", title=None, scale=scale, legend=altair.Legend(orient="top"))


def score_length(scatter: Sequence[Mapping[str, Any]], score: Facts) -> Any:
    """Score against the length of the response, a dot a row."""
    import altair

    return (
        _chart(scatter, 260)
        .mark_circle(size=14, opacity=0.55)
        .encode(
            x=altair.X("chars:Q", title="response, characters", scale=altair.Scale(type="symlog", constant=16)),
            y=altair.Y("score:Q", title=score["name"], scale=altair.Scale(zero=False)),
            color=_groups("selected", "left out"),
        )
    )


def source_auc(learned: Facts) -> Any:
    """The classifier's AUC within each source, beside its AUC over all and that of the source's name alone."""
    import altair

    from engine.report.shares import group_name

    lines = [("all sources", learned["auc"], "classifier"), ("source name alone", learned["source_auc"], "baseline")]
    lines += [(group_name(entry["source"]), entry["auc"], "within a source") for entry in learned["sources"][:12]]
    rows = [{"name": name, "auc": value, "of": of} for name, value, of in lines if value is not None]
    scale = altair.Scale(domain=["classifier", "baseline", "within a source"], range=[ACCENT, SELECTED, REST])
    base = _chart(rows, 26 * len(rows) + 10).encode(
        x=altair.X("auc:Q", title="AUC on held-out rows", scale=altair.Scale(domain=[0, 1])),
        y=altair.Y("name:N", sort=[row["name"] for row in rows], title=None),
    )
    legend = altair.Legend(orient="top")
    dots = base.mark_point(filled=True, size=90).encode(
        color=altair.Color("of:N", title=None, scale=scale, legend=legend)
    )
    coin = altair.Chart(altair.Data(values=[{"auc": 0.5}])).mark_rule(strokeDash=[5, 4]).encode(x="auc:Q")
    return dots + coin


def share(part: Facts) -> Any:
    """Share of the pool and of the selection in each bin or group."""
    import altair

    order = [entry["name"] for entry in part["bins"]]
    rows = [
        {"name": entry["name"], "share": entry["selected" if group == "selected" else "pool"], "group": group}
        for entry in part["bins"]
        for group in ("selected", "pool")
    ]
    return (
        _chart(rows, 24 * len(order) + 10)
        .mark_bar(cornerRadiusEnd=2)
        .encode(
            x=altair.X("share:Q", title=None, axis=altair.Axis(format="%", tickCount=5)),
            y=altair.Y("name:N", sort=order, title=None, axis=altair.Axis(ticks=False)),
            yOffset=altair.YOffset("group:N", sort=["selected", "pool"]),
            color=_groups("selected", "pool"),
            tooltip=["name:N", "group:N", altair.Tooltip("share:Q", format=".1%")],
        )
    )


def clusters(part: Facts) -> Any:
    """Share of its rows that each cluster gave, the largest clusters first."""
    import altair

    rows = [
        {"cluster": str(k), "share": taken / size, "rows": size, "selected": taken}
        for k, size, taken in part["sizes"][:MOST_CLUSTERS]
    ]
    mean = sum(entry[2] for entry in part["sizes"]) / max(1, sum(entry[1] for entry in part["sizes"]))
    tooltips = ["cluster:N", "rows:Q", "selected:Q", altair.Tooltip("share:Q", format=".1%")]
    bars = (
        _chart(rows, 200)
        .mark_bar(color=SELECTED)
        .encode(
            x=altair.X("cluster:N", sort=None, title="cluster, largest first", axis=altair.Axis(labelOverlap=True)),
            y=altair.Y("share:Q", title="share selected", axis=altair.Axis(format="%", tickCount=5)),
            tooltip=tooltips,
        )
    )
    return bars + altair.Chart(altair.Data(values=[{"share": mean}])).mark_rule(strokeDash=[5, 4]).encode(y="share:Q")


def nearest(near: Facts) -> Any:
    """Cosine to the nearest other row: among the selected, and among as many rows of the pool."""
    import altair

    rows = [
        {"low": low, "share": value, "group": name}
        for name, values in near["histogram"].items()
        for low, value in zip(near["edges"], values, strict=False)
    ]
    scale = altair.Scale(domain=list(near["histogram"]), range=[SELECTED, REST])
    return (
        _chart(rows, 220)
        .mark_line(interpolate="step-after", strokeWidth=2)
        .encode(
            x=altair.X("low:Q", title="cosine to the nearest other prompt"),
            y=altair.Y("share:Q", title="share of rows", axis=altair.Axis(format="%", tickCount=5)),
            color=altair.Color("group:N", title=None, scale=scale, legend=altair.Legend(orient="top")),
        )
    )


def for_file(spec: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A specification with a width of its own, on white, with the dots inside where it only names them."""
    data = {"data": {"values": list(points)}} if spec.get("data", {}).get("name") == POINTS else {}
    config = {"axisY": {"labelLimit": 190}, "font": "sans-serif"}
    return {**spec, **data, "width": FILE_WIDTH, "background": "white", "padding": 12, "config": config}
