"""Nine tenths of the small pool with a finished run of them, and the tenth that was held back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import Recorder
from tests.runs import config_for, run_local

# With random weights all answers are alike, so the judge is told to go by the smallest differences.
JUDGE = "recipe.judge={kind: embedding, same_similarity: 1.0, margin: 0.0}"


@dataclass(frozen=True)
class Finished:
    """`pool` was run, `held` was not, `whole` is both."""

    out: Path
    pool: Path
    held: Path
    whole: Path


@pytest.fixture(scope="session")
def finished(small_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "encoder").symlink_to(small_pool.parent / "encoder")
    lines = small_pool.read_bytes().splitlines(keepends=True)
    paths = {name: folder / f"{name}.jsonl" for name in ("pool", "held", "whole")}
    paths["whole"].write_bytes(b"".join(lines))
    paths["held"].write_bytes(b"".join(lines[::10]))
    paths["pool"].write_bytes(b"".join(line for number, line in enumerate(lines) if number % 10))
    run_local(config_for(paths["pool"], folder / "out", JUDGE), Recorder())
    return Finished(folder / "out", paths["pool"], paths["held"], paths["whole"])


def scores_of(out: Path) -> dict[str, dict]:
    """The rows of `scores/` by id."""
    return {row["id"]: row for row in pq.read_table(out / "scores").to_pylist()}
