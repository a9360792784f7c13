"""What a table of verdicts says about the judge: counts, biases, canaries, failures and cost, and warnings in words.

`judge_facts` is pure: a table in, plain JSON-able numbers out. The facts of several rounds are those of their tables
one after another, so nothing is averaged over averages. It knows nothing of how verdicts were obtained.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from engine.judging.agreement import Proportion, flip_rate, length_preference, position_preference, proportion
from engine.schema import ERROR, VERDICT
from engine.screen import line, percent

VERDICTS = ("reference", "answer", "tie", "inconsistent")
MOST_FLIPS = 0.25
MOST_CANARY_ERRORS = 0.05
MOST_FAILURES = 0.05
FAIR_POSITION = (0.45, 0.55)  # outside of this with its whole interval, a preference for a place is worth a warning
FEWEST_DECISIVE = 30
_LONGEST_REASON = 60


def judge_facts(verdicts: pa.Table) -> dict[str, Any]:
    """The facts of one or more rounds.

    Args:
        verdicts: N rows with `verdict` (of VERDICTS, null without one), `first` and `second` (label as shown in each
            order, null when it was not asked), `error`, `canary` (whether the canary that came along was judged right,
            null without one), `suspect` (reason, or null), `tokens_in`, `tokens_out`, `usd`, `reference_chars`,
            `answer_chars`. Further columns are ignored.

    Returns:
        `rows`, `verdicts` (by kind), `judged`, `decisive`, `failed`, `not_asked` (neither a verdict nor an error:
        suspects that were skipped); the proportions (see `agreement.Proportion`) `inconsistent` and `flips` of the
        rows judged in both orders, `shown_first` and `longer` (the share of decisive labels for the answer shown
        first, of decisive verdicts for the longer answer) and `canary_errors`; `suspects` and `failures` by reason;
        `tokens_in`, `tokens_out`, `usd`, `usd_per_1000` (all money over the rows judged, None without rows);
        `warnings`, sentences.
    """
    said = verdicts[VERDICT].to_pylist()
    first, second = verdicts["first"].to_pylist(), verdicts["second"].to_pylist()
    kinds = Counter(said)
    judged, failed = len(said) - kinds[None], len(said) - verdicts[ERROR].null_count
    decisive = kinds["reference"] + kinds["answer"]
    winners = [{"reference": "A", "answer": "B"}.get(verdict) for verdict in said]
    lengths = [verdicts[name].to_pylist() for name in ("reference_chars", "answer_chars")]
    canaries = Counter(verdicts["canary"].to_pylist())
    both = sum(v is not None and a is not None and b is not None for v, a, b in zip(said, first, second, strict=True))
    usd = _total(verdicts["usd"], 0.0)
    facts: dict[str, Any] = {
        "rows": len(said),
        "verdicts": {kind: kinds[kind] for kind in VERDICTS},
        "judged": judged,
        "decisive": decisive,
        "failed": failed,
        "not_asked": sum(v is None and e is None for v, e in zip(said, verdicts[ERROR].to_pylist(), strict=True)),
        "inconsistent": proportion(kinds["inconsistent"], both),
        "flips": flip_rate(first, second),
        "shown_first": position_preference(first, second),
        "longer": length_preference(winners, *lengths),
        "canary_errors": proportion(canaries[False], canaries[True] + canaries[False]),
        "suspects": by_count(verdicts["suspect"].drop_null().to_pylist()),
        "failures": by_count(map(reason, verdicts[ERROR].drop_null().to_pylist())),
        "tokens_in": _total(verdicts["tokens_in"], 0),
        "tokens_out": _total(verdicts["tokens_out"], 0),
        "usd": usd,
        "usd_per_1000": 1000 * usd / judged if judged else None,
    }
    return {**facts, "warnings": _warnings(facts)}


def merge_facts(rounds: Sequence[pa.Table]) -> dict[str, Any]:
    """The facts of all rounds together: those of the tables one after another.

    Args:
        rounds: at least one table, as for `judge_facts`.
    """
    return judge_facts(pa.concat_tables(rounds, promote_options="default"))


def reason(error: str) -> str:
    """What an error text is counted under: its leading code word ("timeout: ..."), else its beginning."""
    code = re.match(r"([\w.-]+):", error)
    return code[1] if code else " ".join(error.split())[:_LONGEST_REASON]


def with_interval(found: Proportion) -> str:
    """A share with its interval: "12.0% (9.1% to 15.7%)", a dash when there is none."""
    if found["share"] is None:
        return "-"
    return f"{found['share']:.1%} ({percent(found['low'])} to {percent(found['high'])})"


def of_how_many(found: Proportion) -> str:
    """As `with_interval`, and of how many: "12.0% (9.1% to 15.7%) of 430"."""
    return with_interval(found) + (f" of {found['of']:,}" if found["of"] else "")


def position_warning(shown_first: Proportion) -> str | None:
    """A sentence when the judge clearly prefers a place."""
    low, high, share = shown_first["low"], shown_first["high"], shown_first["share"]
    if low is None or high is None or share is None or (low <= FAIR_POSITION[1] and high >= FAIR_POSITION[0]):
        return None
    place, rate = ("first", share) if share > 0.5 else ("second", 1 - share)
    return f"The judge prefers the answer shown {place}: {rate:.1%} of its decisive verdicts."


def flip_warning(flips: Proportion) -> str | None:
    """A sentence when too many verdicts change with the order."""
    if flips["share"] is None or flips["share"] <= MOST_FLIPS:
        return None
    return (
        f"{flips['share']:.1%} of the verdicts name the other answer when the order is swapped "
        f"(more than {MOST_FLIPS:.0%}): use a stronger judge."
    )


def _warnings(facts: Mapping[str, Any]) -> list[str]:
    found = [flip_warning(facts["flips"]), position_warning(facts["shown_first"])]
    canary = facts["canary_errors"]
    if canary["share"] is not None and canary["share"] > MOST_CANARY_ERRORS:
        found.append(
            f"The judge got {canary['count']:,} of {canary['of']:,} canaries wrong, pairs whose verdict is plain "
            f"(more than {MOST_CANARY_ERRORS:.0%}): check that the endpoint still serves the model you chose."
        )
    if not canary["of"] and facts["judged"]:
        found.append("No canary came along, so nobody watched the judge: raise `canaries`.")
    asked = facts["rows"] - facts["not_asked"]
    if asked and facts["failed"] / asked > MOST_FAILURES:
        found.append(f"{facts['failed']:,} of {asked:,} rows got no verdict (more than {MOST_FAILURES:.0%}).")
    if facts["decisive"] < FEWEST_DECISIVE:
        found.append(
            f"Only {facts['decisive']:,} decisive verdicts (fewer than {FEWEST_DECISIVE}): the shares say little."
        )
    return [sentence for sentence in found if sentence]


def by_count(reasons: Iterable[str]) -> dict[str, int]:
    """The most frequent first, then by name: the same for any order of the rows."""
    return dict(sorted(Counter(reasons).items(), key=lambda item: (-item[1], item[0])))


def _total(column: pa.ChunkedArray, nothing: Any) -> Any:
    return pc.sum(column).as_py() or nothing  # pyright: ignore[reportAttributeAccessIssue]


def render(facts: Mapping[str, Any]) -> RenderableType:
    """The facts as a block for the terminal, warnings last. Texts that come from data are cleaned."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in facts["verdicts"].items())
    listed = {
        name: ", ".join(f"{count:,} {line(why)}" for why, count in facts[name].items())
        for name in ("failures", "suspects")
    }
    usd = f"${facts['usd']:,.4f}; {facts['tokens_in']:,} tokens in, {facts['tokens_out']:,} out"
    per_1000 = "-" if facts["usd_per_1000"] is None else f"${facts['usd_per_1000']:,.4f}"
    lines = [
        ("judged", f"{facts['judged']:,} of {facts['rows']:,} rows: {kinds}"),
        ("failed", f"{facts['failed']:,}" + (f": {listed['failures']}" if listed["failures"] else "")),
        (
            "suspects",
            f"{sum(facts['suspects'].values()):,}" + (f": {listed['suspects']}" if listed["suspects"] else ""),
        ),
        ("inconsistent", of_how_many(facts["inconsistent"])),
        ("flips when swapped", of_how_many(facts["flips"])),
        ("prefers the first shown", of_how_many(facts["shown_first"])),
        ("prefers the longer", of_how_many(facts["longer"])),
        ("canaries wrong", of_how_many(facts["canary_errors"])),
        ("cost", usd),
        ("cost per 1,000 judged", per_1000),
    ]
    grid = Table.grid(Column(style="dim"), Column(), padding=(0, 2, 0, 0))
    for name, value in lines:
        grid.add_row(name, Text(value))
    return Group(grid, *(Text(f"! {sentence}", style="yellow") for sentence in facts["warnings"]))
