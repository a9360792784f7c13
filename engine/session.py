"""One invocation of `run`: the run folder, the events, the exit state. engine.job.execute does the work."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from engine.config import RunConfig
from engine.errors import BudgetReached, ConfigError, DataError, EnvironmentProblem, IterselectError
from engine.events import RESUME_ENV, EventObserver, Events, Observer
from engine.lease import FOLDER, Lease
from engine.run_folder import METHODS, REPORT
from engine.store import Store, absolute_root, storage_problem
from engine.yaml_document import parse_yaml

MakeRuntime = Callable[[RunConfig, Any], Any]


def run_session(
    config: RunConfig, *, fresh: bool, quiet: bool, make_runtime: MakeRuntime, take_over: bool = False
) -> dict[str, Any]:
    """Runs a config in its folder and leaves status.json, events.jsonl and run.json behind.

    Args:
        config: resolved settings.
        fresh: put an existing run folder aside first.
        quiet: no progress on stderr.
        make_runtime: (config, observer) -> Runtime; given by the command line, which alone knows of Ray.
        take_over: take the folder from a run that may be alive, without watching it first.

    Returns:
        The summary.
    """
    return run_each({None: config}, fresh, quiet, make_runtime, take_over)[0]


def run_methods(
    configs: Mapping[str, RunConfig], *, fresh: bool, quiet: bool, make_runtime: MakeRuntime, take_over: bool = False
) -> list[dict[str, Any]]:
    """Runs several methods on one pool, in one folder, on one runtime; what they have in common is computed once.

    Args:
        configs: by label, equal but for the recipe; as `run_session` otherwise.

    Returns:
        The summaries in order.
    """
    return run_each(configs, fresh, quiet, make_runtime, take_over)


def run_each(
    configs: Mapping[Any, RunConfig], fresh: bool, quiet: bool, make_runtime: MakeRuntime, take_over: bool
) -> list[dict[str, Any]]:
    """One session in one run folder: its checks, then every config, then the end state."""
    first = next(iter(configs.values()))
    folder = Store(first.out)
    check_out(folder)
    check_inputs(folder, first)
    for config in configs.values():
        check_paid(config)
        if calls_here(config):
            check_models(config)
    with hold(folder, first.runtime.lease_s, quiet, take_over) as lease:
        if fresh:
            aside = put_aside(lease.store)
            if aside and not quiet:
                print(f"the earlier run is kept in {aside}", file=sys.stderr)
        try:
            return run_held(configs, lease.store, quiet, make_runtime)
        except BaseException as error:
            if lease.lost is not None:  # whatever it was doing, this is why it was stopped
                raise lease.lost from error
            raise


def run_held(
    configs: Mapping[Any, RunConfig], store: Store, quiet: bool, make_runtime: MakeRuntime
) -> list[dict[str, Any]]:
    """Every config in a folder that this process holds."""
    from engine.live_table import LiveTable
    from engine.tracking.feed import tracked

    events, runtime, summaries = Events(store), None, []
    events.status("running", resume_command=resume_command())
    try:
        for method, config in configs.items():
            outputs = store if method is None else store.sub(f"{METHODS}/{method}")
            with LiveTable(quiet=quiet) as shown, tracked(config, outputs, shown, events) as view:
                observer = EventObserver(events, view)
                if method is None:
                    for change in changed_settings(store, config):
                        observer.note(change)
                else:
                    observer.note(f"method {method}")
                if runtime is None:
                    started = time.monotonic()
                    runtime = make_runtime(config, observer)
                    observer.step_started("start", 0)
                    observer.step_done("start", 0, time.monotonic() - started, 0, reused=False)
                runtime.observer = observer
                from engine.job import execute

                summaries.append(execute(config, store, runtime, observer.steps, method))
                view.finished(summaries[-1])
                there = summaries[-1].get("up_to_date") and outputs.exists(f"{REPORT}/index.html")
                if config.output.report and not there:
                    report_at_end(outputs, observer)
    except BaseException as error:
        record_end(events, error)
        raise
    finally:
        if runtime is not None:
            runtime.close()
    events.status("done", exit_code=0, reason="")
    return summaries


def hold(store: Store, lease_s: float, quiet: bool, take_over: bool) -> Lease:
    """The right to write into a run folder; what there is to wait for is said on stderr.

    Raises:
        EnvironmentProblem: E340, another run is at work there.
    """
    return Lease.acquire(
        store, lease_s, take_over=take_over, say=lambda text: None if quiet else print(text, file=sys.stderr)
    )


def report_at_end(outputs: Store, observer: Observer) -> None:
    """Writes the page about a finished run. Its rows are selected by then, so a page that fails is only told of."""
    from engine.report.write import write_report

    started = time.monotonic()
    observer.step_started(REPORT, None)
    try:
        rows = write_report(outputs, outputs.sub(REPORT), pictures=False)["examples"]
    except Exception as error:  # whatever it is: the run is done, and `iterselect report` shows it in full
        observer.note(f"no report: {error}; `iterselect report {outputs.root} --debug` says more")
        return
    observer.step_done(REPORT, rows, time.monotonic() - started, 0, reused=False)


def record_end(events: Events, error: BaseException) -> None:
    """Says in status.json how a run ended. Where the disk is too full even for that, the error itself is told."""
    problem = as_problem(error)
    with suppress(OSError, EnvironmentProblem):
        if isinstance(problem, KeyboardInterrupt):
            events.status("stopped", exit_code=130, reason="interrupted")
        elif isinstance(problem, IterselectError):
            state = "stopped" if isinstance(problem, BudgetReached) else "failed"
            events.status(state, exit_code=problem.exit_code, reason=str(problem))
        else:
            events.status("failed", exit_code=1, reason=f"{type(error).__name__}: {error}")


def as_problem(error: BaseException) -> BaseException:
    """A full or read-only disk is the user's to mend and becomes an EnvironmentProblem; other errors stay."""
    known = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
    if not isinstance(error, OSError) or error.errno not in known:
        return error
    problem = storage_problem(error, str(error.filename or "a file"))
    problem.__cause__ = error
    return problem


