"""What every stage of the bench gives back, and how two records of it compare. It knows no stage.

A figure is a ratio wherever there is something to compare with in the same run, since the speed of a shared machine
changes from minute to minute; rates beside it are for those who have the same machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from engine.errors import DataError


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        name: unique within a stage.
        better: which way is up; None for what is only told.
        target: that the figure should reach, in the direction of `better`.
    """

    name: str
    value: float
    unit: str
    better: Literal["higher", "lower"] | None = None
    target: float | None = None

    @property
    def reached(self) -> bool | None:
        """None without a target."""
        if self.target is None:
            return None
        return self.value >= self.target if self.better == "higher" else self.value <= self.target


@dataclass(frozen=True)
class Scope:
    """How large a measurement is; a stage takes what concerns it.

    Attributes:
        rows: of the largest pool; None: the stage's own size, which takes about a minute on two cores.
        sizes: pools of the end-to-end stage, ascending; empty: a tenth of `rows`, and `rows`.
        rounds: interleaved rounds of every comparison.
        workers: of the scaling stage.
        settings: key=value of the end-to-end run.
        folder: for scratch files.
    """

    folder: Path
    rows: int | None = None
    sizes: Sequence[int] = ()
    dim: int = 384
    clusters: int = 1000
    rounds: int = 3
    workers: Sequence[int] = (1, 2)
    settings: Sequence[str] = ()


@dataclass(frozen=True)
class Measured:
    """Figures of one stage, and whatever else is worth keeping.

    Attributes:
        lines: a table of its own, such as the steps of a run: rows of equal keys.
    """

    figures: Sequence[Figure]
    facts: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[Mapping[str, Any]] = ()

    def to_dict(self) -> dict[str, Any]:
        figures = [asdict(figure) | {"reached": figure.reached} for figure in self.figures]
        return {"figures": figures, "facts": dict(self.facts), "lines": [dict(line) for line in self.lines]}


def against_peer(name: str, pair: Mapping[str, Any], target: float | None = None) -> list[Figure]:
    """How many times faster than a peer, and how many times less CPU time it took: medians of `paired`.

    Without other work on the machine the two differ only where the sides use different numbers of cores.
    """
    return [
        Figure(f"faster than {name} by", round(pair["ratio"]["median"], 3), "x", "higher", target),
        Figure(f"less CPU time than {name} by", round(pair["cpu_ratio"]["median"], 3), "x", "higher"),
    ]


def exponent(sizes: Sequence[int], cost: Sequence[float]) -> float:
    """Slope of log(cost per row) over log(rows), by least squares: 0 when a row costs the same in any pool."""
    import numpy as np

    rows = np.array(sizes, float)
    return float(np.polyfit(np.log(rows), np.log(np.array(cost, float) / rows), 1)[0])


def read_baseline(path: Path) -> dict[str, Any]:
    """The stages of a stored record.

    Raises:
        DataError: E456, it is not a record of the bench.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))["result"]["stages"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no record of the bench", why=str(error), fix="give what `bench --out` wrote", code="E456"
        ) from error


def compared(stages: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every figure with a direction that both records have.

    Returns:
        stage, name, value, before, and `ratio`: how many times better it is now, below 1 for worse.
    """
    lines = []
    for stage, found in stages.items():
        before = {one["name"]: one["value"] for one in baseline.get(stage, {}).get("figures", [])}
        for one in found["figures"]:
            if one["better"] is None or not before.get(one["name"]) or not one["value"]:
                continue
            ratio = one["value"] / before[one["name"]]
            ratio = ratio if one["better"] == "higher" else 1 / ratio
            lines.append({"stage": stage, **{key: one[key] for key in ("name", "unit", "value")},
                          "before": before[one["name"]], "ratio": ratio})  # fmt: skip
    return lines
