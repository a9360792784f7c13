"""WaveCoder, for code: the examples that pass a check of rules, and of these a set that covers them all.

"WaveCoder: Widespread And Versatile Enhancement For Code Large Language Models By Instruction Tuning" (Yu et al., ACL
2024, arXiv 2312.14187): seeds of raw code are chosen by k-center, a model writes an instruction and a solution for
each, and a discriminator goes through rules step by step and says yes or no. As a selector of what has been written:

    S = {row : overall(row) = yes},  then k-center over the vectors of S (see recipe `kcenter`)

Needs: a judge model behind an OpenAI-compatible endpoint or recorded answers, and vectors.
Cost: one call per row (about 700 tokens in and 40 out), see `iterselect plan`; then N m D for k-center.
Known bias: the rules are those of code; on other data set `checker.rules`. k-center takes outliers first.

Differs from the paper in: the order is turned round, since here the examples exist already: first the check, then the
cover. The wording of the rules is ours. A reply is read as JSON, where the published code takes any text with "no" in
it for a no; an unreadable one is asked about once more and then leaves an error row. Rejected examples are not fed back
as bad cases. Vectors are the configured encoder's, of the prompt (paper: all-roberta-large-v1, of raw code). Several
turns: the last response, given everything before it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from engine.composition import Composition, composed
from engine.config import RecipeConfig, RecorderConfig
from engine.config_base import PathOrName
from engine.config_endpoint import OpenAICheckerConfig
from engine.greedy_selection import VectorConfig
from engine.scoring.rules import Rules
from engine.selecting.ranks import Keep
from engine.selecting.vectors import KCenter

PASSED = "passed"
EXAMPLE = {"checker": {"kind": "openai", "model": "gpt-4o-mini"}}


class WavecoderChecker(OpenAICheckerConfig):
    prompt: PathOrName = Field(
        default="wavecoder", description="Prompt of kind rules: name, name/version, or the path of your own file"
    )


class Config(VectorConfig, RecipeConfig):
    name: Literal["wavecoder"] = "wavecoder"
    checker: Annotated[WavecoderChecker | RecorderConfig, Field(discriminator="kind")] = Field(
        description="The discriminator, or its recorded answers (1 or 0)"
    )


def composition(config: Config) -> Composition:
    scores = {PASSED: Rules(checker=config.checker)}
    return Composition(scores, [Keep(by=PASSED, above=0.5), KCenter(text=config.text)])


select = composed(composition)
