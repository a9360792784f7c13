"""What a selector is: it narrows what the selectors before it left, by the table of scores.

A selector is its settings: a config model whose `kind` names it and whose method narrows. What is left is one number
per row of the pool (0, or why the row is out), so a chain over 100 million rows costs this process 400 MB and no text.
It knows nothing of where scores come from.
"""

# Shape letters: N rows of the pool, M rows of a part, I rows chosen.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine.algorithms.ranking import top_rows
from engine.artifacts import Step, take_rows
from engine.config import budget_rows
from engine.config_base import Strict
from engine.paid.passes import PaidPass
from engine.recipes.base import Context
from engine.schema import ERROR, ID, ROW, id_words

# (M,) finite float64 from the rows left of a part and their (M,) uint64 id words; larger is better.
Value = Callable[[pa.Table, np.ndarray], np.ndarray]
IN = 0  # code of a row that is left; others are 1 + the place of its reason


@dataclass(frozen=True)
class Narrowing:
    """What a chain of selectors has left of the pool.

    Attributes:
        context: of the run.
        scores: step parallel to the pool's parts, from `engine.scoring.table.score_table`.
        codes_N: (N,) int32, IN, or 1 + the place in `reasons` of why the row is out.
        reasons: texts.
        order_I: the rows left, best first, when the last selector gave them an order; else None.
        chosen: why the rows left were taken, as the last selector says it.
    """

    context: Context
    scores: Step
    codes_N: np.ndarray
    reasons: tuple[str, ...] = ()
    order_I: np.ndarray | None = None
    chosen: str = "selected"

    @staticmethod
    def start(context: Context, scores: Step) -> Narrowing:
        """The whole pool."""
        codes_N = np.zeros(context.pool_rows, dtype=np.int32)
        return Narrowing(context, scores, codes_N)

    def with_scores(self, scores: Step) -> Narrowing:
        """The same rows, with a table that has more scores."""
        return replace(self, scores=scores)

    @property
    def num_left(self) -> int:
        return int(np.count_nonzero(self.codes_N == IN))

    def rows(self) -> np.ndarray:
        """(I,) int64, the rows left, ascending."""
        return np.flatnonzero(self.codes_N == IN)

    def parts(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows left with columns of the table of scores, part by part; `row` is always among them."""
        wanted = [ROW, *[name for name in columns if name != ROW]]
        for part in self.scores.require().parts:
            table = self.scores.read(part.index, wanted)
            left_M = self.codes_N[table[ROW].to_numpy()] == IN
            if left_M.any():
                yield table.filter(pa.array(left_M))

    def words(self, rows_I: np.ndarray) -> np.ndarray:
        """(I,) uint64 id words of rows of the pool."""
        return id_words(take_rows(self.context.pool, rows_I, [ID])[ID])

    def without(self, rows_I: np.ndarray, reason: str) -> Narrowing:
        """These rows leave for one reason. Rows that are out already keep theirs."""
        return self.sorted_out(rows_I, np.zeros(len(rows_I), np.int32), [reason])

    def sorted_out(self, rows_I: np.ndarray, which_I: np.ndarray, reasons: Sequence[str]) -> Narrowing:
        """Rows leave for one reason each: `reasons[which_I]`."""
        codes_N = self.codes_N.copy()
        left_I = codes_N[rows_I] == IN
        codes_N[rows_I[left_I]] = 1 + len(self.reasons) + which_I[left_I]
        order_I = None if self.order_I is None else self.order_I[codes_N[self.order_I] == IN]
        return replace(self, codes_N=codes_N, reasons=(*self.reasons, *reasons), order_I=order_I)

    def scored(self, names: Sequence[str]) -> Narrowing:
        """Without the rows that lack one of these scores, each with the reason it has none."""
        if not names:
            return self
        rows, which, texts = [], [], dict[str, int]()
        for table in self.parts([*names, ERROR]):
            null_SM = np.stack([table[name].is_null().to_numpy() for name in names])
            at_L = np.flatnonzero(null_SM.any(axis=0))
            lacking = table.take(pa.array(at_L))
            for error, place in zip(lacking[ERROR].to_pylist(), null_SM[:, at_L].argmax(axis=0), strict=True):
                text = f"not scored: {error if error is not None else f'no {names[place]}'}"
                which.append(texts.setdefault(text, len(texts)))
            rows.append(lacking[ROW].to_numpy())
        if not rows:
            return self
        return self.sorted_out(np.concatenate(rows), np.array(which, dtype=np.int32), list(texts))

    def kept(self, order_I: np.ndarray, reason: str, chosen: str) -> Narrowing:
        """Only these rows are left, in this order; the others leave for one reason."""
        out_N = self.codes_N == IN
        out_N[order_I] = False
        narrowed = self.without(np.flatnonzero(out_N), reason)
        return replace(narrowed, order_I=order_I, chosen=chosen)

    def best(self, num: int, value: Value, columns: Sequence[str]) -> np.ndarray:
        """(min(num, left),) int64: the rows left of largest value, best first, equal values by id.

        Args:
            num: rows wanted; no more than these are in memory, with one part.
            value: of the rows left of a part.
            columns: what `value` reads.
        """
        rows_I, words_I, value_I = np.empty(0, np.int64), np.empty(0, np.uint64), np.empty(0)
        for table in self.parts(columns):
            words_M = self.words(table[ROW].to_numpy())
            rows_I = np.concatenate([rows_I, table[ROW].to_numpy()])
            words_I = np.concatenate([words_I, words_M])
            value_I = np.concatenate([value_I, value(table, words_M)])
            kept = top_rows(value_I, words_I, num)
            rows_I, words_I, value_I = rows_I[kept], words_I[kept], value_I[kept]
        return rows_I

    def out_table(self) -> pa.Table:
        """(row, reason) of every row that is out, ascending; reasons are dictionary-encoded."""
        rows = np.flatnonzero(self.codes_N != IN)
        reasons = pa.DictionaryArray.from_arrays(pa.array(self.codes_N[rows] - 1), pa.array(self.reasons, pa.string()))
        return pa.table([pa.array(rows), reasons], names=[ROW, "reason"])


class Selector(Strict):
    """Base of every selector."""

    kind: Any  # each narrows it to a Literal of its own name

    @property
    def reads(self) -> Sequence[str]:
        """Names of the scores it needs."""
        return ()

    @property
    def reads_lists(self) -> Sequence[str]:
        """Those of `reads` that may be lists."""
        return ()

    @property
    def passes(self) -> Sequence[PaidPass]:
        """The passes that make paid calls, for the plan, which takes them to ask about every row of the pool."""
        return ()

    def narrow(self, narrowing: Narrowing, num: int) -> Narrowing:
        """Leaves what it selects.

        Args:
            narrowing: what the selectors before it left.
            num: rows to leave; fewer are left when fewer can be chosen. A condition ignores it.
        """
        raise NotImplementedError


class Sized(Selector):
    """Base of selectors that leave a number of rows."""

    rows: float | None = Field(
        default=None,
        gt=0.0,
        description="Rows to leave: a share of the pool (up to 1) or a number; the last selector leaves the budget",
    )


class ByScore(Sized):
    """Base of selectors that order rows by a score."""

    by: str = Field(description="Name of the score")
    order: Literal["highest", "lowest"] = Field(default="highest", description="Which values come first")

    @property
    def reads(self) -> Sequence[str]:
        return (self.by,)

    def value(self, table: pa.Table, words_M: np.ndarray) -> np.ndarray:
        """As `Value`."""
        sign = 1.0 if self.order == "highest" else -1.0
        return sign * table[self.by].to_numpy().astype(np.float64)


def run_chain(narrowing: Narrowing, selectors: Sequence[Selector], num: int) -> tuple[Narrowing, Selector]:
    """Selectors one after another, until none is left or a selector leaves nothing.

    Args:
        selectors: at least one.
        num: rows that the last one leaves, unless it says so itself.

    Returns:
        (what is left, the selector that narrowed last).

    Raises:
        ConfigError: E221, more rows are wanted than the pool has.
    """
    for number, selector in enumerate(selectors):
        last = number == len(selectors) - 1
        wanted = num if last else narrowing.context.pool_rows
        if isinstance(selector, Sized) and selector.rows is not None:
            wanted = budget_rows(selector.rows, narrowing.context.pool_rows)
        narrowing = selector.narrow(narrowing, wanted)
        if not narrowing.num_left:
            break
    return narrowing, selector  # pyright: ignore[reportPossiblyUnboundVariable]
