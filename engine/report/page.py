"""A report as one HTML file that opens from disk, asks the network for nothing, and lets no text of a row act.

Three walls stand before hostile text: the template engine escapes it; what the script shows of it, it sets as text; and
the page's content security policy runs only the scripts whose hashes it names and loads nothing from anywhere.
(`unsafe-eval` is what Vega compiles its own expressions with; they hold column names of ours only.)
The table is Tabulator (vendor/, MIT), the charts are Vega-Embed as vl-convert bundles it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from engine.web_page import template


def render_page(
    facts: Mapping[str, Any],
    charts: Mapping[str, Any],
    examples: Sequence[Mapping[str, Any]],
    points: Sequence[Mapping[str, Any]],
) -> str:
    """The page.

    Args:
        facts: as in `report.json`.
        charts: name -> Vega-Lite specification; those of the map name their data `points`.
        examples: rows of the table.
        points: dots of the map; empty without vectors.
    """
    scripts = [chart_library(), asset("vendor/tabulator.min.js"), asset("page.js")]
    data = {"charts": charts, "examples": examples, "points": points}
    return template("engine.report", "page.html.j2").render(
        facts=facts,
        charts=charts,
        examples=len(examples),
        policy=policy(scripts),
        scripts=[Markup(script) for script in scripts],
        styles=[Markup(asset(name)) for name in ("vendor/tabulator.min.css", "page.css")],
        data=Markup(json_text(data)),
    )


def json_text(value: Any) -> str:
    """JSON that may stand in a script element: no `<`, `>` or `&`, no line separator of JavaScript.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def policy(scripts: Sequence[str]) -> str:
    """The content security policy: nothing from anywhere, and these inline scripts only."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src 'unsafe-eval' {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def asset(name: str) -> str:
    """A file of this package."""
    return files("engine.report").joinpath(name).read_text(encoding="utf-8")


@cache
def chart_library() -> str:
    """Vega, Vega-Lite and Vega-Embed, which it sets as `window.vegaEmbed`; it takes two seconds to bundle."""
    import vl_convert

    bundle = vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue]
    assert "</script" not in bundle.lower()
    return f"(function () {{\n{bundle}\n}})();"