def put_aside(store: Store) -> str:
    """Moves what a run folder holds but for its ledger and its lease; nothing is ever deleted.

    Returns:
        where it is now, "" when there was nothing.
    """
    if not store.is_local:
        raise ConfigError("--fresh needs a local run folder", fix=f"choose another out= than {store.root}", code="E281")
    kept = (FOLDER, "ledger")  # paid calls stay in use: to start over is no reason to pay again
    names = [name for name in store.list() if name not in kept]
    if not names:
        return ""
    aside = f"{store.root}.{datetime.now(UTC).strftime('%Y%m%dT%H%M%S.%f')}.old"
    os.mkdir(aside)
    for name in sorted(names, key=lambda name: name == "status.json"):  # the last: by it a folder is known as a run
        os.rename(store.path(name), f"{aside}/{name}")
    return aside


def check_out(store: Store) -> None:
    """Refuses a folder that is somebody else's, before anything is written or renamed.

    status.json is the first file of every run. A config.yaml is no proof of one: with `out=.` it may be the user's,
    and the files of a `data/` folder beside it would be replaced.

    Raises:
        ConfigError: E240 the folder holds files but no run, or is a file.
    """
    if store.is_local and os.path.exists(store.root) and not os.path.isdir(store.root):
        raise ConfigError(f"{store.root} is a file", fix="choose an empty or new folder with out=", code="E240")
    names = [name for name in store.list() if not name.startswith(".")]  # a killed run may leave a hidden file only
    if names and "status.json" not in names:
        raise ConfigError(f"{store.root} holds other files", fix="choose an empty or new folder with out=", code="E240")


