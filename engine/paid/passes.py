"""A paid pass: one stage that asks an endpoint about every row of a step, run on the limits and the ledger of the run.

A scorer or selector that makes paid calls names its passes (`passes`), so that the plan can count their calls and the
run makes the same ones. A new paid stage is a class with columns (engine/paid/prompt_stage.py), an identity, and a
function that makes a PaidPass of its config. It knows nothing of what is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from engine.artifacts import Source, Step
from engine.config_endpoint import EndpointConfig
from engine.paid.service import PaidBackend, endpoint_of
from engine.paid.stages import Calls, PaidStage
from engine.recipes.base import Context
from engine.store import Store


@dataclass(frozen=True, kw_only=True)
class PaidPass:
    """One stage and its settings.

    Attributes:
        step: name of its step.
        role: what the plan calls it.
        factory: the stage's class, made with (calls, member, retry, **settings).
        config: of the endpoint.
        asks: request fields common to all its calls.
        settings: further arguments of the stage.
        identity: what determines its bytes.
        reply_tokens: (fewest, likely) tokens of one reply, for the plan.
        most_rows: at most so many rows are asked about, a share of the pool or a number; None: all of it.
        asked: for the plan of a pass that does not ask about each row of the pool: from a sample of the pool, the
            pool's rows and the budget, rows like those that it asks about, and how many of them there will be.
    """

    step: str
    role: str
    factory: type[PaidStage]
    config: EndpointConfig
    asks: Mapping[str, Any]
    settings: Mapping[str, Any]
    identity: Mapping[str, Any]
    reply_tokens: tuple[float, float]
    most_rows: float | None = None
    asked: Callable[[pa.Table, int, int], tuple[pa.Table, int]] | None = None

    def run(self, context: Context, source: Source | None = None) -> Step:
        """Makes the calls that are not in the ledger; a complete step costs nothing.

        Args:
            source: rows to ask about; None: the pool.

        Returns:
            The step, parallel to the source's parts.

        Raises:
            TooManyFailures: E600, more rows than `max_failed` have an error.
            BudgetReached, ConfigError, EnvironmentProblem: as every paid call.
        """
        source = context.pool if source is None else source
        backend = PaidBackend(
            context.paid, self.role, self.factory, self.config, self.asks, self.settings, self.identity
        )
        target = context.paid_step(self.step, self.identity, [source.fingerprint])
        try:
            record = backend.run(source, target)
        finally:
            backend.close()
        context.check_failures(target.folder, record.failed, record.rows)
        return target

    def collector(self, ledger: Store) -> PaidStage:
        """The stage without a way to call: it answers from the ledger and notes what is missing."""
        calls = Calls(endpoint=endpoint_of(self.config), ledger=ledger, run="", limiter=None, asks=self.asks)
        make: Any = self.factory
        return make(calls, "plan", 0, **self.settings)
