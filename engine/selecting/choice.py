"""A selector that lets a language model choose among small groups of instructions: SelectLLM (arXiv 2401.16553).

Several turns: the instruction is all text before the last assistant message, as the prompt of a row is everywhere.
"""

# Shape letters: M rows left, R regions, K rows of a region, D dimensions, I rows chosen.

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from engine.algorithms.exact import similarity_tiles
from engine.algorithms.ranking import top_rows
from engine.algorithms.regions import fill_regions, shares
from engine.artifacts import Step, take_rows, write_table
from engine.config import budget_rows
from engine.config_endpoint import OpenAIChooserConfig
from engine.data.vectors import vectors_from_arrow
from engine.errors import ConfigError
from engine.greedy_selection import cluster
from engine.judging.defence import suspect
from engine.paid.choosing import CHOSEN, COUNT, INSTRUCTIONS, choice_pass
from engine.paid.passes import PaidPass
from engine.recipes.base import Context
from engine.schema import ERROR, ID, PROMPT, ROW, VECTOR, id_words, seeded_hash
from engine.selecting.base import Narrowing
from engine.selecting.vectors import InSpace
from engine.shards import PoolIndex
from engine.space import Space

FEWEST_ROWS, MOST_ROWS = 14, 51  # of a region in the paper: Dolly, and Alpaca (cleaned)
PART_REGIONS = 64
MEMBERS, SUSPECTS = "members", "suspects"
REGION_SCHEMA = pa.schema(
    [
        pa.field(ROW, pa.int64()),
        pa.field(MEMBERS, pa.list_(pa.int64())),  # rows of the pool, in the order in which they are numbered
        pa.field(SUSPECTS, pa.list_(pa.int64())),  # rows of the pool that are not shown
        pa.field(COUNT, pa.int64()),  # rows to choose
        pa.field(INSTRUCTIONS, pa.large_string()),  # JSON list of texts
    ]
)


