"""A target set: examples of what the selection is for, read and embedded like the pool.

It knows nothing of how rows are compared with it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import Field, field_validator

from engine.artifacts import Step
from engine.config import DataConfig
from engine.data.inputs import resolve_inputs
from engine.greedy_selection import VectorConfig, embed
from engine.pool import ingest
from engine.recipes.base import Context


class TargetConfig(VectorConfig):
    """What is similar to what."""

    target: DataConfig = Field(description="Target examples, in any format that a pool may have: path, or settings")

    @field_validator("target", mode="before")
    @classmethod
    def _target_from_path(cls, value: Any) -> Any:
        """`target: dev.jsonl` is short for `target: {path: dev.jsonl}`."""
        return {"path": value} if isinstance(value, (str, list)) else value


def target_set(context: Context, config: TargetConfig) -> tuple[Step, Step]:
    """The examples as a pool of their own, the step `target`, and a unit vector for each.

    Raises:
        DataError: E401 to E408, as of any input.
    """
    own = context.config.model_copy(update={"data": config.target})
    rows = ingest(own, context.store, context.runtime, resolve_inputs(config.target.path), "target")
    facts = rows.require().extra
    if facts["rejected"] or facts["duplicates"]:
        context.runtime.observer.note(
            f"of {facts['rows_read']:,} target examples {facts['rejected']:,} were rejected and "
            f"{facts['duplicates']:,} were duplicates"
        )
    return rows, embed(replace(context, config=own, pool=rows), config)
