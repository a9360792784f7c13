"""RayRuntime: the two verbs on a Ray cluster. Placement, transport and retries; no mathematics.

A pass is a Ray Data dataset whose rows are part numbers, mapped over a fixed pool of actors; every worker reads its
part from storage and commits it there, so nothing large crosses the object store or the driver, and a lost worker
costs the parts it held. A group is a set of plain classes, kept in actors that several groups share.
"""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ray
import ray.data
from ray.exceptions import RayActorError, RayError, RayTaskError

from actors.cluster import RESIDENT_CPUS, Plan, resources, spilled_bytes
from actors.metrics import RayMeter
from engine.artifacts import Part, Source, Step, StepRecord
from engine.errors import EnvironmentProblem, IterselectError, StepError
from engine.events import Observer
from engine.metrics import MeteredObserver
from engine.runtime import Group, PartWorker, Resources, StageSpec, make_room, run_pass

PLACEMENT_TIMEOUT_S = 120.0  # without one more member being ready
MAX_RESTARTS = 100  # of one host: kills and lost nodes are survived, a member that always dies ends the run
# Of Ray Data, each a task of its own that costs the driver some 10 ms. Parts above that number share a block: the last
# one keeps a worker busy for 0.4 % of the pass while others may have nothing left to do.
BLOCKS_PER_WORKER = 256
BIG_BYTES = 100_000  # arguments above this are put in the object store once instead of once per member


class PartMapper:
    """The stage's PartWorker in the form Ray Data calls: part numbers in, committed parts out.

    Args:
        alone: no part shares its block with others.
    """

    def __init__(self, stage: StageSpec, source: Source, target: Step, alone: bool) -> None:
        self.worker, self.source, self.target, self.alone = PartWorker(stage), source, target, alone
        self.error = b""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.error:  # the driver hears of it when the block is over
            return {"part": [b""], "error": [self.error]}
        index = int(batch["part"][0])
        try:
            part = None if self.alone else self._committed(index)
            part = part or self.worker.run(index, self.source, self.target)
        except (IterselectError, OSError) as error:  # Ray Data would pass on its text only
            self.error = pickle.dumps(error)
            return {"part": [b""], "error": [self.error]}
        return {"part": [pickle.dumps(part)], "error": [b""]}

    def _committed(self, index: int) -> Part | None:
        """A part that a lost worker finished before it lost the rest of its block."""
        try:
            return self.target.part(index)
        except FileNotFoundError:
            return None


class Host:
    """A process that holds resident members of several groups, so that libraries are loaded once on each worker.

    Every call names its member's class and arguments: after a crash Ray starts the host again, empty, and the repeated
    call builds the member anew, which then rebuilds its state from storage.
    """

    def __init__(self) -> None:
        if ray.get_runtime_context().was_current_actor_reconstructed:
            RayMeter().count("iterselect_retries_total", 1, step="", reason="member_restart")
        self.members: dict[str, Any] = {}
        self.making = threading.Lock()  # of a host whose member works on several items at a time

    def call(self, key: str, spec: tuple[Callable[..., Any], Mapping[str, Any]], method: str, *args: Any) -> Any:
        with self.making:
            if key not in self.members:
                member, shard = spec
                self.members[key] = member(**shard)
        return getattr(self.members[key], method)(*args)

    def drop(self, key: str) -> None:
        self.members.pop(key, None)

    def close(self, key: str) -> None:
        """Closes a member that can be closed; one that a new incarnation of the host never made needs none."""
        close = getattr(self.members.get(key), "close", None)
        if close is not None:
            close()


