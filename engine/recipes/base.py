"""What every recipe gets and what it gives back. It knows nothing of any method."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from engine.algorithms.kmeans import KMeansResult
from engine.algorithms.kmeans_methods import Method, fit, method_for
from engine.artifacts import Step, take_rows, write_table
from engine.config import RunConfig
from engine.errors import TooManyFailures
from engine.paid.service import PaidRun
from engine.runtime import Resources, Runtime, StageSpec
from engine.schema import ERROR, ID, PROMPT, ROW, VECTOR
from engine.shards import PoolIndex
from engine.store import Store


@dataclass(frozen=True)
class Selection:
    """What a recipe chose, and why.

    Attributes:
        selected: step with `row, id, rank, reason`, in rank order from 0.
        scores: step parallel to the pool's parts with `row` and the method's columns for every row, or None.
        reasons: (row, reason) of rows that were left out for a reason of their own.
        default_reason: why every other row was left out.
        facts: JSON-able figures for the summary, such as `rounds` and `clusters`.
        score: column of `scores` that the selection ranks by, if there is one.
        pool: what the rows are numbered in, where the recipe added rows to the run's pool; None: the run's pool.
    """

    selected: Step
    scores: Step | None
    default_reason: str
    reasons: pa.Table | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    score: str | None = None
    pool: Step | None = None


@dataclass(frozen=True)
class Context:
    """A recipe's view of the run: settings, the frozen pool, and the runtime's two verbs."""

    config: RunConfig
    store: Store
    pool: Step
    runtime: Runtime
    budget: int  # rows to select
    paid: PaidRun  # limits and ledger of calls that cost money
    outputs: Store  # what the user takes away; the run folder itself, unless several methods share it
    made: dict[str, Step] = field(default_factory=dict)  # the steps of this run by name, for run.json

    @property
    def pool_rows(self) -> int:
        return self.pool.require().rows

    def step(self, name: str, settings: Mapping[str, Any], inputs: list[str], version: int = 1) -> Step:
        self.made[name] = Step(self.store, name, settings, inputs, version)
        return self.made[name]

    def paid_step(self, name: str, identity: Mapping[str, Any], inputs: list[str]) -> Step:
        """The step of something that may be asked anew; a number of its own after each `--retry-failed`."""
        retry = self.paid.retries(name)
        return self.step(name, {**identity, **({"retry": retry} if retry else {})}, inputs)

    def reused(self, step: Step) -> bool:
        """Whether a step is complete already; if so the observer hears of it."""
        record = step.record()
        if record is not None:
            self.runtime.observer.step_done(step.name, record.rows, 0.0, record.failed, reused=True)
        return record is not None

    def encoder(self) -> dict[str, Any]:
        """Arguments of the encoder, pinned. A GPU rounds differently, so the device is part of what is hashed."""
        from engine.models.encoder import encoder_settings

        device = "cuda" if self.config.runtime.gpus else "cpu"
        return encoder_settings({**self.config.encoder.model_dump(), "device": device})

    def vectors(self) -> Step:
        """One unit vector per row of the pool, from the prompt: the step `embed`."""
        return self.embedded("embed", self.pool, PROMPT)

    def embedded(self, name: str, source: Step, column: str, encoder: Mapping[str, Any] | None = None) -> Step:
        """A step with one unit vector per row of another, from a column of text.

        Args:
            encoder: its arguments, pinned; those of the config when None.
        """
        from engine.models.encoder import EmbedStage

        arguments = {"encoder": self.encoder() if encoder is None else encoder, "column": column}
        target = self.step(name, arguments, [source.fingerprint])
        stage = StageSpec(
            name=name,
            factory=EmbedStage,
            kwargs=arguments,
            columns_in=[column],
            columns_out=[pa.field(VECTOR, pa.null())],
            resources=self.resources(),
        )
        self.runtime.map_parts(stage, source, target)
        return target

    def index(self, vectors: Step) -> PoolIndex:
        return PoolIndex(self.runtime, self.pool, vectors)

    def kmeans_method(self, clusters: int) -> Method:
        """How rows are put into so many clusters; part of what determines the bytes."""
        return method_for(self.config.kmeans.method, clusters)

    def kmeans(self, index: PoolIndex, clusters: int, iterations: int, method: Method) -> KMeansResult:
        """K-Means over the candidates of the index, by the method that is in the settings of the step."""
        return fit(index, clusters, method, seed=self.config.seed, iterations=iterations)

    def resources(self, resident: bool = False) -> Resources:
        """Of one worker that runs a model."""
        return Resources(cpus=self.config.runtime.threads, gpus=self.config.runtime.gpus, resident=resident)

    def check_failures(self, what: str, failed: int, rows: int) -> None:
        """Stops the run when too large a share of rows failed.

        Raises:
            TooManyFailures: with the share, the limit and where the reasons are.
        """
        if rows and failed / rows > self.config.max_failed:
            errors = Step.at(self.store, what).read_all([ERROR])[ERROR].drop_null().to_pylist()
            reasons = "; ".join(f"{count} x {reason[:200]}" for reason, count in Counter(errors).most_common(3))
            raise TooManyFailures(
                f"{failed} of {rows} rows failed ({failed / rows:.1%}); the limit is {self.config.max_failed:.1%}",
                where=what,
                why=reasons,
                fix=f"read the `error` column in {self.store.path(what)}; raise max_failed, or run again with "
                "--retry-failed when calls failed",
            )

    def select_rows(self, name: str, rows_I: np.ndarray, reason: str, settings: Mapping[str, Any]) -> Step:
        """The `selected` step of a recipe that gives one reason for all its rows, best first."""
        target = self.step(name, {**settings, "budget": self.budget}, [self.pool.fingerprint])
        if target.record() is None:
            ids = take_rows(self.pool, rows_I, [ID])
            ranks = pa.array(np.arange(len(rows_I)))
            table = pa.table(
                [ids[ROW], ids[ID], ranks, pa.array([reason] * len(rows_I))], ["row", "id", "rank", "reason"]
            )
            write_table(target, table, sys.maxsize)
        return target
