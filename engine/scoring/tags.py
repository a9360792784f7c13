"""Tags of rows, by a language model or recorded, and what is made of them: InsTag (arXiv 2308.07074).

A row's score is the list of its normalised tags; the pass also carries `tag_complexity`, the mean number of tags of a
query. Several turns: as the tagger's `turns` says, the last user message is tagged, or every one; a row has the tags of
all its tagged queries. A recorded list of tags is that of one query, a list of lists those of several.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field

from engine.config import RecorderConfig
from engine.config_endpoint import OpenAITaggerConfig
from engine.judging.lists import is_tag
from engine.models.recorded import Recording
from engine.paid.passes import PaidPass
from engine.paid.tagging import tagging_pass
from engine.recipes.base import Context
from engine.schema import ERROR
from engine.scoring.base import Measured, Score
from engine.scoring.recorded import recorded_step
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


TaggerConfig = Annotated[OpenAITaggerConfig | RecorderConfig, Field(discriminator="kind")]


class Tags(Measured):
    """Normalised tags of each row."""

    kind: Literal["tags"] = "tags"
    tagger: TaggerConfig = Field(description="Who tags")
    normalise: Normalisation | None = Field(
        default_factory=Normalisation, description="How many spellings become one tag; null: tags as they are given"
    )

    @property
    def is_list(self) -> bool:
        return True

    @property
    def carries(self) -> Sequence[str]:
        return (COMPLEXITY,)

    @property
    def passes(self) -> Sequence[PaidPass]:
        return (tagging_pass(self.tagger),) if isinstance(self.tagger, OpenAITaggerConfig) else ()

    def measure(self, context: Context) -> Score:
        if isinstance(self.tagger, OpenAITaggerConfig):
            raw = tagging_pass(self.tagger).run(context)
        else:
            settings = self.tagger.model_dump(exclude={"kind"})
            raw = recorded_step(context, "recorded_tags", RecordedTags, settings, TAGS)
        return Score.of(normal_tags(context, raw, self.normalise), TAGS)
