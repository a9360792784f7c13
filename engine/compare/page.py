"""A comparison as one HTML file that opens from disk and asks the network for nothing.

Text of rows is hostile input: everything is escaped by the template engine, and the page has no script at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from engine.artifacts import Step
from engine.compare.charts import overlap_chart, shift_chart
from engine.compare.collect import Pool
from engine.run_folder import run_steps
from engine.schema import ID, PROMPT, RESPONSE, id_words
from engine.store import Store
from engine.web_page import png, shown, svg, template

SHOWN_CHARS = 400


def write_page(target: Store, found: Mapping[str, Any], pool: Pool, stores: Sequence[Store]) -> list[str]:
    """Writes index.html, compare.json, overlap.svg and overlap.png.

    Returns:
        Names of the files.
    """
    wanted = sorted(set(found["agreed"]).union(*found["disputed"].values()))
    texts = row_texts(stores, pool.words_N[wanted])
    chart = overlap_chart(found).to_dict()
    overlap = svg(chart)
    rows = {at: texts[int(pool.words_N[at])] for at in wanted if int(pool.words_N[at]) in texts}
    page = template("engine.compare", "page.html.j2").render(
        found=found, overlap=overlap, shift=svg(shift_chart(found).to_dict()), rows=rows
    )
    written = {
        "index.html": page.encode(),
        "compare.json": (json.dumps(found, indent=1) + "\n").encode(),
        "overlap.svg": overlap.encode(),
        "overlap.png": png(chart),
    }
    for name, data in written.items():
        target.write_bytes(name, data)
    return list(written)


def row_texts(stores: Sequence[Store], words_I: np.ndarray) -> dict[int, dict[str, str]]:
    """Id word -> id, prompt and response of the rows wanted, cut to what is shown, from the first pool that has it."""
    texts: dict[int, dict[str, str]] = {}
    for store in stores:
        pool: Step = run_steps(store, "ingest")["ingest"]
        for part in pool.require().parts:
            missing = words_I[~np.isin(words_I, np.array(list(texts), dtype=np.uint64))]
            if not len(missing):
                return texts
            ids = pool.read(part.index, [ID])[ID]
            at = np.flatnonzero(np.isin(id_words(ids), missing))
            if len(at):
                table = pool.read(part.index, [ID, PROMPT, RESPONSE]).take(pa.array(at))
                for row, word in zip(table.to_pylist(), id_words(table[ID]).tolist(), strict=True):
                    texts[word] = {name: shown(row[name], SHOWN_CHARS) for name in (ID, PROMPT, RESPONSE)}
    return texts
