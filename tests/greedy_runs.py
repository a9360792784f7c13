"""What the tests of selection by vectors share: vectors that runs take over from one another, and what a run left."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from engine.artifacts import Step
from engine.data.vectors import vectors_from_arrow
from engine.schema import ID, VECTOR, id_words
from engine.store import Store


def ids(out: Path) -> list[str]:
    return (out / "ids.txt").read_text().split()


def with_vectors(finished: Path, out: Path) -> Path:
    """A run folder in which the pool and its vectors are there already."""
    for folder in (finished / "steps").glob("[ei]*"):
        shutil.copytree(folder, out / "steps" / folder.name, dirs_exist_ok=True)
    return out


def pool_of(out: Path, text: str) -> tuple[Step, Step]:
    """The steps with the pool and with the vectors of a finished run."""
    store = Store(out)
    names = {name.rpartition("-")[0]: f"steps/{name}" for name in store.list("steps")}
    return Step.at(store, names["ingest"]), Step.at(store, names["embed" if text == "prompt" else "embed_pairs"])


def arrays_of(pool: Step, vectors: Step) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, id words and vectors of all rows."""
    table = pool.read_all([ID])
    return np.array(table[ID].to_pylist()), id_words(table[ID]), vectors_from_arrow(vectors.read_all([VECTOR])[VECTOR])


def scores(out: Path) -> dict[str, list[Any]]:
    return pq.read_table(out / "scores").to_pydict()
