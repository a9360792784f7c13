"""What every page that the engine writes shares: templates that escape, pictures, texts cut to what is shown.

A page is one HTML file that opens from disk and asks the network for nothing. Text of rows is hostile input: templates
escape everything, and `shown` takes control characters and direction marks out. It knows nothing of runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc

from engine.screen import clean, dollars, duration, number, percent

SVG_SCALE = 2  # of a PNG, against the size on paper


def template(package: str, name: str) -> jinja2.Template:
    """A template of a package, with the filters percent, number, duration and dollars; everything is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    environment.filters |= {"percent": percent, "number": number, "duration": duration, "dollars": dollars}
    return environment.from_string(files(package).joinpath(name).read_text(encoding="utf-8"))


def shown(text: str, chars: int) -> str:
    """The beginning of a text, without control characters and direction marks.

    Args:
        chars: most characters kept; what is longer ends in " ...".
    """
    found = clean(text[: 2 * chars])
    return found if len(text) <= chars else found[:chars] + " ..."


def cut_texts(table: pa.Table, columns: list[str], chars: int) -> pa.Table:
    """The table with these text columns cut after `chars` characters, so that few large rows fill no memory."""
    for name in columns:
        cut = pc.utf8_slice_codeunits(table[name], 0, chars)  # pyright: ignore[reportAttributeAccessIssue]
        table = table.set_column(table.column_names.index(name), name, cut)
    return table


def svg(spec: Mapping[str, Any]) -> str:
    """A Vega-Lite specification as one SVG element that refers to nothing outside itself."""
    import vl_convert

    return vl_convert.vegalite_to_svg(dict(spec))


def png(spec: Mapping[str, Any], scale: float = SVG_SCALE) -> bytes:
    """A Vega-Lite specification as a PNG, by default twice the size on paper."""
    import vl_convert

    return vl_convert.vegalite_to_png(dict(spec), scale=scale)
