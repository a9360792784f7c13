"""A weighted sum of indicators, given or learned from subsets of the pool with a known outcome.

The file of subsets is JSON lines: `{"ids": [...], "loss": 1.23}`, or `{"subset": "a", "loss": 1.23}` with a column of
the source rows that names each row's subset. A subset's indicators are the means over its rows that have them. Whoever
has tuned a model on some subsets can so learn what the outcome depends on. It knows no method.
"""

# Shape letters: S subsets, K indicators, M rows of a part.

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import fsspec
import numpy as np
from pydantic import Field

from engine.algorithms.regression import least_squares
from engine.artifacts import Step
from engine.config_base import PathOrName, Strict
from engine.errors import DataError
from engine.recipes.base import Context
from engine.schema import ID, RECORD


class WeightsRule(Strict):
    kind: Literal["weights"] = "weights"
    weights: dict[str, float] = Field(min_length=1, description="Weight of each indicator, by name")
    intercept: float = Field(default=0.0, description="Added to the weighted sum")


class FitRule(Strict):
    kind: Literal["fit"] = "fit"
    file: PathOrName = Field(description="JSONL: per subset its `ids`, or `subset`, and the outcome")
    column: str | None = Field(default=None, description="Column of the source rows that names a row's subset")
    indicators: list[str] = Field(min_length=1, description="Names of the indicators that the outcome may depend on")


@dataclass(frozen=True)
class Subset:
    """One line of the file: where it is, its rows (ids, or a name), its outcome."""

    where: str
    ids: list[str] | None
    name: str | None
    outcome: float


def fitted(
    context: Context, rule: FitRule, scores: Step, outcome: str, transform: Callable[[float], float]
) -> tuple[WeightsRule, dict[str, Any]]:
    """Least squares of the transformed outcome on the subsets' mean indicators.

    Args:
        scores: step parallel to the pool's parts with the indicators as columns.
        outcome: key of the outcome in the file.
        transform: of the outcome, such as `math.log`.

    Returns:
        (the rule, facts: weights, intercept, r_squared, subsets).

    Raises:
        DataError: E431, the file cannot be read or a line is wrong; E432, a subset is not in the pool, or the subsets
            do not determine the weights.
    """
    subsets = list(read_subsets(rule, outcome))
    mean_SK = subset_means(context, rule, scores, subsets)
    try:
        y_S = np.array([transform(subset.outcome) for subset in subsets])
        fit = least_squares(mean_SK, y_S)
    except ValueError as error:
        raise DataError(f"no rule can be fitted: {error}", where=rule.file, fix="give more subsets that differ, or "
                        "fewer indicators", code="E432") from error  # fmt: skip
    weights = dict(zip(rule.indicators, fit.weights_K.tolist(), strict=True))
    learned = WeightsRule(weights=weights, intercept=fit.intercept)
    facts = {**learned.model_dump(exclude={"kind"}), "r_squared": fit.r_squared, "subsets": len(subsets)}
    return learned, facts


def read_subsets(rule: FitRule, outcome: str) -> Iterator[Subset]:
    """The lines of the file.

    Raises:
        DataError: E431.
    """
    where = rule.file
    try:
        with fsspec.open(rule.file, "rb") as stream:
            for number, line in enumerate(stream, 1):  # pyright: ignore[reportArgumentType]
                where = f"{rule.file}:{number}"
                if line.strip():
                    yield _subset(where, json.loads(line), rule, outcome)
    except DataError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read the subsets: {error}", where=where, code="E431") from error


def _subset(where: str, line: Any, rule: FitRule, outcome: str) -> Subset:
    found = line if isinstance(line, dict) else {}
    value, ids, name = found.get(outcome), found.get("ids"), found.get("subset")
    known = isinstance(ids, list) and ids and all(isinstance(key, str) for key in ids)
    if rule.column is not None:
        known = isinstance(name, (str, int))
    if not known or not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        rows = "`ids`, a list of row ids" if rule.column is None else f"`subset`, a value of column {rule.column}"
        raise DataError("not a subset", where=where, fix=f"a line has {rows}, and `{outcome}`, a number", code="E431")
    return Subset(where, ids, None if rule.column is None else str(name), float(value))


def subset_means(context: Context, rule: FitRule, scores: Step, subsets: Sequence[Subset]) -> np.ndarray:
    """(S, K) float64; sums are exact, so they are the same for any order of the rows.

    Raises:
        DataError: E432.
    """
    of_key: dict[str, list[int]] = {}
    for number, subset in enumerate(subsets):
        for key in dict.fromkeys(subset.ids or [str(subset.name)]):
            of_key.setdefault(key, []).append(number)
    values: list[list[list[float]]] = [[[] for _ in rule.indicators] for _ in subsets]
    unseen = set(of_key)
    for part in context.pool.require().parts:
        keys = row_keys(context, rule, part.index)
        table = scores.read(part.index, rule.indicators)
        columns = [table[name].to_pylist() for name in rule.indicators]
        for at, key in enumerate(keys):
            unseen.discard(key)
            for number in of_key.get(key, ()):
                for column, held in zip(columns, values[number], strict=True):
                    if column[at] is not None:
                        held.append(float(column[at]))
    if unseen:
        subset = subsets[of_key[min(unseen)][0]]
        raise DataError(f"{min(unseen)!r} is not in the pool", where=subset.where, why=f"{len(unseen):,} such keys",
                        fix="give the pool that the subsets were drawn from", code="E432")  # fmt: skip
    for subset, held in zip(subsets, values, strict=True):
        for name, column in zip(rule.indicators, held, strict=True):
            if not column:
                raise DataError(f"no row of the subset has the indicator {name}", where=subset.where, code="E432")
    return np.array([[math.fsum(column) / len(column) for column in held] for held in values])


def row_keys(context: Context, rule: FitRule, part: int) -> list[str]:
    """What a subset knows each row of a part by: its id, or the value of the column; "" where there is none."""
    if rule.column is None:
        return context.pool.read(part, [ID])[ID].to_pylist()
    records = [json.loads(text) for text in context.pool.read(part, [RECORD])[RECORD].to_pylist()]
    return [str(found.get(rule.column, "")) if isinstance(found, dict) else "" for found in records]
