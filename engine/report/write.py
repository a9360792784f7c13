"""A report from a finished run to its folder: index.html, report.json, and every chart as SVG and PNG."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from engine.errors import DataError
from engine.report.charts import charts, for_file
from engine.report.collect import CHARS, Collected, collect, numbers_of
from engine.report.examples import example_rows, facts_of, picked_rows, rounded
from engine.report.facts import gather, notices, text_rows
from engine.report.layout import Layout, Method, closeness, lay_out, points
from engine.report.map_charts import map_charts
from engine.report.page import render_page
from engine.report.rows import texts_of, vector_step
from engine.report.savings import Prices
from engine.schema import ROW
from engine.store import Store
from engine.web_page import png, svg

SCATTER_ROWS = 3_000
MOST_BYTES = 8_000_000  # of index.html


def write_report(
    run: Store, target: Store, prices: Prices | None = None, method: Method = "pca", pictures: bool = True
) -> dict[str, Any]:
    """Writes the report of a finished run.

    Args:
        run: the run folder, or that of one method of several.
        target: folder to write into.
        prices: what training costs, if the user said so.
        method: of the map.
        pictures: also write every chart as SVG and PNG.

    Returns:
        The facts, as in report.json.

    Raises:
        DataError: E446, the page would be larger than MOST_BYTES.
    """
    found = collect(run)
    facts = gather(found, texts_of(found.steps["ingest"], text_rows(found)), prices or Prices())
    judged = found.judged[ROW].to_pylist() if found.judged is not None else []
    picked = picked_rows(found, judged)
    layout, near = on_map(found, list(picked), method)
    facts |= {"map": layout.facts if layout else None, "near": near}
    if layout is None:
        facts["absent"] |= dict.fromkeys(("map", "near"), "this method looked at no vectors")
    facts["notices"] = notices(facts)
    known = known_rows(found, [*picked, *(layout.rows_I.tolist() if layout else [])])
    examples = example_rows(found, picked, known)
    facts["examples"] = len(examples)
    dots = points(found, layout, known) if layout else []
    specs = charts(facts, scatter(found)) | (map_charts(dots, found.score) if dots else {})
    page = render_page(facts, specs, examples, dots).encode()
    if len(page) > MOST_BYTES:
        raise DataError(
            f"the page has {len(page):,} bytes, more than {MOST_BYTES:,}",
            why="names of sources, files or reasons are very long or very many",
            code="E446",
        )
    target.write_bytes("index.html", page)
    target.write_bytes("report.json", (json.dumps(facts, indent=1) + "\n").encode())
    for name, spec in specs.items() if pictures else ():
        sized = for_file(spec, dots)
        target.write_bytes(f"charts/{name}.svg", svg(sized).encode())
        target.write_bytes(f"charts/{name}.png", png(sized))
    return facts


def on_map(found: Collected, examples: Sequence[int], method: Method) -> tuple[Layout | None, dict[str, Any] | None]:
    """The map and the closeness of the selected rows; None for a run without vectors."""
    step = vector_step(found.steps, found.totals.rows)
    if step is None:
        return None, None
    return lay_out(found, step, examples, method), closeness(found, step)


def known_rows(found: Collected, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Row -> its columns of `scores/`; rows of the page all come from one of these tables."""
    tables: list[pa.Table] = [*found.listed.values(), found.pool, found.selected]
    return facts_of([*tables, *([found.judged] if found.judged is not None else [])], set(rows))


def scatter(found: Collected) -> list[dict[str, Any]]:
    """Dots of the score-length chart: a sample of the pool."""
    if found.score is None or found.score not in found.pool.column_names:
        return []
    table = found.pool.slice(0, SCATTER_ROWS)
    rows = zip(numbers_of(table, found.score), table[CHARS[1]].to_pylist(), table["selected"].to_pylist(), strict=True)
    return [
        {"score": rounded(float(score)), "chars": chars, "group": "selected" if selected else "left out"}
        for score, chars, selected in rows
        if np.isfinite(score)
    ]
