"""A selection method as a composition: named scores, then a chain of selectors, run over any pool.

Named recipes are such compositions wherever they can be, and `compose` takes one from the config. The mathematics is
in engine/scoring and engine/selecting; this file only checks that the pieces fit and runs them in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.artifacts import Step, rows_digest
from engine.errors import DataError
from engine.expansion import expanded, twice_as_many
from engine.paid.passes import PaidPass
from engine.recipes.base import Context, Selection
from engine.schema import ERROR, FILE, ID, LINE, ROW, SOURCE, TURNS, canonical_json
from engine.scoring.base import Derived, Measured, Score
from engine.scoring.table import score_table
from engine.selecting.base import ByScore, Narrowing, Selector, Sized, run_chain

# Columns of `scores/` that every row has, whatever is measured.
RESERVED = frozenset(
    {ROW, ID, FILE, LINE, SOURCE, TURNS, ERROR, "prompt_chars", "response_chars", "rank", "selected", "reason"}
)


@dataclass(frozen=True)
class Composition:
    """What is measured, and what is left of the pool after each selector.

    Attributes:
        scores: by name; a derived score follows those it reads.
        select: at least one; the last leaves the budget, so it is one that leaves a number of rows.
        facts: for the summary.
        rewriting: a pass that makes a new row of each row of the pool first; scores and selectors see both.

    Raises:
        ValueError: a name is not a score, a number of rows is missing or without meaning, or a score waits for a
            selector that reads it and there is none.
    """

    scores: Mapping[str, Measured | Derived]
    select: Sequence[Selector]
    facts: Mapping[str, Any] = field(default_factory=dict)
    rewriting: PaidPass | None = None

    def __post_init__(self) -> None:
        known: list[str] = []
        lists: list[str] = []
        carried: dict[str, str] = {}  # column -> the pass that it comes from
        for name, score in self.scores.items():
            if isinstance(score, Derived):
                check_names(f"scores.{name}", score.reads, known)
                check_numbers(f"scores.{name}", score, lists)
            elif score.is_list:
                lists.append(name)
            if name in RESERVED:
                raise ValueError(f"scores.{name}: every row has a column of this name already; choose another")
            known.append(name)
            for column in score.carries if isinstance(score, Measured) else ():
                known.append(column)
                if carried.setdefault(column, score.pass_settings) != score.pass_settings:  # pyright: ignore
                    raise ValueError(f"scores.{name} brings a column {column!r}, and so does another pass before it")
        if not self.select:
            raise ValueError("`select` needs at least one selector")
        for number, selector in enumerate(self.select):
            check_names(f"select.{number} ({selector.kind})", selector.reads, known)
            check_numbers(f"select.{number} ({selector.kind})", selector, lists)
            last = number == len(self.select) - 1
            if last and not isinstance(selector, Sized):
                raise ValueError(f"the last selector leaves the budget; {selector.kind} leaves what meets a condition")
            if isinstance(selector, Sized) and last != (selector.rows is None):
                why = (
                    "leaves the budget, so it takes no `rows`"
                    if last
                    else "needs `rows`: a share of the pool or a number"
                )
                raise ValueError(f"select.{number} ({selector.kind}) {why}")
        if unread := set(self.scores) - {name for stretch in self.stretches() for name in stretch.scores}:
            raise ValueError(f"scores {sorted(unread)} wait for a selector that reads them, and there is none")

    def stretches(self) -> list[Stretch]:
        """The chain, cut before every selector that reads a score which has waited for it."""
        waiting: list[str] = []
        for name, score in self.scores.items():
            late = score.waits if isinstance(score, Measured) else any(read in waiting for read in score.reads)
            waiting += [name] if late else []
        found = [Stretch([name for name in self.scores if name not in waiting], [])]
        for selector in self.select:
            wanted = self._behind(selector.reads)
            if new := [name for name in waiting if name in wanted]:
                found.append(Stretch([*found[-1].scores, *new], []))
                waiting = [name for name in waiting if name not in new]
            found[-1].select.append(selector)
        return found

    def _behind(self, names: Sequence[str]) -> set[str]:
        """These scores and all that they are made of."""
        found = set(names)
        for name, score in reversed(list(self.scores.items())):
            if name in found and isinstance(score, Derived):
                found |= set(score.reads)
        return found

    @property
    def passes(self) -> list[PaidPass]:
        """Its paid passes, each once; one that waits asks at most about the rows that selectors before it leave."""
        found: dict[str, PaidPass] = {}
        most, measured = None, set[str]()
        for stretch in self.stretches():
            scores = [(name, self.scores[name]) for name in stretch.scores if name not in measured]
            for part in (*(score for _, score in scores if isinstance(score, Measured)), *stretch.select):
                for one in part.passes:
                    found.setdefault(canonical_json([one.step, one.identity]), replace(one, most_rows=most))
            measured |= set(stretch.scores)
            sizes = [selector.rows for selector in stretch.select if isinstance(selector, Sized) and selector.rows]
            most = min([size for size in sizes if size > 1] or sizes) if sizes else most
        after = list(found.values())
        return after if self.rewriting is None else [self.rewriting, *map(twice_as_many, after)]


@dataclass(frozen=True)
class Stretch:
    """Selectors that follow one another without a pass between them.

    Attributes:
        scores: names of those that the table has by then.
        select: the selectors.
    """

    scores: list[str]
    select: list[Selector]


def check_names(where: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Every name is a score that comes before.

    Raises:
        ValueError: it is not.
    """
    for name in names:
        if name not in known:
            raise ValueError(
                f"{where} reads {name!r}, which is no score before it; there are: {', '.join(known) or 'none'}"
            )


