"""The stage that rates responses: a number for each row, on the scale that the prompt declares.

Several turns: `last` rates the last assistant message given everything before it; `mean` and `sum` rate every
assistant message that has text, each given everything before it, one call a message, and put the ratings together.
When one of them has no rating the row has none. `ratings` keeps them apart. A prompt with several criteria gives their
mean.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pyarrow as pa

from engine.config_endpoint import OpenAIRaterConfig
from engine.errors import ConfigError
from engine.judging.checklists import parse_criteria
from engine.judging.pairwise import COST_COLUMNS, conversation, cost_columns, together
from engine.judging.prompts import Prompt, load_prompt
from engine.judging.verdicts import expected_rating, parse_rating
from engine.paid.passes import PaidPass
from engine.paid.prompt_stage import PromptStage
from engine.paid.replies import Reply
from engine.paid.service import identity_of, judging_identity
from engine.paid.stages import Calls, prompt_asks
from engine.schema import ERROR, MESSAGES, RESPONSE, canonical_json

RATING, RATINGS = "rating", "ratings"


class OpenAIRater(PromptStage):
    """Stage: `rating` of each row, and `ratings`, those it is made of, in the order of the conversation.

    Args:
        prompt: of kind rating.
        turns: "last", "mean" or "sum".
        expectation: the mean of the scores by their token probabilities, instead of the score that is written.
        suspects: as PromptStage.
    """

    columns_out = (
        pa.field(RATING, pa.float64()),
        pa.field(RATINGS, pa.list_(pa.float64())),
        pa.field(ERROR, pa.large_string()),
        *COST_COLUMNS,
    )

    def __init__(
        self, calls: Calls, member: str, retry: int, *, prompt: Prompt, turns: str, expectation: bool, suspects: str
    ) -> None:
        super().__init__(calls, member, retry, prompt=prompt, suspects=suspects)
        self.turns, self.expectation = turns, expectation
        self.sought = "probabilities of scores" if expectation else "score"

    async def about(self, row: dict[str, Any]) -> dict[str, Any]:
        shown = [row] if self.turns == "last" else turns_of(row)
        readings = await together(
            *(self.reading({"conversation": conversation(one), "answer": one[RESPONSE]}) for one in shown),
            paid=lambda reading: reading.replies,
        )
        ratings = [float(reading.value) for reading in readings]
        total = math.fsum(ratings)
        rating = total / len(ratings) if self.turns == "mean" else total
        costs = cost_columns([reply for reading in readings for reply in reading.replies])
        return {RATING: rating, RATINGS: ratings, **costs}

    def read(self, reply: Reply) -> float | None:
        prompt = self.prompt
        if self.expectation:
            return expected_rating(reply.tokens, prompt.parser, prompt.scale)
        if prompt.parser == "criteria":
            scores = parse_criteria(reply.text, prompt.criteria, prompt.scale or (0.0, 0.0))
            return None if scores is None else math.fsum(scores.values()) / len(scores)
        return parse_rating(reply.text, prompt.parser, prompt.scale)

    @property
    def wanted(self) -> str:
        forms = {
            "rating": json.dumps({"score": "<your score>"}),
            "criteria": json.dumps(dict.fromkeys(self.prompt.criteria, "<your score>")),
            "score_line": 'a line "Score: <your score>"',
        }
        return forms.get(self.prompt.parser, "a number")


def turns_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each assistant message that has text, which ends there; the last is the row itself."""
    messages = json.loads(row[MESSAGES])
    places = [
        place
        for place, message in enumerate(messages[:-1])
        if message["role"] == "assistant" and str(message.get("content") or "").strip()
    ]
    earlier = [
        {**row, MESSAGES: canonical_json(messages[: place + 1]), RESPONSE: messages[place]["content"]}
        for place in places
    ]
    return [*earlier, row]


def check_digits(prompt: Prompt) -> None:
    """A score that one digit can write.

    Raises:
        ConfigError: E256, the prompt's scale has others.
    """
    low, high = prompt.scale or (0.0, 0.0)
    if low < 0 or high > 9 or prompt.parser == "criteria":
        raise ConfigError(
            f"`expectation` weighs single scores of one digit, and prompt {prompt.spec} asks for others",
            fix="take a prompt for one score on a scale between 0 and 9, or expectation: false",
            code="E256",
        )


def rating_pass(config: OpenAIRaterConfig) -> PaidPass:
    """The pass of a rater over the pool: the step `ratings`.

    Raises:
        ConfigError: E250 to E255, the prompt; E256, its scale has no expectation.
    """
    prompt = load_prompt(config.prompt, "rating")
    if config.expectation:
        check_digits(prompt)
    names = ("turns", "expectation", "suspects")
    return PaidPass(
        step="ratings",
        role="rater",
        factory=OpenAIRater,
        config=config,
        asks={**prompt_asks(config, prompt), "logprobs": config.expectation},
        settings={"prompt": prompt, **{name: getattr(config, name) for name in names}},
        identity={**identity_of(config), **judging_identity(prompt)},
        reply_tokens=(1, 9) if prompt.schema else (1, config.max_tokens / 2),
    )
