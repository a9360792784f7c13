"""vLLM's async engine behind one coroutine, `generate`, that outlives the engine.

An engine that dies or hangs is replaced and what it had in work is done again; a row that kills it again and again is
found (engine/models/suspects.py) and refused; an engine that cannot be helped ends the run with an error that says so.
Finished rows are never asked for twice. It knows nothing of texts, rows or verdicts, only of token ids.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.resource_tracker
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from engine.errors import ConfigError, EnvironmentProblem
from engine.models.engine_guard import Guard
from engine.models.suspects import Suspects
from engine.paid.replies import RowFailed

START_ATTEMPTS = 3  # a GPU may still be held for seconds by what died
MOST_BLAMED = 3  # rows in a row, with none finished in between: then it is not the rows
WATCH_S = 1.0
SHUTDOWN_S = 2.0


@dataclass(eq=False)
class Job:
    """One request.

    Attributes:
        key: what errors call it, a row's id.
    """

    key: str
    tokens: Sequence[int]
    params: Any


class Life:
    """One engine, from its start to its death."""

    def __init__(self) -> None:
        self.guard = Guard()
        self.llm: Any = None
        self.running: dict[Job, None] = {}  # in the order they came
        self.last_step = time.monotonic()
        self.why = ""

    def stepped(self) -> None:
        self.last_step = time.monotonic()

    def end(self) -> None:
        """Blocks until all processes are gone."""
        if self.llm is not None:
            self.llm.shutdown(timeout=SHUTDOWN_S)
        self.guard.kill()
        multiprocessing.active_children()  # collects those that ended


class _Heartbeat:
    """A stat logger of vLLM's interface that only notices that the engine makes steps."""

    def __init__(self, life: Life) -> None:
        self.life = life

    def record(self, *args: Any, **kwargs: Any) -> None:
        self.life.stepped()

    def log(self) -> None: ...
    def log_engine_initialized(self) -> None: ...
    def record_sleep_state(self, *args: Any) -> None: ...


