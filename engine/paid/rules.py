"""The stage that checks responses against a list of rules: yes or no for each, and an overall answer, which decides.

Several turns: the last response is checked, given everything before it. A reply in which an answer is missing or
unclear is asked about once more and then leaves an error row.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from engine.config_endpoint import OpenAICheckerConfig
from engine.judging.checklists import Checked, parse_checklist
from engine.judging.pairwise import COST_COLUMNS, conversation, cost_columns
from engine.judging.prompts import OVERALL, load_prompt
from engine.paid.passes import PaidPass
from engine.paid.prompt_stage import PromptStage
from engine.paid.replies import Reply
from engine.paid.service import identity_of, judging_identity
from engine.paid.stages import prompt_asks
from engine.schema import ERROR, RESPONSE

PASSED, FAILED_RULES = "passed", "failed_rules"


class OpenAIChecker(PromptStage):
    """Stage: `passed`, 1.0 or 0.0, and the names of the rules that are not met."""

    columns_out = (
        pa.field(PASSED, pa.float64()),
        pa.field(FAILED_RULES, pa.list_(pa.string())),
        pa.field(ERROR, pa.large_string()),
        *COST_COLUMNS,
    )
    purpose = "rules"
    sought = "yes or no for every rule"

    async def about(self, row: dict[str, Any]) -> dict[str, Any]:
        reading = await self.reading({"conversation": conversation(row), "answer": row[RESPONSE]})
        return {
            PASSED: float(reading.value.overall),
            FAILED_RULES: list(reading.value.failed),
            **cost_columns(reading.replies),
        }

    def read(self, reply: Reply) -> Checked | None:
        return parse_checklist(reply.text, [name for name, _ in self.prompt.rules], OVERALL)

    @property
    def wanted(self) -> str:
        return json.dumps(dict.fromkeys([*(name for name, _ in self.prompt.rules), OVERALL], "yes or no"))


def rules_pass(config: OpenAICheckerConfig) -> PaidPass:
    """The pass of a checker over the pool: the step `rules`.

    Raises:
        ConfigError: E250 to E255, the prompt.
    """
    prompt = load_prompt(config.prompt, "rules", config.rules)
    return PaidPass(
        step="rules",
        role="checker",
        factory=OpenAIChecker,
        config=config,
        asks=prompt_asks(config, prompt),
        settings={"prompt": prompt, "suspects": config.suspects},
        identity={**identity_of(config), **judging_identity(prompt)},
        reply_tokens=(4 * len(prompt.rules), 8 * (1 + len(prompt.rules))),
    )
