"""The process that talks to a tracker: JSON lines in, JSON lines out, nothing of the engine but this file.

A tracker's library prints, prompts, retries for minutes, starts threads and reads the command line. In a process of its
own none of that reaches the run, which goes on whatever happens here.

First line in: `tracker`, `project`, `name`, `id`, `remote` (what the tracker calls the run, once known), `config`.
Then `{"key", "values", "step"}` each, and `{"done": bool}` at the end; an end without it is a run that was killed.
Lines out: `{"remote", "url"}`, `{"sent": key}`, `{"error": text}`.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

QUIET = {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "WANDB_DISABLE_GIT": "true", "WANDB_DISABLE_CODE": "true"}


class Tracker(Protocol):
    """A run at a tracker."""

    remote: str  # its name there
    url: str | None

    def log(self, values: Mapping[str, float], step: int) -> None: ...
    def finish(self, done: bool) -> None: ...


class Trackio:
    """trackio knows a run by its name, so the id is part of it."""

    url = None

    def __init__(self, project: str, name: str, id: str, remote: str | None, config: Mapping[str, Any]) -> None:
        trackio = importlib.import_module("trackio")
        self.remote = f"{name}-{id[:6]}"
        self.run = trackio.init(
            project, name=self.remote, config=dict(config), resume="allow", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def finish(self, done: bool) -> None:
        self.run.finish()


class Wandb:
    def __init__(self, project: str, name: str, id: str, remote: str | None, config: Mapping[str, Any]) -> None:
        os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
        wandb = importlib.import_module("wandb")
        self.run = wandb.init(project=project, name=name, id=id, config=dict(config), resume="allow")
        self.remote, self.url = id, self.run.url

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def finish(self, done: bool) -> None:
        self.run.finish(exit_code=0 if done else 1)


class Mlflow:
    url = None

    def __init__(self, project: str, name: str, id: str, remote: str | None, config: Mapping[str, Any]) -> None:
        self.client = importlib.import_module("mlflow").MlflowClient()
        self.entities = importlib.import_module("mlflow.entities")
        if remote is not None:
            self.remote = remote
            self.client.update_run(remote, status="RUNNING")
            return
        found = self.client.get_experiment_by_name(project)
        experiment = found.experiment_id if found is not None else self.client.create_experiment(project)
        self.remote = self.client.create_run(experiment, run_name=name, tags={"iterselect.id": id}).info.run_id
        params = [self.entities.Param(key, str(value)) for key, value in config.items()]
        for start in range(0, len(params), 100):  # the most that one request may hold
            self.client.log_batch(self.remote, params=params[start : start + 100])

    def log(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.remote, [self.entities.Metric(k, v, now, step) for k, v in values.items()])

    def finish(self, done: bool) -> None:
        self.client.set_terminated(self.remote, "FINISHED" if done else "FAILED")


TRACKERS = {"trackio": Trackio, "wandb": Wandb, "mlflow": Mlflow}


def serve(lines: TextIO, answers: TextIO) -> None:
    """Passes on what comes in until the end; the first error is told and ends it."""

    def answer(**facts: Any) -> None:
        answers.write(json.dumps(facts) + "\n")
        answers.flush()

    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=lambda: [waiting.put(line) for line in (*lines, "")], daemon=True).start()
    try:
        first = json.loads(waiting.get())
        tracker: Tracker = TRACKERS[first.pop("tracker")](**first)
        answer(remote=tracker.remote, url=tracker.url)
        done = False
        while line := waiting.get():
            record = json.loads(line)
            done = record.get("done", done)
            if "key" in record:
                tracker.log(record["values"], record["step"])
                answer(sent=record["key"])
        tracker.finish(done)
    except Exception as error:  # whatever a tracker's library raises: it is told, and the run goes on
        answer(error=f"{type(error).__name__}: {error}")


def main() -> None:
    """Answers go to what was stdout; what libraries print there goes where errors go."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