class Engine:
    """A replaceable engine. Every method but the constructor runs on one event loop.

    Args:
        args: fields of vLLM's AsyncEngineArgs.
        hang_s: without a step for so long, with work to do, it is killed.
        give_up_after_s: engines die and no row is finished for so long: the run ends.
        log: told ("started" | "died" | "blamed", facts).
    """

    def __init__(
        self, args: Mapping[str, Any], hang_s: float, give_up_after_s: float, log: Callable[[str, dict[str, Any]], None]
    ) -> None:
        self.args, self.hang_s, self.give_up_after_s, self.log = dict(args), hang_s, give_up_after_s, log
        self.life: Life | None = None
        self.broken: EnvironmentProblem | None = None
        self.suspects: Suspects[Job] = Suspects()
        self.blamed_in_a_row = 0
        self.last_finished = time.monotonic()
        self.changed = asyncio.Condition()
        self.in_flight = 1
        self.slots = asyncio.Semaphore(self.in_flight)
        self.watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the first engine.

        Raises:
            ConfigError: E236, vLLM does not take the arguments.
            EnvironmentProblem: E351, it does not start.
        """
        life = self.life = await self._new_life()
        most = life.llm.vllm_config.scheduler_config.max_num_seqs
        self.in_flight = most + max(4, most // 4)  # a few wait inside the engine, so that it never idles
        self.slots = asyncio.Semaphore(self.in_flight)
        self.watcher = asyncio.create_task(self._watch())

    @property
    def max_model_len(self) -> int:
        assert self.life is not None
        return self.life.llm.model_config.max_model_len

    async def close(self) -> None:
        if self.watcher is not None:
            self.watcher.cancel()
        life, self.life = self.life, None
        if life is not None:
            if life.llm.output_handler is not None:
                life.llm.output_handler.cancel()  # or it complains of the engine's end
            await asyncio.to_thread(life.end)

    async def generate(self, key: str, tokens: Sequence[int], params: Any) -> Any:
        """vLLM's finished RequestOutput.

        Raises:
            RowFailed: the engine refuses the request, or dies of it.
            EnvironmentProblem: E352, the engine cannot be kept alive.
        """
        job = Job(key, tokens, params)
        async with self.slots:
            try:
                while True:
                    life = await self._turn(job)
                    output = await self._ask(life, job)
                    if output is not None:
                        self.blamed_in_a_row, self.last_finished = 0, time.monotonic()
                        return output
            finally:
                async with self.changed:
                    self.suspects.left(job)
                    self.changed.notify_all()

    async def _turn(self, job: Job) -> Life:
        """Waits until there is an engine and the job may use it."""
        async with self.changed:
            await self.changed.wait_for(
                lambda: self.broken or (self.life is not None and self.suspects.may_run(job)),
            )
            if self.broken is not None:
                raise self.broken
            assert self.life is not None
            return self.life

    async def _ask(self, life: Life, job: Job) -> Any:
        """The output, or None when the engine died."""
        from vllm.exceptions import VLLMClientError  # pyright: ignore[reportMissingImports]
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError  # pyright: ignore[reportMissingImports]

        if not life.running:  # it was idle until now
            life.stepped()
            if not self.suspects.deaths:
                self.last_finished = time.monotonic()
        life.running[job] = None
        try:
            prompt = {"type": "token", "prompt_token_ids": list(job.tokens)}
            outputs = [one async for one in life.llm.generate(prompt, job.params, f"{job.key}-{id(job):x}")]
            return outputs[-1]
        except EngineDeadError:
            if await self._bury(life) is job:
                raise RowFailed("the engine dies of this row") from None
            return None
        except (VLLMClientError, EngineGenerateError, ValueError) as error:
            cause = error.__cause__ or error
            raise RowFailed(f"vLLM refuses the row: {type(cause).__name__}: {cause}") from error
        finally:
            life.running.pop(job, None)

    async def _bury(self, life: Life) -> Job | None:
        """Draws the conclusions from a death, once, and replaces the engine.

        Returns:
            The job that is to blame, if that is known now.
        """
        async with self.changed:
            if self.life is not life:
                return None  # another job was here first
            self.life = None
            running = list(life.running)
            culprit = self.suspects.died(running)
            self.log("died", {"why": life.why or "see the engine's own log", "rows": len(running)})
            if culprit is not None:
                self.blamed_in_a_row += 1
                self.log("blamed", {"row": culprit.key})
            self._give_up(running, life.why)
        await asyncio.to_thread(life.end)
        try:
            if self.broken is None:
                self.life = await self._new_life()
        except BaseException as error:
            what = "an engine that died cannot be replaced"
            self.broken = EnvironmentProblem(what, why=str(error).strip(), fix="read the engine's log", code="E352")
            raise
        finally:
            async with self.changed:
                self.changed.notify_all()
        return culprit

    def _give_up(self, running: Sequence[Job], why: str) -> None:
        """Sets `broken` when it is no use to go on."""
        idle_s = time.monotonic() - self.last_finished
        what = ""
        if self.blamed_in_a_row >= MOST_BLAMED:
            what = f"the engine died of {MOST_BLAMED} rows, and of none less: it is not the rows"
        elif idle_s > self.give_up_after_s:
            what = f"engines die and no row was finished for {idle_s:.0f} s"
        if what:
            stuck = ", ".join(job.key for job in running[:5])
            more = f" and {len(running) - 5} more" if len(running) > 5 else ""
            self.broken = EnvironmentProblem(
                what,
                where=f"rows {stuck}{more}" if running else "",
                why=why or "the processes of the engine end; most often memory runs out",
                fix="read the engine's log; lower max_num_seqs or gpu_memory_utilization in engine_args",
                code="E352",
            )

    async def _new_life(self) -> Life:
        for attempt in range(1, START_ATTEMPTS + 1):
            life, started = Life(), time.monotonic()
            try:
                life.llm = await asyncio.to_thread(self._load, life)
            except (RuntimeError, OSError, ValueError) as error:
                await asyncio.to_thread(life.end)
                if isinstance(error, (ConfigError, EnvironmentProblem)):
                    raise
                if attempt < START_ATTEMPTS and not isinstance(error, ValueError):
                    await asyncio.sleep(attempt)
                    continue
                raise EnvironmentProblem(
                    f"vLLM does not start with {self.args['model']!r}",
                    why=str(error).strip().splitlines()[0],
                    fix="read the engine's log above; see engine_args, gpus and tensor_parallel_size",
                    code="E351",
                ) from error
            except BaseException:
                life.guard.kill()
                raise
            life.stepped()
            self.log("started", {"seconds": round(time.monotonic() - started, 2)})
            return life
        raise AssertionError

    def _load(self, life: Life) -> Any:
        from vllm import AsyncEngineArgs  # pyright: ignore[reportMissingImports]
        from vllm.v1.engine.async_llm import AsyncLLM  # pyright: ignore[reportMissingImports]

        try:
            args = AsyncEngineArgs(**self.args, disable_log_stats=True)
        except TypeError as error:
            raise ConfigError(
                "vLLM does not take engine_args as they are", why=str(error), fix="see vLLM's EngineArgs", code="E236"
            ) from error
        multiprocessing.resource_tracker.ensure_running()  # now, lest it gets the mark
        with life.guard.marking():
            return AsyncLLM.from_engine_args(args, stat_loggers=[lambda *_: _Heartbeat(life)])

    async def _watch(self) -> None:
        """Kills an engine that hangs; what follows is as with any death."""
        while True:
            await asyncio.sleep(WATCH_S)
            life = self.life
            if life is not None and life.running and time.monotonic() - life.last_step > self.hang_s:
                life.why = f"no step for {self.hang_s:g} s"
                with suppress(RuntimeError):
                    await asyncio.to_thread(life.guard.kill)
