"""Perplexity of the response given its prompt: the lowest, the highest, or the middle of the pool. A baseline.

    perplexity = exp(s(A|Q))

with s the mean NLL of the response's tokens. Low keeps what the model would have said, high what surprises it. The
middle avoids both ends, the trivial and the broken: "When Less is More: Investigating Data Pruning for Pretraining LLMs
at Scale" (Marion et al. 2023, arXiv 2309.04564) finds it best for pretraining data. High and low perplexity are also
the usual baselines of selection papers (Active Instruction Tuning, arXiv 2311.00288).

Needs: a causal language model.
Cost: the passes of recipe `ifd`, which share their step. A million rows of 600 tokens in both passes and GPT-2 (124M):
1.5e17 operations.
Known bias: low prefers long, formulaic responses; high prefers short ones, rare languages, code and noise.

Differs from the paper in: Marion et al. score whole documents; here the response is scored given its prompt. The middle
is the budget's worth of ranks around the median.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.composition import Composition, composed
from engine.config import RecipeConfig
from engine.scoring.tokens import TokenScore
from engine.selecting.ranks import Middle, Top
from engine.token_scoring import LanguageModelConfig

PERPLEXITY = "perplexity"


class Config(LanguageModelConfig, RecipeConfig):
    name: Literal["perplexity"] = "perplexity"
    band: Literal["low", "mid", "high"] = Field(default="mid", description="Which part of the pool to take")


def composition(config: Config) -> Composition:
    score = TokenScore(value="perplexity", **config.shared())
    ends = {"low": Top(by=PERPLEXITY, order="lowest"), "high": Top(by=PERPLEXITY), "mid": Middle(by=PERPLEXITY)}
    return Composition({PERPLEXITY: score}, [ends[config.band]])


select = composed(composition)
