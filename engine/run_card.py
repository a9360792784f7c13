"""The dataset card of a run: what happened, where the rows came from, and two pictures of what was taken.

Figures come from committed steps, part by part; the wording and the escaping are in engine/data/card.py.
"""

# Shape letters: B bins.

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from engine.artifacts import fingerprint
from engine.compare.charts import share_chart
from engine.data.card import dataset_card
from engine.handoff.folder import Handoff
from engine.outputs import remove_others
from engine.recipes.base import Context, Selection
from engine.schema import RESPONSE, ROW
from engine.screen import number
from engine.web_page import png

BINS = 30
LENGTH_EDGES = np.array([0, *(2 ** (k / 2) for k in range(2, 41))])  # characters, two bins to a doubling


def write_card(
    context: Context, selection: Selection, format_name: str, baselines: list[dict[str, Any]], handoff: Handoff
) -> None:
    """Writes README.md and its charts into the output folder.

    Args:
        format_name: of the rows in data/.
        baselines: lines of `compare_with_baselines`.
        handoff: what was written beside the selection.
    """
    charts = {}
    for path, about, chart in charts_of(context, selection):
        context.outputs.write_bytes(path, png(chart.to_dict(), scale=1))
        charts[path] = about
    remove_others(context.outputs, "charts", [path.rsplit("/", 1)[-1] for path in charts])
    output = context.config.output
    rows = [step.fingerprint for step in (context.pool, selection.selected, selection.scores) if step is not None]
    card = {
        "name": output.name,
        "language": output.language,
        "license": output.license,
        "rows": selection.selected.require().rows,
        "pool_rows": context.pool_rows,
        "method": context.config.recipe.name,
        "format": format_name,
        "facts": card_facts(context, selection, baselines),
        "charts": charts,
        "sources": sources(context),
        "sets": handoff.folders,
        "tags": ["iterselect", context.config.recipe.name],
        "fingerprint": fingerprint("card", 1, output.model_dump(), rows),
    }
    context.outputs.write_bytes("README.md", dataset_card(card).encode())


def card_facts(context: Context, selection: Selection, baselines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Label -> value of the card's table: input, method, budget, cost, and how the selection differs."""
    config, counts = context.config, context.pool.require().extra
    facts: dict[str, Any] = {
        "rows read": counts["rows_read"],
        "rejected": counts["rejected"],
        "exact duplicates": counts["duplicates"],
        "budget": f"{context.budget:,} rows",
        "seed": config.seed,
        "encoder": config.encoder.model,
    }
    for entry in selection.facts.get("rounds", []):
        label = f"round {entry['round']}"
        facts[label] = (
            f"{entry['judged']} judged, {entry['hard_rate']:.1%} hard, validation AUC {number(entry['val_auc'])}"
        )
    facts |= selection.facts.get("card", {})
    if left_out := counts.get("left_out"):
        facts["pilot"] = f"{context.pool_rows:,} of {context.pool_rows + left_out:,} rows, drawn at random"
    paid = context.paid.facts()
    facts["paid calls"] = paid.get("calls", 0)
    facts["cost of calls"] = f"{paid.get('usd', 0.0):.4f} USD"
    for line in baselines:
        facts[f"mean response length, {line['name']}"] = f"{line['response_chars']:.0f} characters"
    return facts


def sources(context: Context) -> list[tuple[str, int, str]]:
    """(path, bytes, digest) of every input file that is read.

    The digest of a local file is its SHA-256; of a remote one, which would have to be fetched again, the version tag
    that its store gives it. They are kept beside the pool, which is one of these very files.
    """
    name = f"{context.pool.folder}/digests.json"
    if not context.store.exists(name):
        # what follows "?" in a URI may be a signature
        found = [(path.split("?")[0], size, digest(path, tag)) for path, size, tag in context.pool.settings["files"]]
        context.store.write_bytes(name, (json.dumps(found, indent=1) + "\n").encode())
    return [tuple(one) for one in json.loads(context.store.read_bytes(name))]


def digest(path: str, tag: str) -> str:
    if "://" in path:
        return f"version {tag}" if tag else "unknown"
    with Path(path).open("rb") as file:
        return f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"


def charts_of(context: Context, selection: Selection) -> list[tuple[str, str, Any]]:
    """(path, what it shows, chart): the score that ranks, where there is one, and the length of the responses."""
    selected = np.sort(selection.selected.read_all([ROW])[ROW].to_numpy())
    lengths = histograms(context, selection, None, LENGTH_EDGES, selected)
    about = "Length of the responses, selection and pool"
    charts = [("charts/response_length.png", about, share_chart(about, "characters", LENGTH_EDGES, lengths, log=True))]
    edges = score_edges(context, selection)
    if edges is not None:
        found = histograms(context, selection, selection.score, edges, selected)
        about = "Score, selection and pool"
        charts.insert(0, ("charts/score.png", about, share_chart(about, str(selection.score), edges, found)))
    return charts


def score_edges(context: Context, selection: Selection) -> np.ndarray | None:
    """(BINS + 1,) edges over the finite scores; None when the method has no score, or one value for all."""
    if selection.scores is None or selection.score is None:
        return None
    low, high = np.inf, -np.inf
    for part in context.pool.require().parts:
        values = scores_of(selection, part.index, selection.score)
        low, high = min(low, values.min(initial=np.inf)), max(high, values.max(initial=-np.inf))
    return np.linspace(low, high, BINS + 1) if low < high else None


def scores_of(selection: Selection, index: int, column: str) -> np.ndarray:
    """The finite scores of one part."""
    values = numbers(selection, index, column)
    return values[np.isfinite(values)]


def numbers(selection: Selection, index: int, column: str) -> np.ndarray:
    assert selection.scores is not None
    return selection.scores.read(index, [column])[column].to_numpy(zero_copy_only=False).astype(np.float64)


def histograms(
    context: Context, selection: Selection, column: str | None, edges: np.ndarray, selected: np.ndarray
) -> dict[str, np.ndarray]:
    """(B,) rows per bin, of the pool and of the selection.

    Args:
        column: of the scores; None for the characters of the responses.
        edges: (B + 1,) ascending.
        selected: rows, ascending.
    """
    counts = {name: np.zeros(len(edges) - 1, dtype=np.int64) for name in ("pool", "selected")}
    for part in context.pool.require().parts:
        table = context.pool.read(part.index, [ROW] if column else [ROW, RESPONSE])
        values = numbers(selection, part.index, column) if column else pc.utf8_length(table[RESPONSE]).to_numpy()  # pyright: ignore
        inside = np.isin(table[ROW].to_numpy(), selected, assume_unique=True)
        for name, wanted in (("pool", np.isfinite(values)), ("selected", inside & np.isfinite(values))):
            counts[name] += np.histogram(np.clip(values[wanted], edges[0], edges[-1]), edges)[0]
    return counts
