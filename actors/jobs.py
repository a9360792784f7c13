"""Ray's Jobs API: sends a run to a cluster, follows it and ends it. The only place that speaks to the job server.

Tokens are Ray's own matter: RAY_AUTH_MODE=token with RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, here as
on every node. It knows nothing of configs.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from engine.errors import ConfigError, EnvironmentProblem
from engine.submission import ACTIVE, Submission

POLL_S = 1.0


class _Client(JobSubmissionClient):
    """With the one question that the SDK does not ask."""

    def hosts(self) -> set[str]:
        """Names of the machines of all live nodes."""
        reply = self._do_request("GET", "/nodes?view=hostnamelist")
        reply.raise_for_status()
        return set(reply.json()["data"]["hostNameList"])


class JobServer:
    """The job server of one cluster.

    Args:
        address: of the dashboard, such as http://head:8265.

    Raises:
        ConfigError: E275, not such an address.
        EnvironmentProblem: E336 the token is refused, E337 nobody answers.
    """

    def __init__(self, address: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise ConfigError(
                f"{address!r} is not the address of a job server",
                why="jobs go through the dashboard, not through the port that drivers join",
                fix="give --address http://HEAD:8265 (a tunnel to the head makes it http://127.0.0.1:8265)",
                code="E275",
            )
        self.address = address
        logging.getLogger("ray").setLevel(logging.WARNING)  # uploads and closed connections are not news
        with self._answers():
            self._client = _Client(address)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            given = f"RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE', '')}"
            raise EnvironmentProblem(
                f"the cluster at {self.address} refuses the token",
                why=f"{str(error).splitlines()[0]} (here: {given})",
                fix="export RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH with the cluster's token",
                code="E336",
            ) from error
        except (ConnectionError, requests.ConnectionError, aiohttp.ClientConnectionError) as error:
            raise EnvironmentProblem(
                f"no job server answers at {self.address}",
                why=str(error).splitlines()[0],
                fix="check the address, the tunnel, and that the cluster is up: its head serves the dashboard, on 8265",
                code="E337",
            ) from error

    def hosts(self) -> set[str]:
        """Names of the machines of all live nodes."""
        with self._answers():
            return self._client.hosts()

    def known(self) -> list[Submission]:
        """All jobs that came through the Jobs API, oldest first."""
        with self._answers():
            jobs = [_submission(job) for job in self._client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: job.started_ms)

    def find(self, which: str) -> Submission:
        """The job with this id, or the last one of this run folder.

        Raises:
            ConfigError: E276, there is none.
        """
        from engine.store import absolute_root

        found = [job for job in self.known() if which == job.id or (job.out and absolute_root(which) == job.out)]
        if not found:
            raise ConfigError(
                f"no job {which!r} on the cluster at {self.address}",
                why="a job is known by its id or its run folder, and is forgotten with its cluster",
                fix="`iterselect jobs list` shows those that are known; `iterselect status` reads a run folder",
                code="E276",
            )
        return found[-1]

    def submit(self, submission: str, entrypoint: str, folder: Path, metadata: dict[str, str]) -> None:
        """Uploads a working directory and starts a command in it.

        Raises:
            ConfigError: E273, somebody else has just used the id.
        """
        with self._answers():
            try:
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=submission,
                    runtime_env={"working_dir": str(folder)},
                    metadata=metadata,
                )
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                fix = f"`iterselect jobs logs {submission}` follows it"
                raise ConfigError(f"{submission} has been submitted already", fix=fix, code="E273") from error

    def follow(self, submission: str, write: Callable[[str], Any]) -> None:
        """Writes the job's output as it comes, until the job has ended. A lost connection is taken up again."""
        with self._answers():
            asyncio.run(self._follow(submission, write))

    async def _follow(self, submission: str, write: Callable[[str], Any]) -> None:
        written = 0
        while True:
            skip = written  # the log comes from its beginning every time
            try:
                async for chunk in self._client.tail_job_logs(submission):
                    text, skip = chunk[skip:], max(0, skip - len(chunk))
                    written += len(text)
                    write(text)
            except (RuntimeError, aiohttp.ClientError):
                # The next line raises if the cluster is gone; otherwise only the connection was.
                self._client.get_job_status(submission)
            if str(self._client.get_job_status(submission)) not in ACTIVE:
                # What was printed after the connection was lost, or just before the end.
                write(self._client.get_job_logs(submission)[written:])
                return
            await asyncio.sleep(POLL_S)

    def logs(self, submission: str) -> str:
        """What the job has printed so far."""
        with self._answers():
            return self._client.get_job_logs(submission)

    def stop(self, submission: str) -> bool:
        """Asks a job to end, as an interrupt from the keyboard would; False when it had ended."""
        with self._answers():
            return self._client.stop_job(submission)


def _submission(job: Any) -> Submission:
    out = (job.metadata or {}).get("iterselect_out", "")
    status = str(job.status.value)
    return Submission(job.submission_id, status, out, job.driver_exit_code, job.start_time or 0)
