"""Scores that somebody has made already, from a column of the source rows or from a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa

from engine.artifacts import Step
from engine.backends import pinned
from engine.config import RecorderConfig
from engine.models.recorded import Recording
from engine.recipes.base import Context
from engine.runtime import StageSpec
from engine.schema import ERROR
from engine.scoring.base import Measured, Score

VALUE = "value"


class RecordedNumbers(Recording):
    """Stage: a number per row. Numbers in text are taken; anything else is an error row, never a score.

    Args:
        column, file: as Recording.
        scale: (lowest, highest); a number outside is an error too.
    """

    columns_out = (pa.field(VALUE, pa.float64()), pa.field(ERROR, pa.large_string()))

    def __init__(
        self, column: str | None = None, file: str | None = None, scale: tuple[float, float] | None = None
    ) -> None:
        super().__init__(column, file)
        self.scale = scale

    def __call__(self, table: pa.Table) -> pa.Table:
        found = [_number(value, self.scale) for value in self.values(table)]
        return pa.table(
            [pa.array([n for n, _ in found], pa.float64()), pa.array([e for _, e in found], pa.large_string())],
            names=[VALUE, ERROR],
        )


def _number(value: Any, scale: tuple[float, float] | None) -> tuple[float | None, str | None]:
    """The number and None, or None and why there is none."""
    if value is None:
        return None, "no recorded score"
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        return None, f"not a number: {json.dumps(value, default=str)[:80]}"
    if scale is not None and not scale[0] <= number <= scale[1]:
        return None, f"out of scale: {number:g} is not from {scale[0]:g} to {scale[1]:g}"
    return number, None


def recorded_step(context: Context, name: str, factory: Any, settings: Mapping[str, Any], column: str) -> Step:
    """A pass that reads a recording.

    Args:
        name: of the step.
        factory: the stage, a Recording.
        settings: its arguments, `column` and `file` among them.
        column: of a file, when the settings name none.
    """
    if settings["file"] is not None and settings["column"] is None:
        settings = {**settings, "column": column}
    kwargs, identity = pinned("recorded", settings)
    target = context.step(name, identity, [context.pool.fingerprint])
    record = context.runtime.map_parts(StageSpec.of(name, factory, **kwargs), context.pool, target)
    context.check_failures(target.folder, record.failed, record.rows)
    return target


def recorded_numbers(context: Context, settings: Mapping[str, Any], column: str = VALUE) -> Score:
    """The score that a recording gives.

    Args:
        settings: arguments of RecordedNumbers.
        column: of a file, when the settings name none.
    """
    return Score.of(recorded_step(context, "recorded", RecordedNumbers, settings, column), VALUE)


class Recorded(RecorderConfig, Measured):
    """A score made elsewhere, joined by id or read from the row itself."""

    kind: Literal["recorded"] = "recorded"

    def measure(self, context: Context) -> Score:
        return recorded_numbers(context, self.model_dump(exclude={"kind"}))
