"""Builds the generator and the judge that a config names, as something that turns one step of a round into the next.

A backend has `identity` (what determines its bytes), `run(source, target)` and `close()`. Most are resident groups of
a stage: loaded at the first round that needs them and kept until the last. A new backend is one class with the stage
contract and one line in `GENERATORS` or `JUDGES`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from engine.artifacts import Part, Source, Step, StepRecord, take_rows
from engine.config import Strict
from engine.models.generators import TransformersGenerator
from engine.models.judges import EmbeddingJudge
from engine.models.recorded import RecordedAnswers, RecordedVerdicts
from engine.recipes.base import Context
from engine.runtime import Group, PartWorker, StageSpec, map_on_group, run_pass
from engine.schema import ANSWER_COLUMNS, RESPONSE, ROW, VERDICT_COLUMNS
from engine.shards import PoolIndex


class Backend(Protocol):
    @property
    def identity(self) -> Mapping[str, Any]: ...

    def run(self, source: Source, target: Step) -> StepRecord: ...
    def close(self) -> None: ...


class Resident:
    """A stage on a group of workers that stay up from round to round. Nothing is loaded until it is needed."""

    def __init__(self, context: Context, stage: StageSpec, identity: Mapping[str, Any]) -> None:
        self.context, self.stage, self.identity = context, stage, identity
        self.group: Group | None = None

    def run(self, source: Source, target: Step) -> StepRecord:
        runtime = self.context.runtime
        if self.group is None and target.record() is None:
            self.group = runtime.group(PartWorker, [{"stage": self.stage}] * runtime.workers, self.stage.resources)
        if self.group is None:
            return run_pass(runtime.observer, source, target, lambda todo: iter(()))
        return map_on_group(runtime.observer, self.group, source, target)

    def close(self) -> None:
        if self.group is not None:
            self.group.close()


class Neighbor:
    """Offline stand-in for a model: the response of the most similar other row, which is what a model that has
    memorised the pool would say. Needs the pool's vectors, so it runs where the index is."""

    def __init__(self, context: Context, index: PoolIndex) -> None:
        self.context, self.index = context, index
        self.identity = {"kind": "neighbor"}

    def run(self, source: Source, target: Step) -> StepRecord:
        def answers(todo: list[int]) -> Iterator[Part]:
            for part in todo:
                started = time.perf_counter()
                rows = source.read(part, [ROW])[ROW]
                found, vectors = self.index.lookup(rows.to_numpy())
                nearest, back = np.unique(self.index.nearest(vectors, found.rows), return_inverse=True)
                responses = take_rows(self.context.pool, nearest, [RESPONSE])[RESPONSE].take(pa.array(back))
                nothing = pa.nulls(len(rows), pa.large_string())
                table = pa.table(
                    [rows, responses, nothing], schema=pa.schema([pa.field(ROW, pa.int64()), *ANSWER_COLUMNS])
                )
                yield target.commit(part, table, seconds=time.perf_counter() - started)

        return run_pass(self.context.runtime.observer, source, target, answers)

    def close(self) -> None:
        """The index belongs to the recipe."""


GENERATORS = {"transformers": TransformersGenerator, "recorded": RecordedAnswers}
JUDGES = {"embedding": EmbeddingJudge, "recorded": RecordedVerdicts}


def build_generator(context: Context, config: Strict, index: PoolIndex) -> Backend | None:
    """The generator, or None when the judge needs no answers."""
    settings = config.model_dump()
    kind = settings.pop("kind")
    if kind == "none":
        return None
    if kind == "neighbor":
        return Neighbor(context, index)
    return _resident(context, "answer", GENERATORS[kind], settings, ANSWER_COLUMNS, {"kind": kind, **settings})


def build_judge(context: Context, config: Strict) -> Backend:
    settings = config.model_dump()
    kind = settings.pop("kind")
    identity = {"kind": kind, **settings}
    if kind == "embedding":
        from engine.models.encoder import encoder_settings

        settings["encoder"] = encoder_settings(context.config.encoder.model_dump())
    return _resident(context, "judge", JUDGES[kind], settings, VERDICT_COLUMNS, identity)


def _resident(
    context: Context, name: str, factory: Any, settings: dict[str, Any], out: list[pa.Field], identity: dict[str, Any]
) -> Resident:
    stage = StageSpec(
        name=name,
        factory=factory,
        kwargs=settings,
        columns_in=factory.columns_in,
        columns_out=out,
        resources=context.resources(resident=True),
    )
    return Resident(context, stage, identity)
