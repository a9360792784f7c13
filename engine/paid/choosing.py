"""The stage that asks which of the numbered instructions of a region to take: SelectLLM (arXiv 2401.16553).

One region is one call. A reply that does not name exactly as many different numbers of the list as were asked for is
asked about once more; then the region is an error, and nothing is taken from it. How regions are made is not known
here; texts that talk to the model are left out before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from engine.config_endpoint import OpenAIChooserConfig
from engine.judging.lists import parse_choice
from engine.judging.pairwise import COST_COLUMNS, cost_columns
from engine.judging.prompts import load_prompt
from engine.paid.passes import PaidPass
from engine.paid.prompt_stage import PromptStage
from engine.paid.service import identity_of, judging_identity
from engine.paid.stages import prompt_asks
from engine.schema import ERROR

COUNT, INSTRUCTIONS, CHOSEN = "count", "instructions", "chosen"


class OpenAIChooser(PromptStage):
    """Stage: the places, from 0, of the instructions that are taken from each region, in the order of the reply."""

    columns_in = (COUNT, INSTRUCTIONS)
    columns_out = (pa.field(CHOSEN, pa.list_(pa.int32())), pa.field(ERROR, pa.large_string()), *COST_COLUMNS)
    purpose = "choice"
    sought = "valid choice"

    def suspicion_of(self, row: Mapping[str, Any]) -> None:
        return None

    async def about(self, row: dict[str, Any]) -> dict[str, Any]:
        texts, count = json.loads(row[INSTRUCTIONS]), row[COUNT]
        numbered = [{"id": number, "text": text} for number, text in enumerate(texts, 1)]
        reading = await self.reading(
            {COUNT: count, INSTRUCTIONS: numbered}, lambda reply: parse_choice(reply.text, len(texts), count)
        )
        return {CHOSEN: [number - 1 for number in reading.value], **cost_columns(reading.replies)}

    @property
    def wanted(self) -> str:
        return f"{json.dumps({'ids': ['<number>']})}, with as many different numbers of the list as the count says"


def choice_pass(
    config: OpenAIChooserConfig, asked: Callable[[pa.Table, int, int], tuple[pa.Table, int]] | None = None
) -> PaidPass:
    """The pass over regions: the step `choices`.

    Args:
        asked: for the plan, as in PaidPass.

    Raises:
        ConfigError: E250 to E255, the prompt.
    """
    prompt = load_prompt(config.prompt, "choice")
    return PaidPass(
        step="choices",
        role="chooser",
        factory=OpenAIChooser,
        config=config,
        asks=prompt_asks(config, prompt),
        settings={"prompt": prompt, "suspects": config.suspects},
        identity={**identity_of(config), **judging_identity(prompt)},
        reply_tokens=(6, 20),
        asked=asked,
    )