def check_numbers(where: str, reader: Derived | Selector, lists: Sequence[str]) -> None:
    """What reads a score as a number does not get a list.

    Raises:
        ValueError: it does.
    """
    wrong = [name for name in reader.reads if name in lists and name not in reader.reads_lists]
    if wrong:
        raise ValueError(f"{where} needs numbers, and {wrong[0]!r} gives a list for each row")


def composed(composition: Callable[[Any], Composition]) -> Callable[[Context], Selection]:
    """The `select` of a recipe whose settings make a composition."""

    def select(context: Context) -> Selection:
        return run_composition(context, composition(context.config.recipe))

    return select


def run_composition(context: Context, composition: Composition) -> Selection:
    """Measures the scores, runs the selectors, keeps what is left.

    Raises:
        DataError: E470, no row of the pool can be chosen.
    """
    if composition.rewriting is not None:
        context = expanded(context, composition.rewriting)
    measured: dict[str, Score] = {}
    narrowing: Narrowing | None = None
    stretches = composition.stretches()
    for stretch in stretches:
        wanted = {name: score for name, score in composition.scores.items() if name in stretch.scores}
        if narrowing is None:
            scores = score_table(context, wanted)
            narrowing = Narrowing.start(context, scores)
        else:
            for name, score in wanted.items():
                if isinstance(score, Measured) and name not in measured:
                    left = narrowing.rows()
                    measured[name] = score.measure_left(context, left) if score.waits else score.measure(context)
            scores = score_table(context, wanted, measured)
            narrowing = narrowing.with_scores(scores)
        if stretch.select:
            num = context.budget if stretch is stretches[-1] else context.pool_rows
            narrowing, last = run_chain(narrowing, stretch.select, num)
            if not narrowing.num_left:
                raise no_row_left(narrowing, last, scores)
    assert narrowing is not None
    order_I = narrowing.order_I
    assert order_I is not None
    if len(order_I) < context.budget:
        found, wanted = len(order_I), context.budget
        context.runtime.observer.note(f"{found:,} rows can be chosen, fewer than the budget of {wanted:,}")
    selected = context.select_rows("selected", order_I, narrowing.chosen, {"rows": rows_digest(order_I)})
    last = composition.select[-1]
    score = last.by if isinstance(last, ByScore) else None
    facts, pool = composition.facts, None
    if composition.rewriting is not None:
        pool = context.pool
        facts = {**facts, "card": {"rows written by the rewriter": pool.require().extra["added"]}}
    return Selection(selected, narrowing.scores, "not selected", narrowing.out_table(), facts, score, pool)


def no_row_left(narrowing: Narrowing, selector: Selector, scores: Step) -> DataError:
    """The error of a chain that leaves nothing."""
    reasons = narrowing.out_table()["reason"].value_counts().to_pylist()
    common = max(reasons, key=lambda entry: entry["counts"])["values"]
    return DataError(
        "no row of the pool can be chosen",
        where=scores.folder,
        why=f"selector {selector.kind} left none; most often: {common}",
        code="E470",
    )
