"""Paid judging in a process of its own that a test may kill at any moment.

Processes are forked from a server that has imported the libraries once, so that a start takes a tenth of a second. A
job is a whole driver: it opens the run folder, reads the ledger, judges what is missing, and ends with the exit code
that the command line would give.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import faiss  # noqa: F401  what follows is only imported to be there already in every job
import httpx2  # noqa: F401
import openai.resources.chat  # noqa: F401
import pandas  # noqa: F401
import pyarrow.compute  # noqa: F401
import torch  # noqa: F401

from engine.errors import IterselectError
from tests.paid.paid_rows import judge_config, judge_rows, make_rows

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])


def start_job(out: Path, rows: int, url: str, settings: Mapping[str, Any], paid: Mapping[str, Any]) -> BaseProcess:
    """Starts judging of `make_rows(rows)`; `settings` are the judge's, `paid` those of the run's money."""
    job = SERVER.Process(target=run_job, args=(out, rows, url, settings, paid), daemon=True)
    job.start()
    return job


def run_job(out: Path, rows: int, url: str, settings: Mapping[str, Any], paid: Mapping[str, Any]) -> None:
    try:
        judge_rows(out, make_rows(rows), judge_config(url, **settings), **paid)
    except IterselectError as error:
        raise SystemExit(error.exit_code) from error
