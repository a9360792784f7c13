"""LocalRuntime: both verbs in this process, one part and one member after another. Also the reference in tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any

from engine.artifacts import Part, Source, Step, StepRecord
from engine.events import Observer
from engine.runtime import Group, PartWorker, Resources, StageSpec, make_room, run_pass


class LocalGroup:
    """Members as plain objects, called in shard order."""

    def __init__(
        self, member: Callable[..., Any], shards: Sequence[Mapping[str, Any]], concurrency: int = 1, gpus: float = 0.0
    ) -> None:
        self.members = [member(**shard) for shard in shards]
        self.size, self.concurrency = len(self.members), concurrency
        self.gpus = gpus * self.size

    @property
    def is_open(self) -> bool:
        return bool(self.members)

    def call(self, method: str, *args: Any) -> list[Any]:
        return [getattr(member, method)(*args) for member in self.members]

    def dispatch(self, method: str, items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        if self.concurrency == 1:
            for position, item in enumerate(items):
                yield position, getattr(self.members[position % self.size], method)(*item)
            return
        threads = ThreadPoolExecutor(self.size * self.concurrency)
        futures = {
            threads.submit(getattr(self.members[position % self.size], method), *item): position
            for position, item in enumerate(items)
        }
        interrupted = True
        try:
            for done in as_completed(futures):
                yield futures[done], done.result()
            interrupted = False
        except Exception:
            interrupted = False  # those in work are finished
            raise
        finally:
            threads.shutdown(wait=not interrupted, cancel_futures=True)

    def close(self) -> None:
        for member in self.members:
            close = getattr(member, "close", None)
            if close is not None:
                close()
        self.members = []


class LocalRuntime:
    """Runs everything in process.

    Args:
        observer: hears about progress.
        shards: how many members share the pool; more than one only serves to test sharding.
    """

    def __init__(self, observer: Observer, shards: int = 1) -> None:
        self.observer = observer
        self.workers = 1
        self.shards = shards
        self.threads = _usable_cpus()
        self._with_gpus: list[Group] = []

    def map_parts(self, stage: StageSpec, source: Source, target: Step) -> StepRecord:
        def run(todo: list[int]) -> Iterator[Part]:
            if todo:
                group = self.group(PartWorker, [{"stage": stage}], stage.resources)
                try:
                    for _, part in group.dispatch("run", [(index, source, target) for index in todo]):
                        yield part
                finally:
                    group.close()

        return run_pass(self.observer, source, target, run)

    def group(self, member: Callable[..., Any], shards: Sequence[Mapping[str, Any]], resources: Resources) -> Group:
        threaded = [{key: self._threaded(value) for key, value in shard.items()} for shard in shards]
        if not resources.gpus:
            return LocalGroup(member, threaded, resources.concurrency)
        make_room(self._with_gpus, resources.gpus * len(shards), _gpus())
        group = LocalGroup(member, threaded, resources.concurrency, resources.gpus)
        self._with_gpus = [*(one for one in self._with_gpus if one.is_open), group]
        return group

    def facts(self) -> dict[str, Any]:
        """Nothing: there is no cluster."""
        return {}

    def close(self) -> None:
        """Nothing to release."""

    def _threaded(self, value: Any) -> Any:
        """A stage with all of this process's threads, since nothing runs beside it; other values as they are."""
        if not isinstance(value, StageSpec):
            return value
        return replace(value, resources=replace(value.resources, cpus=self.threads))


def _usable_cpus() -> int:
    """CPUs this process may run on, which in a container or under taskset are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus() -> float:
    import torch

    return float(torch.cuda.device_count())
