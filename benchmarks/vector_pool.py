"""Pools of synthetic vectors for benchmarks of selection: unit vectors around centres, as steps of a run folder.

It knows no method. Vectors are made in parts, so a million of them never lie in memory here.
"""

# N rows, D dimensions, K centres

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from engine.artifacts import Step
from engine.data.vectors import vectors_from_arrow, vectors_to_arrow
from engine.paid.service import PaidRun
from engine.recipes.base import Context
from engine.schema import ID, ROW, VECTOR
from engine.settings import load_config
from engine.store import Store

PART_ROWS = 8192


class Quiet:
    """An observer that remembers the seconds of steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def step_started(self, name: str, total_rows: int | None) -> None:
        """Not remembered."""

    def advance(self, name: str, rows: int) -> None:
        """Not remembered."""

    def used(self, name: str, amounts: Any) -> None:
        """Not printed."""

    def step_done(self, name: str, rows: int, seconds: float, failed: int, reused: bool) -> None:
        self.seconds[name] = round(seconds, 2)

    def round_done(self, metrics: dict[str, Any]) -> None:
        """Not remembered."""

    def spent(self, step: str, facts: Mapping[str, Any]) -> None:
        """Not remembered."""

    def note(self, text: str) -> None:
        print(text, flush=True)


def clustered(rows: int, dim: int, centres: int, noise: float, seed: int, start: int = 0) -> np.ndarray:
    """(rows, D) float16 unit vectors: a random centre plus noise of that length relative to it.

    Two rows of a centre have a cosine of about 1 / (1 + noise^2). `start` is that of the part.
    """
    centres_KD = np.random.default_rng(seed).standard_normal((centres, dim), dtype=np.float32)
    rng = np.random.default_rng([seed, start])
    x_ND = centres_KD[rng.integers(centres, size=rows)]
    x_ND = x_ND + np.float32(noise) * rng.standard_normal((rows, dim), dtype=np.float32)
    return (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float16)


def make_pool(folder: Path, rows: int, dim: int, centres: int, noise: float, seed: int = 0) -> None:
    """The steps `ingest` (row and id only) and `embed` of a run folder."""
    pool, vectors = steps(folder)
    started = time.monotonic()
    for index, start in enumerate(range(0, rows, PART_ROWS)):
        count = min(PART_ROWS, rows - start)
        row_M = pa.array(np.arange(start, start + count))
        pool.commit(index, pa.table([row_M, pa.array(hex_ids(count, seed, start))], names=[ROW, ID]))
        x = vectors_to_arrow(clustered(count, dim, centres, noise, seed, start))
        vectors.commit(index, pa.table([row_M, x], names=[ROW, VECTOR]))
    pool.finish(started=started, rows=rows)
    vectors.finish(started=started, rows=rows)


def hex_ids(count: int, seed: int, start: int) -> list[str]:
    """Ids of 32 random hex digits."""
    digits = np.random.default_rng([seed, 1, start]).bytes(16 * count).hex()
    return [digits[32 * k : 32 * k + 32] for k in range(count)]


def steps(folder: Path) -> tuple[Step, Step]:
    store = Store(folder)
    return Step(store, "ingest", {}), Step(store, "embed", {})


def read_vectors(folder: Path) -> np.ndarray:
    """(N, D) float32, all of them."""
    return vectors_from_arrow(steps(folder)[1].read_all([VECTOR])[VECTOR]).astype(np.float32)


def context_for(pool: Path, out: Path, runtime: Any, budget: int) -> tuple[Context, Step]:
    """A recipe's view of a new run over that pool, and the vectors."""
    config = load_config("kcenter", ["pool.jsonl", f"out={out}"])
    ingest, embed = steps(pool)
    store = Store(out)
    return Context(config, store, ingest, runtime, budget, PaidRun(store, runtime, config.paid), store), embed
