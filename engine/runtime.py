"""The two verbs that a recipe may say to whatever executes it, and the contract of a stage.

`map_parts` runs one stage over every part of a step; `group` makes long-lived members that keep state. LocalRuntime
(engine/local.py) and RayRuntime (actors/runtime.py) implement both, and give the same bytes. Nothing here knows what
a stage computes or where it runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from engine.artifacts import Part, Source, Step, StepRecord
from engine.errors import StepError
from engine.events import Observer
from engine.schema import ERROR, ROW
from engine.work import counted


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one worker or member uses while it works.

    Attributes:
        cpus: threads it may use; its libraries are told so.
        gpus: devices, or a share of one.
        resident: lives through several phases and waits in most of them, so it reserves next to nothing and never
            starves a pass over the pool.
        apart: has a process of its own, since others call it, or it works on several items at a time.
        concurrency: items a member works on at a time, in threads; more than one needs `apart`.
    """

    cpus: int = 1
    gpus: float = 0.0
    resident: bool = False
    apart: bool = False
    concurrency: int = 1


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """A stage: a class whose instances turn a table into a table with the same rows in the same order.

    Attributes:
        name: what progress and errors call it.
        factory: the class; heavy imports belong in its `__init__`.
        kwargs: picklable arguments of `factory`.
        columns_in: columns it reads.
        columns_out: fields it returns, a null type meaning whatever type comes; a field named `error` (string,
            null when fine) marks failed rows.
        resources: of one worker.
    """

    name: str
    factory: Callable[..., Callable[[pa.Table], pa.Table]]
    columns_in: Sequence[str]
    columns_out: Sequence[pa.Field]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    resources: Resources = Resources()

    @staticmethod
    def of(name: str, factory: Any, resources: Resources = resources, /, **kwargs: Any) -> StageSpec:
        """Of a class that names its columns itself, as `columns_in` and `columns_out`."""
        return StageSpec(
            name=name,
            factory=factory,
            columns_in=factory.columns_in,
            columns_out=factory.columns_out,
            kwargs=kwargs,
            resources=resources,
        )


class Group(Protocol):
    """Members with state, one per shard. Members rebuild their state from storage when they are restarted.

    One whose members hold GPUs may be closed by the runtime, between two uses, when the next phase wants them.
    """

    size: int
    gpus: float  # that all members hold together

    @property
    def is_open(self) -> bool: ...

    def call(self, method: str, *args: Any) -> list[Any]:
        """Calls one method on every member with the same arguments; results in shard order."""
        ...

    def dispatch(self, method: str, items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Hands independent items to whichever member is free; yields (item's position, result) as they finish.

        When an item fails no more are handed out, those in work are finished, and then the first error is raised.
        """
        ...

    def close(self) -> None:
        """Closes the members that have a `close`, and lets them go."""
        ...


class Runtime(Protocol):
    """Executes stages and groups. `observer` hears about progress; `shards` is how many members share the pool."""

    observer: Observer
    workers: int
    shards: int
    threads: int

    def map_parts(self, stage: StageSpec, source: Source, target: Step) -> StepRecord:
        """Runs `stage` over every part of `source` that `target` has not committed, then writes the record."""
        ...

    def group(self, member: Callable[..., Any], shards: Sequence[Mapping[str, Any]], resources: Resources) -> Group: ...

    def facts(self) -> dict[str, Any]:
        """What is known of the execution beside the steps, for run.json."""
        ...

    def close(self) -> None: ...


class PartWorker:
    """One worker of a stage: reads a part, runs the stage, checks the contract, commits. The same on every runtime."""

    def __init__(self, stage: StageSpec) -> None:
        from engine.models.threads import set_threads

        set_threads(stage.resources.cpus)
        self.stage = stage
        self.call = stage.factory(**stage.kwargs)

    def run(self, index: int, source: Source, target: Step) -> Part:
        """Computes and commits one part.

        Raises:
            StepError: the stage changed the number of rows, left out a column or returned a wrong type.
        """
        started = time.perf_counter()
        table = source.read(index, [ROW, *[name for name in self.stage.columns_in if name != ROW]])
        with counted() as work:
            result = self.compute(table.select(list(self.stage.columns_in)), target)
        checked = self._check(result, table.num_rows, f"{target.folder} part {index}")
        failed = len(table) - checked[ERROR].null_count if ERROR in checked.column_names else 0
        output = checked.add_column(0, pa.field(ROW, pa.int64(), nullable=False), table[ROW])
        seconds = time.perf_counter() - started
        return target.commit(index, output, seconds=seconds, failed=failed, tokens=work.tokens)

    def compute(self, table: pa.Table, target: Step) -> pa.Table:
        """The stage's result; for members that need to know what they work for."""
        return self.call(table)

    def close(self) -> None:
        """Closes a stage that can be closed."""
        close = getattr(self.call, "close", None)
        if close is not None:
            close()

    def _check(self, result: pa.Table, rows: int, where: str) -> pa.Table:
        stage = self.stage
        if result.num_rows != rows:
            raise StepError(f"stage {stage.name} returned {result.num_rows} rows for {rows}", where=where)
        missing = [f.name for f in stage.columns_out if f.name not in result.column_names]
        if missing:
            raise StepError(f"stage {stage.name} did not return {missing}", where=where)
        fields = [result.schema.field(f.name) if pa.types.is_null(f.type) else f for f in stage.columns_out]
        return result.select([f.name for f in stage.columns_out]).cast(pa.schema(fields))


def make_room(groups: Sequence[Group], gpus: float, total: float) -> None:
    """Closes groups until `gpus` of `total` are free, the oldest first: nobody works with them between two phases."""
    for group in groups:
        if gpus and gpus + sum(other.gpus for other in groups if other.is_open) > total and group.gpus:
            group.close()


def pending_parts(source: Source, target: Step) -> list[int]:
    """Parts of `source` that `target` has not committed."""
    done = target.committed()
    return [part.index for part in source.require().parts if part.index not in done]


def run_pass(
    observer: Observer,
    source: Source,
    target: Step,
    run: Callable[[list[int]], Iterator[Part]],
) -> StepRecord:
    """The frame of every pass over parts: reuse, progress, record.

    Args:
        run: computes and commits the parts it is given and yields each as it is committed.
    """
    started = time.monotonic()
    total = source.require().rows
    record = target.record()
    if record is not None:
        observer.step_done(target.name, record.rows, 0.0, record.failed, reused=True)
        return record
    todo = pending_parts(source, target)
    observer.step_started(target.name, total)
    observer.advance(target.name, total - sum(source.part(index).rows for index in todo))
    for part in run(todo):
        observer.used(target.name, part.used())
        observer.advance(target.name, part.rows)
    record = target.finish(started=started, rows=total)
    observer.step_done(target.name, record.rows, record.seconds, record.failed, reused=False)
    return record


def map_on_group(observer: Observer, group: Group, source: Source, target: Step) -> StepRecord:
    """A pass over parts by a resident group of PartWorkers, whose models stay loaded from one pass to the next."""

    def run(todo: list[int]) -> Iterator[Part]:
        for _, part in group.dispatch("run", [(index, source, target) for index in todo]):
            yield part

    return run_pass(observer, source, target, run)
