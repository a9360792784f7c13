"""Everything that a report says, as plain data: what `report.json` holds and the page and its charts draw.

A part that the run has nothing for is None, and `absent` says why. The texts of rows are not here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.artifacts import Step
from engine.compare.measures import spearman
from engine.labelling import weak_classifier
from engine.report import judged, shares
from engine.report.collect import CHARS, Collected, numbers_of
from engine.report.savings import Prices, chars_per_token, savings, selection_cost
from engine.schema import PROMPT, RESPONSE, ROW, SOURCE, TURNS

POWERS = [2**power for power in range(3, 20)]  # first characters of the bins of lengths
TURN_EDGES = [1, 2, 3, 4, 5, 9, 17]
LANGUAGE_CHARS = 400  # of a text, enough to tell its language
TEXT_ROWS = 1_500  # rows of the pool, and again of the selection, whose texts are read

TASTE = 0.5  # Spearman's correlation with a length that is worth a notice
MANY_NEAR = 0.1  # share of near-duplicates that is

Texts = Mapping[int, Mapping[str, str]]


def gather(found: Collected, texts: Texts, prices: Prices) -> dict[str, Any]:
    """All parts but the map and the examples.

    Args:
        texts: of the rows of `text_rows`.
        prices: what training costs.
    """
    steps = step_times(found)
    spent = selection_cost({**found.summary, "seconds": sum(step["seconds"] for step in steps)}, found.config, prices)
    facts: dict[str, Any] = {
        "method": found.summary["recipe"],
        "finished": found.record["finished"],
        "inputs": [file["path"] for file in found.record["inputs"]],
        "rows": found.totals.rows,
        "selected": found.totals.selected,
        "sampled": found.pool.num_rows if found.sampled else None,
        "rounds": judged.rounds(found) or None,
        "learned": learned(found),
        "applied": applied(found),
        "score": score_part(found),
        "shares": share_parts(found, texts),
        "clusters": cluster_part(found),
        "left_out": [{"reason": reason, "rows": count} for reason, count in found.left_out.most_common(15)],
        "rejected": [{"reason": reason, "rows": count} for reason, count in found.summary["rejected"].items()],
        "funnel": funnel(found),
        "steps": steps,
        "baselines": found.summary["baselines"],
        "calls": found.summary.get("calls") or None,
        "engines": found.summary.get("engines") or None,
    }
    facts["savings"] = training_cost(found, texts, prices, spent)
    facts["absent"] = absent(facts)
    facts["text_rows"], facts["shares_sampled"] = len(texts), len(texts) < found.totals.rows
    return facts


def learned(found: Collected) -> dict[str, Any] | None:
    """What the classifier learned, on the rows that its training did not see."""
    split = found.config["recipe"].get("validation_fraction")
    return judged.by_source(found.judged, found.config["seed"], split) if found.judged is not None and split else None


def applied(found: Collected) -> dict[str, Any] | None:
    """Of a run that applied another's selector: `run`, `rule`, `cut` (of that run) and `drift` from its pool."""
    told = found.summary.get("applied")
    return {**told, "drift": found.summary["drift"]} if told else None


def absent(facts: Mapping[str, Any]) -> dict[str, str]:
    """Why a part is not there."""
    why = {
        "rounds": "this method has no rounds of judging",
        "learned": "this method trains no classifier, or no labelled row was held out",
        "score": "this method ranks by no single score, or gave every row the same",
        "clusters": "this method made no clusters",
    }
    return {name: text for name, text in why.items() if facts[name] is None}


def notices(facts: Mapping[str, Any]) -> list[str]:
    """What a reader should know before anything else."""
    said = []
    if facts["sampled"]:
        said.append(
            f"Charts show a sample of {facts['sampled']:,} rows of the pool and as many at most of the selection; "
            "totals, clusters and reasons are exact."
        )
    learned, score, near = facts["learned"], facts["score"], facts["near"]
    if learned and None not in (learned["auc"], learned["source_auc"]) and learned["source_auc"] >= learned["auc"]:
        said.append(
            f"The source's name alone tells hard from easy at least as well as the classifier does "
            f"(AUC {learned['source_auc']:.2f} against {learned['auc']:.2f} on {learned['held_out']:,} held-out rows)."
        )
    if warning := weak_classifier(facts["rounds"] or []):
        said.append(f"{warning[0].upper()}{warning[1:]}.")
    lengths = score["spearman"] if score else {}
    for name, label in (("response_chars", "response"), ("prompt_chars", "prompt")):
        if abs(lengths.get(name) or 0.0) >= TASTE:
            said.append(f"The score follows the length of the {label} (Spearman {lengths[name]:.2f}).")
    if near and near["selected"]["near_duplicates"] >= MANY_NEAR:
        said.append(f"{near['selected']['near_duplicates']:.0%} of the selected rows have a near-duplicate among them.")
    failed = sum(step["failed"] for step in facts["steps"])
    return [*said, *([f"{failed:,} rows failed in a step; see the table of steps."] if failed else [])]


def text_rows(found: Collected) -> np.ndarray:
    """Rows of the two samples whose texts are looked at."""
    heads = [table[ROW].slice(0, TEXT_ROWS).to_numpy() for table in (found.pool, found.selected)]
    return np.unique(np.concatenate(heads))


