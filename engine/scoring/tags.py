"""Tags of rows, by a language model or recorded, and what is made of them: InsTag (arXiv 2308.07074).

A row's score is the list of its normalised tags; the pass also carries `tag_complexity`, the mean number of tags of a
query. Several turns: as the tagger's `turns` says, the last user message is tagged, or every one; a row has the tags of
all its tagged queries. A recorded list of tags is that of one query, a list of lists those of several.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from engine.artifacts import Step
from engine.backends import pinned
from engine.config import RecorderConfig
from engine.judging.lists import is_tag
from engine.models.recorded import Recording
from engine.recipes.base import Context
from engine.runtime import StageSpec
from engine.schema import ERROR
from engine.scoring.base import Measured, Score
from engine.tag_normalisation import COMPLEXITY, QUERY_TAGS, RAW_COLUMNS, TAGS, Normalisation, normal_tags


class RecordedTags(Recording):
    """Stage: the tags of each query. A value may be a list of texts, one text with commas, or a list of such lists."""

    columns_out = tuple(RAW_COLUMNS)

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = [_queries(value) for value in self.values(table)]
        return pa.Table.from_pylist(rows, schema=pa.schema(RAW_COLUMNS))


def _queries(value: Any) -> dict[str, Any]:
    """The columns of a row."""
    if value is None:
        return {ERROR: "no recorded tags"}
    queries = value if isinstance(value, list) and value and all(isinstance(one, list) for one in value) else [value]
    found = [_tags(query) for query in queries]
    if None in found:
        return {ERROR: f"not a list of tags: {json.dumps(value, default=str)[:80]}"}
    return {QUERY_TAGS: found}


def _tags(value: Any) -> list[str] | None:
    """A list of tags; None when the value is none."""
    if isinstance(value, str):
        value = [tag.strip() for tag in value.split(",") if tag.strip()]
    return value if isinstance(value, list) and all(is_tag(tag) for tag in value) else None


class Tags(Measured):
    """Normalised tags of each row."""

    kind: Literal["tags"] = "tags"
    tagger: RecorderConfig = Field(description="Who tags")
    normalise: Normalisation | None = Field(
        default_factory=Normalisation, description="How many spellings become one tag; null: tags as they are given"
    )

    @property
    def carries(self) -> Sequence[str]:
        return (COMPLEXITY,)

    def measure(self, context: Context) -> Score:
        return Score.of(normal_tags(context, self._raw(context), self.normalise), TAGS)

    def _raw(self, context: Context) -> Step:
        settings = self.tagger.model_dump(exclude={"kind"})
        if self.tagger.file is not None and self.tagger.column is None:
            settings["column"] = TAGS
        kwargs, identity = pinned("recorded_tags", settings)
        target = context.step("recorded_tags", identity, [context.pool.fingerprint])
        stage = StageSpec(
            name="recorded_tags",
            factory=RecordedTags,
            kwargs=kwargs,
            columns_in=RecordedTags.columns_in,
            columns_out=RecordedTags.columns_out,
        )
        record = context.runtime.map_parts(stage, context.pool, target)
        context.check_failures(target.folder, record.failed, record.rows)
        return target
