"""A run as a Ray job: what is shipped, what the submission is called, and whether it may be submitted at all.

The job gets this process's own code and the resolved config, so that it does what `plan` and `inspect` here spoke of;
the nodes need only the packages that the code imports. Its id follows from the run folder and the settings, and ends
in the number of the attempt: two submissions of one run cannot both be accepted. It refuses to know the Jobs API;
actors/jobs.py speaks it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engine.config import DataConfig, RunConfig
from engine.config_base import Strict, may_be_path
from engine.errors import ConfigError
from engine.events import RESUME_ENV, SUBMISSION_ENV
from engine.run_folder import COMMIT_FILE
from engine.schema import canonical_json
from engine.store import Store, absolute_root
from engine.yaml_document import parse_yaml

PACKAGES = ("engine", "actors")
CONFIG_FILE = "config.yaml"
EXECUTION = ("out", "runtime", "paid", "tracking")  # settings that do not make another run of it
ACTIVE = ("PENDING", "RUNNING")


@dataclass(frozen=True)
class Submission:
    """What the cluster says of a job.

    Attributes:
        id: submission id.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        out: run folder; "" when the job is not ours.
        exit_code: of its driver, negative when a signal ended it, None while it runs or when it is not known.
        started_ms: Unix time in milliseconds, 0 when it has not started.
    """

    id: str
    status: str
    out: str = ""
    exit_code: int | None = None
    started_ms: int = 0

    @property
    def attempt(self) -> int:
        return int(self.id.rsplit("-", 1)[-1])


def job_settings(configs: Mapping[str | None, RunConfig], shared: bool) -> dict[str, Any]:
    """What the job runs with, as a config file: paths absolute, on the cluster that it finds itself in.

    Args:
        configs: one config under None, or several methods by label, equal but for the recipe.
        shared: all nodes are this machine, so what is relative to here can be found there.

    Raises:
        ConfigError: E272, a path means something on this machine only.
    """
    located = {label: _with_paths(config, shared, "") for label, config in configs.items()}
    settings = next(iter(located.values())).model_dump(mode="json", by_alias=True)
    settings["runtime"] |= {"mode": "ray", "address": None}
    settings["out"] = _seen("out", settings["out"], shared)
    if None not in configs:
        del settings["recipe"]
        settings["methods"] = {
            label: config.recipe.model_dump(mode="json", by_alias=True) for label, config in located.items()
        }
    return settings


def _with_paths(value: Any, shared: bool, key: str) -> Any:
    """Settings in which every relative path has become absolute: of data always, else where such a file is here."""
    if isinstance(value, Strict):
        found = {}
        for name, field in type(value).model_fields.items():
            item, inner = getattr(value, name), f"{key}.{name}".lstrip(".")
            if may_be_path(field) and item is not None:
                found[name] = _located(item, shared, inner, always=isinstance(value, DataConfig))
            else:
                found[name] = _with_paths(item, shared, inner)
        return value.model_copy(update=found)
    if isinstance(value, dict):
        return {name: _with_paths(item, shared, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_paths(item, shared, key) for item in value]
    return value


def _located(value: str | list[str], shared: bool, key: str, always: bool) -> str | list[str]:
    if isinstance(value, list):
        return [_seen(key, one, shared) if always or _is_here(one) else one for one in value]
    return _seen(key, value, shared) if always or _is_here(value) else value


def _is_here(path: str) -> bool:
    return os.path.exists(Path(path).expanduser())


def _seen(key: str, path: str, shared: bool) -> str:
    """A path as the nodes see it: absolute, or a URI."""
    if "://" in path or os.path.isabs(path):
        return path
    if not shared:
        raise ConfigError(
            f"{key}: the cluster cannot see {path!r}, which is relative to a folder of this machine",
            why="the nodes of the cluster are not (only) this machine",
            fix="give an absolute path on storage that all nodes mount, or a URI such as s3://bucket/data",
            code="E272",
        )
    return absolute_root(path)


def digest(settings: Mapping[str, Any]) -> str:
    """8 hex digits of the settings that determine the result: money, workers and the folder are left out."""
    kept = {name: value for name, value in settings.items() if name not in EXECUTION}
    return hashlib.sha256(canonical_json(kept).encode()).hexdigest()[:8]


def prefix_of(out: str) -> str:
    """What the ids of all submissions into a run folder begin with."""
    return f"iterselect-{hashlib.sha256(absolute_root(out).encode()).hexdigest()[:8]}-"


def next_id(settings: Mapping[str, Any], known: Sequence[Submission], fresh: bool) -> str:
    """The id to submit under: the first attempt, or the one after those that failed or were stopped.

    Args:
        settings: of `job_settings`.
        known: jobs of the cluster.
        fresh: a finished run is to be made anew.

    Raises:
        ConfigError: E273 a job is at work in the folder, E274 the run is finished.
    """
    out = settings["out"]
    mine = [job for job in known if job.id.startswith(prefix_of(out))]
    for job in mine:
        if job.status in ACTIVE:
            fix = f"`iterselect jobs logs {job.id}` follows it, `iterselect jobs stop {job.id}` ends it"
            raise ConfigError(
                f"{job.id} is {job.status.lower()} in {out}", fix=f"{fix}; or choose another out=", code="E273"
            )
    stem = f"{prefix_of(out)}{digest(settings)}-"
    attempts = sorted((job for job in mine if job.id.startswith(stem)), key=lambda job: job.attempt)
    done = attempts[-1].status == "SUCCEEDED" if attempts else _finished(settings)
    if done and not fresh:
        raise ConfigError(
            f"this run is finished in {out}",
            fix="see `iterselect status`; choose another out= or other settings, or start over with --fresh",
            code="E274",
        )
    return f"{stem}{attempts[-1].attempt + 1 if attempts else 1}"


def _finished(settings: Mapping[str, Any]) -> bool:
    """Whether the run folder, where this machine sees it, holds this very run, finished."""
    store = Store(settings["out"])
    if not (store.is_local and store.exists("status.json") and store.exists(CONFIG_FILE)):
        return False
    before = parse_yaml(store.read_bytes(CONFIG_FILE).decode(), store.path(CONFIG_FILE)).value
    return json.loads(store.read_bytes("status.json"))["state"] == "done" and digest(before) == digest(settings)


def ship(folder: Path, settings: Mapping[str, Any], commit: str | None) -> None:
    """Fills the job's working directory: this process's packages, their commit, and the config."""
    root = Path(__file__).parents[1]
    for package in PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    pool = root / "examples" / "pool.jsonl"
    if pool.exists():  # an installed package has it inside
        shutil.copy(pool, folder / "engine" / "data" / "example_pool.jsonl")
    if commit:
        (folder / "engine" / COMMIT_FILE).write_text(commit)
    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def entrypoint(submission: str, options: Sequence[str], resume: str) -> str:
    """The job's shell command; `python` is the one that is first in the PATH of the node.

    Args:
        options: of `iterselect run`.
        resume: the command that a user repeats to continue the run.
    """
    variables = [f"{SUBMISSION_ENV}={submission}", f"{RESUME_ENV}={resume}"]
    # exec: signals and the exit code are the driver's own, not those of the shell around it.
    return "exec " + shlex.join(["env", *variables, "python", "-m", "engine", "run", CONFIG_FILE, *options])


def outcome(job: Submission) -> tuple[int, str]:
    """Exit code and reason of a job that has ended.

    The run folder knows best, where it is seen and speaks of this very attempt; else the job's own exit code is what
    the run returned. A driver that was killed has written neither: 1.
    """
    store = Store(job.out) if job.out else None
    if store is not None and store.is_local and store.exists("status.json"):
        found = json.loads(store.read_bytes("status.json"))
        if found.get("submission") == job.id and found["exit_code"] is not None:
            return found["exit_code"], found["reason"]
    if job.status == "SUCCEEDED":
        return 0, ""
    if job.status == "STOPPED":
        return 130, "the job was stopped"
    if job.exit_code is None or job.exit_code < 0:
        how = f"signal {-job.exit_code} ended its driver" if job.exit_code else "it did not start, or its node is gone"
        return 1, f"the job failed: {how}"
    return job.exit_code, f"the job failed with exit code {job.exit_code}"
