"""How far a run folder has come with given settings, found without computing or writing anything.

The recipe is walked over the committed steps, on a runtime that does nothing and a store that creates nothing, until
a step is not there. So early stops, changed settings and retried rows count as they would in the run itself. It knows
nothing of prices or ledgers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from engine.artifacts import Source, Step, StepRecord
from engine.config import RunConfig, budget_rows
from engine.data.inputs import resolve_inputs
from engine.errors import TooManyFailures
from engine.events import Observer
from engine.paid.service import PaidRun
from engine.pool import run_pool
from engine.recipes import load_recipe
from engine.recipes.base import Context
from engine.runtime import Resources, StageSpec
from engine.schema import ANSWER, ID, POOL_SCHEMA
from engine.store import Store


@dataclass(frozen=True)
class Standing:
    """What a run would find in its folder.

    Attributes:
        pool: the frozen pool, None while it is not complete.
        rounds: that are complete.
        over: no further round will come.
        asked: ids of the rows of all rounds, of the one in work too.
        batch: rows of the round in work: POOL_SCHEMA and `answer` (null: not known yet); None between rounds.
    """

    pool: Step | None = None
    rounds: int = 0
    over: bool = False
    asked: frozenset[str] = frozenset()
    batch: pa.Table | None = None


class NotThere(Exception):
    """The walk came to something that would have to be made."""


class CommittedStore(Store):
    """A run folder that is only read.

    Attributes:
        steps: folder of every complete step that was looked at, by name.
    """

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.steps: dict[str, str] = {}

    def read_bytes(self, relative: str) -> bytes:
        data = super().read_bytes(relative)
        folder, _, file = relative.rpartition("/")
        if file == "step.json":
            self.steps[folder.rpartition("-")[0]] = folder
        return data

    def create(self, relative: str, data: bytes) -> bool:
        raise NotThere(relative)

    def write_bytes(self, relative: str, data: bytes) -> None:
        """By-products of a finished round, such as its metrics: they are there already, or nobody misses them."""

    def write_file(self, relative: str, path: str) -> None:
        raise NotThere(relative)


class NoGroup:
    """Stands where members would be."""

    size, gpus, is_open = 1, 0.0, True

    def call(self, method: str, *args: Any) -> list[Any]:
        raise NotThere(method)

    def dispatch(self, method: str, items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        raise NotThere(method)

    def close(self) -> None:
        """Nothing was started."""


class NoRuntime:
    """A runtime, and its observer, that make nothing and count rounds."""

    workers = shards = threads = 1

    def __init__(self) -> None:
        self.observer: Observer = self
        self.rounds = 0

    def map_parts(self, stage: StageSpec, source: Source, target: Step) -> StepRecord:
        record = target.record()
        if record is None:
            raise NotThere(target.folder)
        return record

    def group(self, member: Callable[..., Any], shards: Sequence[Mapping[str, Any]], resources: Resources) -> NoGroup:
        return NoGroup()

    def facts(self) -> dict[str, Any]:
        """Nothing is executed."""
        return {}

    def close(self) -> None:
        """Nothing was started."""

    def round_done(self, metrics: dict[str, Any]) -> None:
        self.rounds += 1

    def step_started(self, name: str, total_rows: int | None) -> None:
        """Not remembered."""

    def advance(self, name: str, rows: int) -> None:
        """Not remembered."""

    def used(self, name: str, amounts: Mapping[str, float]) -> None:
        """Nothing is."""

    def step_done(self, name: str, rows: int, seconds: float, failed: int, reused: bool) -> None:
        """Not remembered."""

    def spent(self, step: str, facts: Mapping[str, Any]) -> None:
        """Nothing is."""

    def note(self, text: str) -> None:
        """Told when the run starts."""


def frozen_pool(config: RunConfig) -> Step | None:
    """The pool of a run folder, None while it is not complete."""
    try:
        return run_pool(config, CommittedStore(config.out), NoRuntime(), resolve_inputs(config.data.path))
    except NotThere:
        return None


def standing(config: RunConfig) -> Standing:
    """Where a run with these settings would go on.

    Args:
        config: of a recipe that has rounds.

    Raises:
        DataError, ConfigError, EnvironmentProblem: as the run would.
    """
    store, runtime = CommittedStore(config.out), NoRuntime()
    pool, over = None, False
    try:
        pool = run_pool(config, store, runtime, resolve_inputs(config.data.path))
        paid = PaidRun(store, runtime, config.paid)
        context = Context(config, store, pool, runtime, budget_rows(config.budget, pool.require().rows), paid, store)
        recipe = load_recipe(config.recipe.name).module
        vectors = recipe.pool_vectors(context)
        recipe.rounds(context, context.index(vectors), vectors)
        over = True
    except (NotThere, TooManyFailures):
        pass
    asked: set[str] = set()
    for number in range(runtime.rounds + 1):
        if folder := store.steps.get(f"rounds/{number:03d}/batch"):
            asked |= set(Step.at(store, folder).read_all([ID])[ID].to_pylist())
    return Standing(pool, runtime.rounds, over, frozenset(asked), None if over else _in_work(store, runtime.rounds))


def _in_work(store: CommittedStore, number: int) -> pa.Table | None:
    """The batch of a round that is not complete, with the answers that are."""
    batch, answers = (store.steps.get(f"rounds/{number:03d}/{name}") for name in ("batch", "answers"))
    if batch is None:
        return None
    table = Step.at(store, batch).read_all(POOL_SCHEMA.names)
    known = Step.at(store, answers).read_all([ANSWER])[ANSWER] if answers else pa.nulls(len(table), pa.large_string())
    return table.append_column(ANSWER, known)
