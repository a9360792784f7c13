"""What a score is: a column over the pool, measured by a pass or derived from other columns by arithmetic.

A score is its settings: a config model whose `kind` names it and whose method makes the column. It knows nothing of
what is selected by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from engine.artifacts import Source
from engine.config_base import Strict
from engine.paid.passes import PaidPass
from engine.recipes.base import Context
from engine.schema import canonical_json


@dataclass(frozen=True)
class Score:
    """A measured column, as a view on a step that is parallel to the pool's parts.

    Attributes:
        source: has `row`, the columns read, and `error`: why a row has no score, null where it has one.
        reads: columns of `source` that `values` needs.
        values: the column of one part; null where there is no score, never nan.
        settings: what determines the values besides `source`.
    """

    source: Source
    reads: Sequence[str]
    values: Callable[[pa.Table], pa.Array | pa.ChunkedArray]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(source: Source, column: str) -> Score:
        """A column as it is."""
        return Score(source, (column,), lambda table: table[column], {"column": column})


class Measured(Strict):
    """Base of scores that need a pass over the pool."""

    kind: Any  # each narrows it to a Literal of its own name

    @property
    def carries(self) -> Sequence[str]:
        """Further columns of the pass that the table of scores gets; selectors may name them too."""
        return ()

    @property
    def is_list(self) -> bool:
        """Whether it gives a row a list, such as tags or a number per turn, in place of one number."""
        return False

    @property
    def pass_settings(self) -> str:
        """What determines the columns it carries: two scores may carry columns of a name only from the same pass."""
        return canonical_json(self.model_dump(mode="json", exclude={"value"}))

    @property
    def passes(self) -> Sequence[PaidPass]:
        """The passes over the pool that make paid calls, for the plan."""
        return ()

    @property
    def waits(self) -> bool:
        """Whether it is measured only on the rows that are left when the first selector that reads it comes."""
        return False

    def measure_left(self, context: Context, rows_I: np.ndarray) -> Score:
        """The score of some rows, for one that waits; null, and no error, for all others.

        Args:
            rows_I: (I,) int64 rows of the pool, ascending.
        """
        raise NotImplementedError

    def measure(self, context: Context) -> Score:
        """Runs the pass, unless it is complete.

        Raises:
            TooManyFailures: E600, more rows than `max_failed` have no score.
        """
        raise NotImplementedError


class Derived(Strict):
    """Base of scores that are arithmetic over scores named before them; null where one of these is."""

    kind: Any

    @property
    def reads(self) -> Sequence[str]:
        """Names of the scores it needs."""
        raise NotImplementedError

    @property
    def reads_lists(self) -> Sequence[str]:
        """Those of `reads` that may be lists."""
        return ()

    def derive(self, table: pa.Table) -> pa.Array:
        """(N,) float64 from a part of the table of scores."""
        raise NotImplementedError
