"""The stage that makes a new example of each row: a model rewrites its last user message and answers what it wrote.

It knows nothing of what becomes of the examples (engine/expansion.py).
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from engine.config_endpoint import OpenAIRewriterConfig
from engine.judging.lists import Example, parse_example
from engine.judging.pairwise import COST_COLUMNS
from engine.paid.passes import PaidPass
from engine.paid.replies import Reply
from engine.paid.tagging import QueryStage, query_pass
from engine.schema import ERROR

NEW_INSTRUCTION, NEW_RESPONSE = "new_instruction", "new_response"


class OpenAIRewriter(QueryStage):
    """Stage: an instruction and a response made of each row's last user message."""

    columns_out = (
        pa.field(NEW_INSTRUCTION, pa.large_string()),
        pa.field(NEW_RESPONSE, pa.large_string()),
        pa.field(ERROR, pa.large_string()),
        *COST_COLUMNS,
    )
    field = "task"
    purpose = "rewrite"
    sought = "new example"

    @property
    def wanted(self) -> str:
        return json.dumps({"instruction": "<the new task>", "response": "<its response>"})

    def read(self, reply: Reply) -> Example | None:
        return parse_example(reply.text)

    def columns(self, values: list[Any]) -> dict[str, Any]:
        return {NEW_INSTRUCTION: values[0].instruction, NEW_RESPONSE: values[0].response}


def rewriting_pass(config: OpenAIRewriterConfig) -> PaidPass:
    """The pass of a rewriter over the pool: the step `rewritten`.

    Raises:
        ConfigError: E250 to E255, the prompt.
    """
    return query_pass(
        config, "rewrite", "rewritten", "rewriter", OpenAIRewriter, "last", (60, min(400, config.max_tokens))
    )
