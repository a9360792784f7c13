"""Stages that ask about a row's queries, its user messages, without their answers: open-set tags, and parse trees.

Several turns: the last user message, or every one, in a call of its own and without the messages before it. When one
of them has no readable reply the row has neither tags nor a count.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from engine.config_endpoint import AskingConfig, OpenAITaggerConfig, OpenAITreeConfig
from engine.judging.defence import suspect
from engine.judging.lists import parse_tags, tree_nodes
from engine.judging.pairwise import COST_COLUMNS, cost_columns, together
from engine.judging.prompts import Prompt, load_prompt
from engine.paid.passes import PaidPass
from engine.paid.prompt_stage import PromptStage
from engine.paid.replies import Reply
from engine.paid.service import identity_of, judging_identity
from engine.paid.stages import Calls, prompt_asks
from engine.schema import ERROR, MESSAGES
from engine.tag_normalisation import QUERY_TAGS, RAW_COLUMNS

NODES = "nodes"


def queries_of(messages: str, turns: str) -> list[str]:
    """The text of the last user message before the answer, or with other `turns` than "last" of all of them."""
    texts = [message["content"] for message in json.loads(messages)[:-1] if message["role"] == "user"]
    return texts[-1:] if turns == "last" else texts


class QueryStage(PromptStage):
    """Base of the stages.

    Args:
        prompt, suspects: as PromptStage; only the queries are looked at.
        turns: "last", or another word for all.
    """

    columns_in = (MESSAGES,)
    field = "query"  # what the prompt calls it

    def __init__(self, calls: Calls, member: str, retry: int, *, prompt: Prompt, suspects: str, turns: str) -> None:
        super().__init__(calls, member, retry, prompt=prompt, suspects=suspects)
        self.turns = turns

    def suspicion_of(self, row: Mapping[str, Any]) -> str | None:
        return next((why for text in queries_of(row[MESSAGES], self.turns) if (why := suspect(text))), None)

    async def about(self, row: dict[str, Any]) -> dict[str, Any]:
        shown = queries_of(row[MESSAGES], self.turns)
        readings = await together(
            *(self.reading({self.field: text}) for text in shown), paid=lambda reading: reading.replies
        )
        replies = [reply for reading in readings for reply in reading.replies]
        return {**self.columns([reading.value for reading in readings]), **cost_columns(replies)}

    def columns(self, values: list[Any]) -> dict[str, Any]:
        """The row's own columns, from what was read about each query."""
        raise NotImplementedError


class OpenAITagger(QueryStage):
    """Stage: the tags of each query of a row."""

    columns_out = (*RAW_COLUMNS, *COST_COLUMNS)
    purpose = "tags"
    sought = "list of tags"

    @property
    def wanted(self) -> str:
        return json.dumps({"tags": ["<tag>", "<tag>"]})

    def read(self, reply: Reply) -> list[str] | None:
        return parse_tags(reply.text)

    def columns(self, values: list[Any]) -> dict[str, Any]:
        return {QUERY_TAGS: values}


class OpenAITrees(QueryStage):
    """Stage: number of nodes of the parse trees of a row's queries."""

    columns_out = (pa.field(NODES, pa.float64()), pa.field(ERROR, pa.large_string()), *COST_COLUMNS)
    field = "instruction"
    purpose = "tree"
    sought = "tree"

    @property
    def wanted(self) -> str:
        return json.dumps({"tree": {"label": "<word>", "children": []}})

    def read(self, reply: Reply) -> int | None:
        return tree_nodes(reply.text)

    def columns(self, values: list[Any]) -> dict[str, Any]:
        total = math.fsum(values)
        return {NODES: total / len(values) if self.turns == "mean" else total}


def tagging_pass(config: OpenAITaggerConfig) -> PaidPass:
    """The pass of a tagger over the pool: the step `query_tags`.

    Raises:
        ConfigError: E250 to E255, the prompt.
    """
    return query_pass(config, "tags", "query_tags", "tagger", OpenAITagger, config.turns, (6, 40))


def tree_pass(config: OpenAITreeConfig) -> PaidPass:
    """The pass over the pool that draws trees: the step `trees`.

    Raises:
        ConfigError: E250 to E255, the prompt.
    """
    return query_pass(config, "tree", "trees", "parser", OpenAITrees, config.turns, (20, 300))


def query_pass(
    config: AskingConfig,
    kind: str,
    step: str,
    role: str,
    factory: type[QueryStage],
    turns: str,
    reply_tokens: tuple[float, float],
) -> PaidPass:
    """A pass that asks about user messages; the arguments are those of QueryStage and PaidPass.

    Args:
        kind: of prompt.

    Raises:
        ConfigError: E250 to E255, the prompt.
    """
    prompt = load_prompt(config.prompt, kind)
    return PaidPass(
        step=step,
        role=role,
        factory=factory,
        config=config,
        asks=prompt_asks(config, prompt),
        settings={"prompt": prompt, "suspects": config.suspects, "turns": turns},
        identity={**identity_of(config), **judging_identity(prompt)},
        reply_tokens=reply_tokens,
    )
