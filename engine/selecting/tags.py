"""A selector by tags: rows that cover as many as possible, as InsTag samples (arXiv 2308.07074)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine.algorithms.ragged import distinct_tags
from engine.algorithms.tag_coverage import coverage, tag_coverage
from engine.data.tag_lists import TagLists
from engine.errors import ConfigError
from engine.schema import ROW
from engine.selecting.base import Narrowing, Sized


class TagCoverage(Sized):
    """Rows from the most tags to the fewest, each of which adds a tag; then again from nothing covered."""

    kind: Literal["tag_coverage"] = "tag_coverage"
    tags: str = Field(default="tags", description="Name of the score that holds the tags")
    by: str | None = Field(
        default=None, description="Score that rows are walked by, highest first; default: their number of tags"
    )

    @property
    def reads(self) -> Sequence[str]:
        return [name for name in (self.tags, self.by) if name is not None]

    @property
    def reads_lists(self) -> Sequence[str]:
        return (self.tags,)

    def narrow(self, narrowing: Narrowing, num: int) -> Narrowing:
        """Holds the tags of all rows in this process, about 40 bytes for each.

        Raises:
            ConfigError: E257, the score named `tags` is none.
        """
        narrowing = narrowing.scored(self.reads)
        lists, rows, words, values = TagLists(), [np.empty(0, np.int64)], [np.empty(0, np.uint64)], [np.empty(0)]
        for table in narrowing.parts(self.reads):
            if not pa.types.is_list(table.schema.field(self.tags).type):
                raise ConfigError(
                    f"selector tag_coverage got numbers, not tags, from score {self.tags!r}",
                    fix="give `tags` the name of a score of kind tags",
                    code="E257",
                )
            lists.add(table[self.tags])
            rows.append(table[ROW].to_numpy())
            words.append(narrowing.words(rows[-1]))
            if self.by is not None:
                values.append(table[self.by].to_numpy().astype(np.float64))
        rows_N, (tags_T, starts_N1) = np.concatenate(rows), distinct_tags(*lists.arrays())
        complexity_N = np.diff(starts_N1).astype(np.float64) if self.by is None else np.concatenate(values)
        chosen_M = tag_coverage(tags_T, starts_N1, complexity_N, np.concatenate(words), num)
        covered, mean = coverage(tags_T, starts_N1, chosen_M)
        narrowing.context.runtime.observer.note(
            f"{len(chosen_M):,} rows have {covered:.1%} of {len(lists.names):,} tags, {mean:.2f} tags each"
        )
        narrowing = narrowing.without(rows_N[np.diff(starts_N1) == 0], "has no tag")
        return narrowing.kept(
            rows_N[chosen_M], "its tags are covered by rows with more", "adds a tag to those of the rows before it"
        )
