"""Compose: your own method from scores and selectors, written in the config.

`scores` names columns over the pool: measured by a pass (token log-probabilities, a judge's rating, a reward model, a
recorded number, a cluster, a length) or derived from columns named before them (a product, a weighted sum). `select`
is a chain: every selector narrows what the one before it left, and the last one leaves the budget. With a `rewriter`
all this is done over the pool and what a model makes of it. The named recipes are such compositions wherever they can
be; for example `superfiltering` is

    scores:
      ifd: {kind: token_score, model: openai-community/gpt2, template: plain, value: ifd_perplexity}
    select:
      - {kind: keep, by: ifd, below: 1.0}
      - {kind: top, by: ifd}

Needs: what its scores need.
Cost: of its passes; equal passes are made once, and shared with other recipes in the same run folder.
Known bias: of its parts.

Differs from the paper in: there is none.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from engine.composition import Composition, composed
from engine.config import RecipeConfig
from engine.config_endpoint import OpenAIRewriterConfig
from engine.paid.rewriting import rewriting_pass
from engine.scoring import AnyScore
from engine.selecting import AnySelector

EXAMPLE = {
    "scores": {"words": {"kind": "length", "of": "response_words"}},
    "select": [{"kind": "keep", "by": "words", "at_most": 500}, {"kind": "top", "by": "words"}],
}


class Config(RecipeConfig):
    name: Literal["compose"] = "compose"
    scores: dict[str, AnyScore] = Field(default_factory=dict, description="Columns over the pool, by name")
    rewriter: OpenAIRewriterConfig | None = Field(
        default=None, description="A model that makes a new row of each row first; scores and selectors see both"
    )
    select: list[AnySelector] = Field(description="Selectors in order; the last one leaves the budget")

    @model_validator(mode="after")
    def _fits(self) -> Config:
        composition(self)
        return self


def composition(config: Config) -> Composition:
    rewriting = None if config.rewriter is None else rewriting_pass(config.rewriter)
    return Composition(config.scores, config.select, rewriting=rewriting)


select = composed(composition)