class RayGroup:
    """Members inside hosts, one after another round the hosts. Calls are repeated when a host dies.

    Args:
        gpus: of each member.
        owned: the hosts are this group's alone, and end with it.
        concurrency: items each member works on at a time.
    """

    def __init__(
        self,
        name: str,
        member: Callable[..., Any],
        shards: Sequence[Mapping[str, Any]],
        hosts: Sequence[Any],
        owned: bool,
        gpus: float = 0.0,
        concurrency: int = 1,
    ) -> None:
        self.name, self.hosts, self.owned = name, list(hosts), owned
        self.concurrency = concurrency
        self.specs = [ray.put((member, shard)) for shard in shards]  # sent to a node once, not with every call
        self.size = len(self.specs)
        self.gpus = gpus * self.size

    @property
    def is_open(self) -> bool:
        return bool(self.hosts)

    def _start(self, number: int, method: str, args: Sequence[Any]) -> Any:
        host = self.hosts[number % len(self.hosts)]
        return host.call.remote(f"{self.name}/{number}", self.specs[number], method, *args)

    def call(self, method: str, *args: Any) -> list[Any]:
        shared = [_put_if_big(arg) for arg in args]
        return _get([self._start(number, method, shared) for number in range(self.size)])

    def dispatch(self, method: str, items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        waiting = iter(enumerate(items))
        running: dict[Any, tuple[int, int]] = {}

        def start(number: int) -> None:
            for position, item in waiting:
                running[self._start(number, method, item)] = (position, number)
                return

        for number in range(self.size * self.concurrency):
            start(number % self.size)
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)  # blocks until some member is free again
            position, number = running.pop(done)
            try:
                result = _get(done)
            except Exception:
                if running:  # what is in work is finished: it may have been paid for
                    ray.wait(list(running), num_returns=len(running))
                raise
            yield position, result
            start(number)

    def close(self) -> None:
        if not self.hosts:
            return
        if self.owned:
            numbered = [(number, self.hosts[number % len(self.hosts)]) for number in range(self.size)]
            try:
                _get([host.close.remote(f"{self.name}/{number}") for number, host in numbered])
            finally:
                for host in self.hosts:
                    ray.kill(host)
        else:
            for number in range(self.size):
                self.hosts[number % len(self.hosts)].drop.remote(f"{self.name}/{number}")
        self.hosts = []


class RayRuntime:
    """Runs on the cluster that `actors.cluster.connect` reached.

    A group with GPUs has hosts of its own and keeps its models loaded until it is closed: by its owner, or here when
    the next phase wants more GPUs than are free.

    Args:
        plan: sizes of pools and groups.
        observer: hears about progress.
    """

    def __init__(self, plan: Plan, observer: Observer) -> None:
        self.plan, self.meter = plan, RayMeter()
        self.observer = observer
        self.workers, self.shards, self.threads = plan.workers, plan.shards, plan.threads
        self._hosts: list[Any] = []
        self._groups = 0
        self._owned: list[RayGroup] = []
        self._spilled_before = spilled_bytes()
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = 0
        context.print_on_execution_start = False
        for name in ("ray.data", "ray.data._internal.progress"):  # one table of our own instead of Ray's bars and notes
            logging.getLogger(name).setLevel(logging.ERROR)

    @property
    def observer(self) -> Observer:
        """Counts what it hears for Prometheus, and passes it on."""
        return self._observer

    @observer.setter
    def observer(self, observer: Observer) -> None:
        self._observer = MeteredObserver(observer, self.meter)

    def map_parts(self, stage: StageSpec, source: Source, target: Step) -> StepRecord:
        def run(todo: list[int]) -> Iterator[Part]:
            if not todo:
                return
            make_room(self._owned, stage.resources.gpus * min(self.plan.workers, len(todo)), _total_gpus())
            # Largest parts first, so that the last ones to finish are short.
            todo = sorted(todo, key=lambda index: -source.part(index).rows)
            blocks = min(len(todo), BLOCKS_PER_WORKER * self.plan.workers)
            parts = ray.data.from_items([{"part": index} for index in todo], override_num_blocks=blocks)
            mapped = parts.map_batches(
                PartMapper,  # pyright: ignore[reportArgumentType]
                fn_constructor_args=(stage, source, target, blocks == len(todo)),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(
                    size=min(self.plan.workers, len(todo)),
                    max_concurrent_calls_per_actor=stage.resources.concurrency,
                    enable_true_multi_threading=stage.resources.concurrency > 1,
                ),
                num_cpus=self.plan.pass_cpus,
                num_gpus=stage.resources.gpus or None,
            )
            for row in _iterate(mapped):
                if row["error"]:
                    raise pickle.loads(row["error"])
                yield pickle.loads(row["part"])

        return run_pass(self.observer, source, target, run)

    def group(self, member: Callable[..., Any], shards: Sequence[Mapping[str, Any]], resources: Resources) -> Group:
        self._groups += 1
        stage = shards[0].get("stage")
        what = stage.name if isinstance(stage, StageSpec) else getattr(member, "__name__", "member")
        name = f"{what}-{self._groups}"
        if resources.resident and not resources.gpus and not resources.apart:
            if not self._hosts:
                self._hosts = self._start_hosts(self.plan.workers, Resources(resident=True))
            return RayGroup(name, member, shards, self._hosts, owned=False)
        make_room(self._owned, resources.gpus * len(shards), _total_gpus())
        hosts = self._start_hosts(len(shards), resources)
        group = RayGroup(name, member, shards, hosts, True, resources.gpus, resources.concurrency)
        self._owned = [*(one for one in self._owned if one.is_open), group]
        return group

    def _start_hosts(self, num: int, resources: Resources) -> list[Any]:
        """Hosts on as many nodes as there are, or a clear error when they cannot be placed."""
        remote = ray.remote(Host).options(
            num_cpus=RESIDENT_CPUS if resources.resident else float(resources.cpus),
            num_gpus=resources.gpus or None,
            max_restarts=MAX_RESTARTS,
            max_task_retries=MAX_RESTARTS,
            max_concurrency=resources.concurrency + resources.apart,  # one more, to be closed by
            scheduling_strategy="SPREAD",
        )
        hosts: list[Any] = [remote.remote() for _ in range(num)]
        waiting = [host.__ray_ready__.remote() for host in hosts]
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=PLACEMENT_TIMEOUT_S)
            _get(ready)
            if waiting and not ready and not _only_starting(resources):
                for host in hosts:
                    ray.kill(host)
                raise self._not_placed(num, resources)
        return hosts

    def _not_placed(self, num: int, resources: Resources) -> EnvironmentProblem:
        held = ", ".join(f"{g.name} ({g.gpus:g})" for g in self._owned if g.is_open and g.gpus)
        return EnvironmentProblem(
            f"{num} members with {resources.cpus} CPUs and {resources.gpus:g} GPUs each were not placed within "
            f"{PLACEMENT_TIMEOUT_S:g} s",
            why=f"GPUs are held by: {held}" if held else "other work holds the cluster's resources",
            fix="lower runtime.workers or runtime.gpus, or add nodes",
            code="E334",
        )

    def facts(self) -> dict[str, Any]:
        """Nodes, CPUs, GPUs at the end of the run; bytes that object stores spilled since it began, None if unknown."""
        has = resources()
        before, after = self._spilled_before, spilled_bytes()
        spilled = None if before is None or after is None else after - before
        return {"nodes": len(has.nodes), "cpus": has.cpus, "gpus": has.gpus, "spilled_bytes": spilled}

    def close(self) -> None:
        ray.shutdown()