class LlmChoice(InSpace):
    """The instructions that a language model picks from regions, each with one row of every K-Means cluster."""

    kind: Literal["llm_choice"] = "llm_choice"
    chooser: OpenAIChooserConfig = Field(description="Who chooses")
    regions: int = Field(default=1000, ge=1, description="Most regions; each is one call")
    region_rows: int | None = Field(
        default=None, ge=2, description="Rows of a region; default: as the regions use all rows, from 14 to 51"
    )
    iterations: int = Field(default=20, ge=1, description="Most K-Means iterations")
    max_chars: int = Field(default=2000, ge=1, description="Longer instructions are shown up to here")

    @property
    def passes(self) -> Sequence[PaidPass]:
        return (choice_pass(self.chooser, self._asked),)

    def sizes(self, rows: int, num: int) -> tuple[int, int]:
        """(regions, rows of each) when `num` of `rows` are to be chosen."""
        size = min(self.region_rows or min(max(rows // self.regions, FEWEST_ROWS), MOST_ROWS), rows)
        return min(self.regions, rows // size, num), size

    def narrow(self, narrowing: Narrowing, num: int) -> Narrowing:
        """Leaves what the model picks. A region without a valid choice gives nothing, so fewer may be left.

        Raises:
            ConfigError: E258, the regions have fewer rows than are to be chosen.
            TooManyFailures: E600, in too large a share of the regions there is no valid choice.
        """
        context, space = narrowing.context, self.space(narrowing)
        regions = self._regions(context, space, min(num, space.count))
        choices = choice_pass(self.chooser).run(context, regions)
        members, replies = regions.read_all([MEMBERS, SUSPECTS]), choices.read_all([CHOSEN, ERROR])
        out: list[tuple[int, int]] = []  # (row, place of its reason)
        reasons = ["not chosen in its region", "suspect: its text talks to the judge"]
        ranked: list[tuple[int, int, int]] = []  # (place in the reply, region, row)
        for number, (region, reply) in enumerate(zip(members.to_pylist(), replies.to_pylist(), strict=True)):
            chosen, why = reply[CHOSEN] or [], 0
            if reply[ERROR] is not None:
                why = len(reasons)
                reasons.append(f"its region has no choice: {reply[ERROR]}")
            ranked += [(place, number, region[MEMBERS][at]) for place, at in enumerate(chosen)]
            out += [(row, why) for at, row in enumerate(region[MEMBERS]) if at not in chosen]
            out += [(row, 1) for row in region[SUSPECTS]]
        rows, which = np.array(out, dtype=np.int64).reshape(-1, 2).T
        narrowing = narrowing.sorted_out(rows, which.astype(np.int32), reasons)
        order_I = np.array([row for _, _, row in sorted(ranked)], dtype=np.int64)
        return narrowing.kept(order_I, "in no region", "chosen in its region by the model")

    def _regions(self, context: Context, space: Space, num: int) -> Step:
        """The step `regions`."""
        _, size = self.sizes(space.count, num)
        around = {"clusters": size, "iterations": self.iterations, "seed": context.config.seed}
        centroids = context.step("centroids", around, [space.fingerprint])
        if centroids.record() is None:
            index = PoolIndex(context.runtime, space.rows, space.vectors)
            try:
                cluster(context, index, centroids, size, self.iterations)
            finally:
                index.close()
        settings = {"num": num, "regions": self.regions, "max_chars": self.max_chars, "suspects": self.chooser.suspects}
        target = context.step("regions", {**settings, "part_regions": PART_REGIONS}, [centroids.fingerprint])
        if not context.reused(target):
            members_RK = self._members(context, space, vectors_of(centroids), num)
            table = self._table(context, members_RK, shares(num, len(members_RK)))
            write_table(target, table, PART_REGIONS)
        return target

    def _members(self, context: Context, space: Space, centroids_KD: np.ndarray, num: int) -> np.ndarray:
        """(R, K) rows of the pool, those of a region in the order of a hash; 4 bytes per row and centre in memory."""
        size = len(centroids_KD)  # K-Means gives fewer where rows are the same
        num_regions = min(self.regions, space.count // size, num)
        if num_regions * size < num:
            raise ConfigError(
                f"{num_regions:,} regions of {size} rows cannot give {num:,} rows",
                fix="raise regions or region_rows of selector llm_choice, or lower the budget",
                code="E258",
            )
        similar, words = [], []
        for part in space.vectors.require().parts:
            x_MD = vectors_from_arrow(space.vectors.read(part.index, [VECTOR])[VECTOR])
            words.append(id_words(space.rows.read(part.index, [ID])[ID]))
            similar += [tile_TK.numpy().astype(np.float32) for _, _, tile_TK in similarity_tiles(x_MD, centroids_KD)]
        similar_MK, words_M = np.concatenate(similar), np.concatenate(words)
        nearest_KM = np.stack([top_rows(similar_MK[:, k], words_M, num_regions * size) for k in range(size)])
        regions_RK = fill_regions(nearest_KM, num_regions)
        keys_RK = seeded_hash(words_M[regions_RK], context.config.seed, "region")
        mixed_RK = np.take_along_axis(regions_RK, np.argsort(keys_RK, axis=1, kind="stable"), axis=1)
        return space.pool_rows(mixed_RK.ravel()).reshape(mixed_RK.shape)

    def _table(self, context: Context, members_RK: np.ndarray, counts_R: np.ndarray) -> pa.Table:
        texts = iter(take_rows(context.pool, members_RK.ravel(), [PROMPT])[PROMPT].to_pylist())
        regions: list[dict[str, Any]] = []
        for members, count in zip(members_RK.tolist(), counts_R.tolist(), strict=True):
            shown = [(row, text[: self.max_chars]) for row, text in zip(members, texts, strict=False)]
            regions.append(self._region(shown, count))
        numbered = [{ROW: number, **region} for number, region in enumerate(one for one in regions if one[MEMBERS])]
        return pa.Table.from_pylist(numbered, schema=REGION_SCHEMA)

    def _region(self, rows: Sequence[tuple[int, str]], count: int) -> dict[str, Any]:
        hidden = {row for row, text in rows if self.chooser.suspects == "skip" and suspect(text)}
        shown = [(row, text) for row, text in rows if row not in hidden]
        return {
            MEMBERS: [row for row, _ in shown],
            SUSPECTS: sorted(hidden),
            COUNT: min(count, len(shown)),
            INSTRUCTIONS: json.dumps([text for _, text in shown]),
        }

    def _asked(self, sample: pa.Table, rows: int, budget: int) -> tuple[pa.Table, int]:
        """For the plan: regions of a sample of the pool as it comes, and how many regions there will be."""
        num = budget if self.rows is None else budget_rows(self.rows, rows)
        num_regions, size = self.sizes(rows, num)
        texts = [text[: self.max_chars] for text in sample[PROMPT].to_pylist()]
        groups = [list(enumerate(texts[low : low + size])) for low in range(0, max(1, len(texts) - size + 1), size)]
        regions = [{ROW: number, **self._region(group, num // num_regions)} for number, group in enumerate(groups)]
        return pa.Table.from_pylist(regions, schema=REGION_SCHEMA), num_regions


def vectors_of(centroids: Step) -> np.ndarray:
    """(K, D) float16."""
    return vectors_from_arrow(centroids.read_all([VECTOR])[VECTOR])