def score_part(found: Collected) -> dict[str, Any] | None:
    """Histogram of the score, and how it goes with lengths, over the sample of the pool."""
    if found.score is None or found.score not in found.pool.column_names:
        return None
    pool_N, inside_N = numbers_of(found.pool, found.score), found.pool["selected"].to_numpy()
    selected_S = numbers_of(found.selected, found.score)
    cut = found.steps["selected"].require().extra.get("cut")
    histogram = shares.score_histogram(pool_N, inside_N, selected_S, found.totals.rows, found.totals.selected, cut)
    if histogram is None:
        return None
    known_N = np.isfinite(pool_N)
    correlations = {name: spearman(pool_N[known_N], found.pool[name].to_numpy()[known_N]) for name in (*CHARS, TURNS)}
    return {"name": found.score, **histogram, "spearman": correlations, "unscored": int(np.sum(~known_N))}


def share_parts(found: Collected, texts: Texts) -> list[dict[str, Any]]:
    """Selected against pool, property by property."""
    both = found.pool, found.selected
    lengths = (
        ("prompt length, characters", CHARS[0], POWERS),
        ("response length, characters", CHARS[1], POWERS),
        ("turns of the user", TURNS, TURN_EDGES),
    )
    parts = []
    for label, name, edges in lengths:
        pool_N, selected_S = (table[name].to_numpy() for table in both)
        parts.append(shares.by_length(label, pool_N, selected_S, edges))
    parts.append(language_part(found, texts))
    parts.append(shares.by_group("source", *(Counter(table[SOURCE].to_pylist()) for table in both)))
    if found.clusters is not None:
        named = [Counter({f"cluster {k}": int(n) for k, n in enumerate(counts) if n}) for counts in found.clusters]
        parts.append(shares.by_group("cluster", *named))
    return parts


def language_part(found: Collected, texts: Texts) -> dict[str, Any]:
    """Languages of prompt and response together, of the rows whose texts were read."""
    from engine.report.rows import languages

    rows = list(texts)
    code = dict(zip(rows, languages([language_text(texts[row]) for row in rows]), strict=True))
    heads = [table[ROW].slice(0, TEXT_ROWS).to_pylist() for table in (found.pool, found.selected)]
    return shares.by_group("language", *(Counter(code[row] for row in head) for head in heads))


def language_text(texts: Mapping[str, str]) -> str:
    return f"{texts[PROMPT][:LANGUAGE_CHARS]}\n{texts[RESPONSE][:LANGUAGE_CHARS]}"


def cluster_part(found: Collected) -> dict[str, Any] | None:
    """How much of the clusters the selection covers: exact, over all rows."""
    if found.clusters is None:
        return None
    pool_K, selected_K = found.clusters
    there = pool_K > 0
    order = np.argsort(-pool_K, kind="stable")
    return {
        "clusters": int(there.sum()),
        "covered": int((selected_K > 0).sum()),
        "gini": shares.gini(selected_K[there]),
        "pool_gini": shares.gini(pool_K[there]),
        "sizes": [[int(k), int(pool_K[k]), int(selected_K[k])] for k in order.tolist() if pool_K[k]],
    }


def funnel(found: Collected) -> list[dict[str, Any]]:
    """Rows that are left after each stage, widest first."""
    summary = found.summary
    rejected = sum(summary["rejected"].values())
    stages = [
        ("read", summary["rows_read"]),
        ("usable", summary["rows_read"] - rejected),
        ("pool, no duplicates", summary["pool"]),
    ]
    diverse = found.steps.get("diverse")
    if diverse is not None:
        stages.append(("diverse subset", diverse.require().rows))
    if summary["rounds"]:
        stages.append(("judged", sum(entry["judged"] for entry in summary["rounds"])))
        stages.append(("judged hard", sum(entry["hard"] for entry in summary["rounds"])))
    return [{"stage": name, "rows": rows} for name, rows in [*stages, ("selected", found.totals.selected)]]


def step_times(found: Collected) -> list[dict[str, Any]]:
    """Name, rows, seconds, rows per second and failed rows of every step, those of all rounds together.

    A step that an earlier invocation made has the seconds of its own record.
    """
    grouped: dict[str, dict[str, Any]] = {}
    for entry in found.summary["steps"]:
        step = found.steps.get(entry["name"])
        seconds = own_seconds(step) if entry["reused"] and step is not None else entry["seconds"]
        pieces = ["*" if piece.isdigit() else piece for piece in entry["name"].split("/")]
        line = grouped.setdefault("/".join(pieces), {"rows": 0, "seconds": 0.0, "failed": 0})
        for name, value in (("rows", entry["rows"]), ("seconds", seconds), ("failed", entry["failed"])):
            line[name] += value
    return [{"step": name, **line, "rows_per_s": rate(line)} for name, line in grouped.items()]


def rate(line: Mapping[str, Any]) -> float | None:
    return line["rows"] / line["seconds"] if line["rows"] and line["seconds"] > 0 else None


def own_seconds(step: Step) -> float:
    return step.require().seconds


def training_cost(found: Collected, texts: Texts, prices: Prices, spent: Mapping[str, Any]) -> dict[str, Any]:
    """The part on money."""
    chars = {"pool": found.totals.chars, "selected": found.totals.selected_chars}
    ratios = None
    if prices.tokenizer is not None:
        from engine.models.vllm_stages import load_tokenizer

        tokenizer = load_tokenizer(prices.tokenizer)
        heads = {"pool": found.pool, "selected": found.selected}
        ratios = {
            name: chars_per_token(texts_in(texts, table[ROW].slice(0, TEXT_ROWS).to_pylist()), tokenizer)
            for name, table in heads.items()
        }
    return savings(chars, ratios, prices, spent)


def texts_in(texts: Texts, rows: Sequence[int]) -> list[str]:
    return [texts[row][name] for row in rows for name in (PROMPT, RESPONSE)]