def _only_starting(resources: Resources) -> bool:
    """Whether members that are not ready must have been placed: they want next to nothing, and some of it is free.

    On a busy machine, or one with a CPU or two, a process may take minutes to start.
    """
    return resources.resident and not resources.gpus and ray.available_resources().get("CPU", 0.0) >= RESIDENT_CPUS


def _total_gpus() -> float:
    return ray.cluster_resources().get("GPU", 0.0)


def _put_if_big(value: Any) -> Any:
    return ray.put(value) if getattr(value, "nbytes", 0) > BIG_BYTES else value


def _get(refs: Any) -> Any:
    """Blocks for results: the recipe's next line needs them."""
    try:
        return ray.get(refs)
    except RayError as error:
        raise _unwrapped(error) from error


def _iterate(dataset: Any) -> Iterator[dict[str, Any]]:
    try:
        yield from dataset.iter_rows()
    except RayError as error:
        raise _unwrapped(error) from error


def _unwrapped(error: BaseException) -> BaseException:
    """The engine's own error inside a Ray error, if there is one: users should not read Ray's wrapping."""
    seen: BaseException | None = error
    while seen is not None:
        wrapper = isinstance(seen, RayTaskError)  # such an object also claims the class of the error it wraps
        if isinstance(seen, IterselectError) and not wrapper:
            return seen
        if isinstance(seen, RayActorError) and not wrapper and not seen.actor_init_failed:
            return EnvironmentProblem(
                f"a member died more than {MAX_RESTARTS} times",
                why=f"probably it runs out of memory; Ray says: {' '.join(str(seen).split())}",
                fix="lower runtime.workers, or give the nodes more memory; see Ray's logs for how it died",
                code="E335",
            )
        cause = getattr(seen, "cause", None)
        seen = cause if isinstance(cause, BaseException) and cause is not seen else seen.__cause__
    return StepError(f"a worker failed: {str(error).strip().splitlines()[-1]}", why=type(error).__name__)