def check_inputs(store: Store, config: RunConfig) -> None:
    """Looks for the input, which should not wait for a cluster, and refuses one that the run would write among.

    Raises:
        ConfigError: E242 the next run would read what this one writes.
        DataError: as `resolve_inputs`.
    """
    from engine.data.inputs import resolve_inputs

    specs = [config.data.path] if isinstance(config.data.path, str) else config.data.path
    files = [absolute_root(file.path) for file in resolve_inputs(specs)]
    mixed = [spec for spec in map(absolute_root, specs) if f"{store.root}/".startswith(f"{spec}/")]
    mixed += [file for file in files if file.startswith(f"{store.root}/")]
    if mixed:
        raise ConfigError(
            f"the run folder {store.root} and the input {mixed[0]} lie in one another",
            why="the next run would read the output of this one",
            fix="choose another folder with out=",
            code="E242",
        )


def check_paid(config: RunConfig) -> None:
    """What would stop the first paid call is said before anything is computed.

    Raises:
        ConfigError: E260, a cap without a price.
        EnvironmentProblem: E362, the key is not set; only where the calls are made on this machine.
    """
    from engine.paid.service import check_backends

    check_backends(config, with_key=calls_here(config))


def calls_here(config: RunConfig) -> bool:
    """Whether calls are made and models are loaded on this machine, not by the workers of a cluster."""
    runtime = config.runtime
    return runtime.mode == "local" or (runtime.address or os.environ.get("RAY_ADDRESS") or "local") == "local"


def check_models(config: RunConfig) -> None:
    """Looks for every model of the rounds, whose generator and judge come to work long after the encoder.

    Raises:
        EnvironmentProblem: E320, one is neither here nor can it be downloaded.
    """
    from engine.doctor_config import models_of
    from engine.labelling import LoopConfig
    from engine.models.encoder import resolve_model
    from engine.models.hash_encoder import is_hash

    if isinstance(config.recipe, LoopConfig):
        for name, model in models_of(config).items():
            if is_hash(model):
                continue
            try:
                resolve_model(model)
            except EnvironmentProblem as problem:
                problem.where = problem.where or name
                raise


def changed_settings(store: Store, config: RunConfig) -> list[str]:
    """What differs from the last run in this folder, one line a setting. Steps that do not depend on it are reused."""
    if not store.exists("config.yaml"):
        return []
    before = flat(parse_yaml(store.read_bytes("config.yaml").decode(), store.path("config.yaml")).value)
    now = flat(config.model_dump(mode="json"))
    keys = sorted((before.keys() | now.keys()) - {"out"})
    changed = [key for key in keys if before.get(key) != now.get(key)]
    return [f"changed since the last run here: {key}: {before.get(key)!r} -> {now.get(key)!r}" for key in changed]


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    result: dict[str, Any] = {}
    for key, item in value.items():
        result |= flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return result


def resume_command() -> str:
    """What continues this run: the command line itself, or the one that submitted this job."""
    import shlex

    if RESUME_ENV in os.environ:
        return os.environ[RESUME_ENV]
    return shlex.join(["iterselect", *(word for word in sys.argv[1:] if word != "--fresh")])


def read_status(out: str) -> dict[str, Any]:
    """status.json of a run, with the summary when it is done.

    Raises:
        DataError: there is no run.
    """
    store = Store(out)
    if not store.exists("status.json"):
        raise DataError(f"no run in {out}", fix="give the folder that `iterselect run` wrote to", code="E440")
    found = json.loads(store.read_bytes("status.json"))
    if found["state"] == "running" and store.is_local and not alive(found):
        found["state"] = "interrupted"
    if found["state"] == "done" and store.exists("run.json"):
        found["summary"] = json.loads(store.read_bytes("run.json"))["summary"]
    return found


def alive(status: dict[str, Any]) -> bool:
    """Whether the process that wrote a status may still run: only its own host can tell that it is gone."""
    import psutil

    if status.get("host") != socket.gethostname():
        return True
    try:
        made = psutil.Process(status.get("pid", 0)).create_time()
    except psutil.NoSuchProcess:
        return False
    return made <= datetime.fromisoformat(status["started"]).timestamp() + 1  # later: the number was given anew
