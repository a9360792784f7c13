"""The report on a judge that was measured against pairs with known verdicts, beside the baselines it has to beat.

Labels in, plain JSON-able numbers out. It asks nobody anything and knows nothing of endpoints or prices.

A verdict that depends on the order ("inconsistent") counts as a tie where three labels are compared (MT-Bench, arXiv
2306.05685, section 3.4), and not at all where two are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from rich.console import Group, RenderableType
from rich.text import Text

from engine.judging.agreement import (
    DECISIVE,
    LABELS,
    OTHER,
    Kappa,
    Proportion,
    accuracy,
    cohen_kappa,
    combined,
    confusion,
    flip_rate,
    length_preference,
    longest,
    position_preference,
    proportion,
    random_judge,
    self_consistency,
)
from engine.judging.gold import Pair
from engine.judging.report import (
    FEWEST_DECISIVE,
    MOST_FAILURES,
    by_count,
    flip_warning,
    of_how_many,
    position_warning,
    reason,
    with_interval,
)
from engine.screen import line, percent, table_of

FEWEST_PAIRS = 300  # below, the interval of kappa is wider than the differences between judges


class Totals(TypedDict):
    """What the check cost: tokens, US dollars (None: nobody knows the price), and the calls that they paid for."""

    calls: int
    tokens_in: int
    tokens_out: int
    usd: float | None


@dataclass(frozen=True)
class _Judged:
    """A pair that got a verdict; arguments of `check_report`, row by row."""

    pair: Pair
    first: str | None
    second: str | None
    verdict: str
    repeats: Sequence[str]


def check_report(
    pairs: Sequence[Pair],
    first: Sequence[str | None],
    second: Sequence[str | None],
    errors: Sequence[str | None],
    repeats: Sequence[Sequence[str]],
    totals: Totals,
) -> dict[str, Any]:
    """Measures a judge. Verdicts are combined from the orders as in a run, with answer_a in the reference's place.

    Args:
        pairs: N pairs.
        first, second: (N,) label as shown ("A", "B", "tie") with answer_a shown first, and with answer_b shown first;
            None when that order was not asked or failed.
        errors: (N,) None, or why there is no verdict; such a pair counts as failed and for nothing else.
        repeats: (N,) all labels of one order of a pair, at least two of them, or none.
        totals: of all calls of the check.

    Returns:
        `pairs`, `judged`, `failed`, `failures` (by reason), `failure` (the first in full, or None), `gold` (pairs by
        known verdict, `longer`: how often the longer answer is the better one); `judge` and `baselines` (`longest`,
        `random`), each with `accuracy`, `kappa`, `decisive_accuracy`, `decisive_kappa`, `longer`, `flips`,
        `shown_first` (random: expected values, plain numbers) and `confusion` (rows: known verdict, columns: said, in
        the order of `labels`); for the judge also `inconsistent` and `consistency`; `cost`: `totals`,
        `usd_per_1000_calls`, `usd_per_1000_pairs`; `warnings`, sentences.

    Raises:
        ValueError: the lengths differ.
    """
    columns = zip(pairs, first, second, errors, repeats, strict=True)
    judged = [
        _Judged(pair, one, other, verdict, again)
        for pair, one, other, error, again in columns
        if error is None and (verdict := combined(one, other)) is not None
    ]
    known = [row.pair for row in judged]
    report = {
        "pairs": len(pairs),
        "judged": len(judged),
        "failed": len(pairs) - len(judged),
        "failures": by_count(reason(error) for error in errors if error is not None),
        "failure": next((error for error in errors if error is not None), None),
        "labels": list(LABELS),
        "gold": {
            **{label: sum(pair.gold == label for pair in pairs) for label in LABELS},
            "longer": _longer(pairs, [pair.gold for pair in pairs]),
        },
        "judge": _judge(judged),
        "baselines": {"longest": _longest(known), "random": random_judge([pair.gold for pair in known])},
        "cost": _cost(totals, sum(label is not None for label in [*first, *second]), len(pairs)),
    }
    return {**report, "warnings": _warnings(report)}


def _judge(judged: Sequence[_Judged]) -> dict[str, Any]:
    first, second, verdicts = ([getattr(row, name) for row in judged] for name in ("first", "second", "verdict"))
    both = sum(None not in labels for labels in zip(first, second, strict=True))
    said = ["tie" if verdict == "inconsistent" else verdict for verdict in verdicts]
    return {
        **_agreement([row.pair for row in judged], said),
        "flips": flip_rate(first, second),
        "shown_first": position_preference(first, second),
        "inconsistent": proportion(verdicts.count("inconsistent"), both),
        "consistency": self_consistency([row.repeats for row in judged]),
    }


def _longest(pairs: Sequence[Pair]) -> dict[str, Any]:
    said = [longest(len(pair.answer_a), len(pair.answer_b)) for pair in pairs]
    swapped = [OTHER[label] for label in said]
    shown = {"flips": flip_rate(said, swapped), "shown_first": position_preference(said, swapped)}
    return {**_agreement(pairs, said), **shown}


def _agreement(pairs: Sequence[Pair], said: Sequence[str]) -> dict[str, Any]:
    counts_LL = confusion([pair.gold for pair in pairs], said)
    two = len(DECISIVE)
    return {
        "accuracy": accuracy(counts_LL),
        "kappa": cohen_kappa(counts_LL),
        "decisive_accuracy": accuracy(counts_LL[:two, :two]),
        "decisive_kappa": cohen_kappa(counts_LL[:two, :two]),
        "longer": _longer(pairs, said),
        "confusion": counts_LL.tolist(),
    }


def _longer(pairs: Sequence[Pair], said: Sequence[str]) -> Proportion:
    return length_preference(said, [len(pair.answer_a) for pair in pairs], [len(pair.answer_b) for pair in pairs])


def _cost(totals: Totals, labels: int, pairs: int) -> dict[str, Any]:
    """Per 1,000 calls, and per 1,000 pairs of a run, which asks every order once and repeats nothing."""
    per_call = totals["usd"] / totals["calls"] if totals["calls"] and totals["usd"] is not None else None
    return {
        "totals": dict(totals),
        "usd_per_1000_calls": None if per_call is None else 1000 * per_call,
        "usd_per_1000_pairs": None if per_call is None or not pairs else 1000 * per_call * labels / pairs,
    }


def _warnings(report: Mapping[str, Any]) -> list[str]:
    judge, by_length = report["judge"], report["baselines"]["longest"]
    found = [flip_warning(judge["flips"]), position_warning(judge["shown_first"])]
    if report["judged"] < FEWEST_PAIRS:
        found.append(f"Only {report['judged']:,} pairs: with fewer than {FEWEST_PAIRS} the intervals are wide.")
    if judge["decisive_accuracy"]["of"] < FEWEST_DECISIVE:
        count = judge["decisive_accuracy"]["of"]
        found.append(f"Only {count:,} pairs are decisive on both sides (fewer than {FEWEST_DECISIVE}).")
    low, baseline = judge["decisive_kappa"]["low"], by_length["decisive_kappa"]["value"]
    if low is not None and baseline is not None and low <= baseline:
        found.append(
            "The judge is not shown to agree with the known verdicts better than preferring the longer answer."
        )
    gold, longer = report["gold"]["longer"]["share"], judge["longer"]
    if gold is not None and longer["low"] is not None and gold < longer["low"]:
        found.append(
            f"The judge prefers the longer answer in {longer['share']:.1%} of its decisive verdicts, "
            f"the known verdicts only in {gold:.1%}."
        )
    if report["failed"] > MOST_FAILURES * report["pairs"]:
        found.append(f"{report['failed']:,} of {report['pairs']:,} pairs got no verdict.")
    return [sentence for sentence in found if sentence]


def render(report: Mapping[str, Any]) -> RenderableType:
    """The judge, with intervals, beside the baselines, as a table; consistency, cost and warnings below."""
    judge, cost, same = report["judge"], report["cost"], report["judge"]["consistency"]
    title = f"{report['judged']:,} of {report['pairs']:,} pairs judged"
    table = table_of("", "judge", *report["baselines"], "known", title=title, name_width=25)
    for label, key in (
        ("agreement, three labels", "accuracy"),
        ("kappa, three labels", "kappa"),
        ("agreement, decisive pairs", "decisive_accuracy"),
        ("kappa, decisive pairs", "decisive_kappa"),
        ("prefers the longer", "longer"),
        ("flips when swapped", "flips"),
        ("prefers the first shown", "shown_first"),
    ):
        known = percent(report["gold"]["longer"]["share"]) if key == "longer" else ""
        found = kappa_with_interval(judge[key]) if key.endswith("kappa") else with_interval(judge[key])
        table.add_row(label, found, *(_point(column[key], key) for column in report["baselines"].values()), known)
    lines = [
        f"decisive on both sides: {judge['decisive_accuracy']['of']:,} pairs",
        f"inconsistent: {of_how_many(judge['inconsistent'])}",
        f"same answer when asked again: {percent(same['pairwise'])} of {same['pairs']:,} repeated pairs",
        f"cost: {_usd(cost['totals']['usd'])}, per 1,000 pairs {_usd(cost['usd_per_1000_pairs'])}, "
        f"per 1,000 calls {_usd(cost['usd_per_1000_calls'])}"
        if cost["totals"]["usd"] is not None
        else "cost: unknown, give price={input: ..., output: ...} in USD per million tokens",
    ]
    if report["failed"]:
        reasons = ", ".join(f"{count:,} {line(why)}" for why, count in report["failures"].items())
        lines.append(f"failed: {report['failed']:,}: {reasons}; the first: {line(report['failure'] or '')[:200]}")
    return Group(table, *map(Text, lines), *(Text(f"! {sentence}", style="yellow") for sentence in report["warnings"]))


def kappa_with_interval(found: Kappa) -> str:
    """A kappa with its interval: "0.621 (0.594 to 0.648)", a dash when there is none."""
    if found["value"] is None:
        return "-"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _point(found: Mapping[str, Any] | float | None, key: str) -> str:
    """A baseline's number without its interval."""
    kappa = key.endswith("kappa")
    value = found["value" if kappa else "share"] if isinstance(found, Mapping) else found
    return percent(value) if not kappa else "-" if value is None else f"{value:.3f}"


def _usd(value: float | None) -> str:
    return "-" if value is None else f"${value:,.4f}"
