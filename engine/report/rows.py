"""Texts and vectors of a few rows of a run, and the language of texts."""

# Shape letters: I rows wanted, D dimensions.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.artifacts import Step, take_rows
from engine.data.vectors import vectors_from_arrow
from engine.schema import PROMPT, RESPONSE, ROW, VECTOR
from engine.web_page import cut_texts

READ_CHARS = 4_000  # of a prompt or a response; the rest of a longer one is not looked at
SURE = 0.5  # probability from which a language counts as known
UNKNOWN = "unknown"


def texts_of(pool: Step, rows_I: np.ndarray) -> dict[int, dict[str, str]]:
    """Row -> prompt and response, each cut after READ_CHARS characters."""

    def cut(table: pa.Table) -> pa.Table:
        return cut_texts(table, [PROMPT, RESPONSE], READ_CHARS)

    table = take_rows(pool, rows_I, [PROMPT, RESPONSE], cut)
    return {entry[ROW]: entry for entry in table.to_pylist()}


def vector_step(steps: Mapping[str, Step], pool_rows: int) -> Step | None:
    """The step with one vector per row of the pool that the run's method looked at, if it has one."""
    for name, step in steps.items():
        if name.startswith("embed") and step.require().rows == pool_rows and step.require().parts:
            file = f"{step.folder}/{step.part(0).file}"
            if VECTOR in pq.read_schema(step.store.open_read(file)).names:
                return step
    return None


def vectors_of(step: Step, rows_I: np.ndarray) -> np.ndarray:
    """(I, D) float32."""
    return vectors_from_arrow(take_rows(step, rows_I, [VECTOR])[VECTOR]).astype(np.float32)


def languages(texts: Sequence[str]) -> list[str]:
    """ISO 639-1 code of each text by py3langid (Lui and Baldwin 2012), "unknown" where it is not sure."""
    identifier = _identifier()
    found = [identifier.classify(text)[0] if text.strip() else "und" for text in texts]
    return [UNKNOWN if code == "und" else code for code in found]


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=SURE)
