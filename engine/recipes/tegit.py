"""TeGit, discriminator: the tasks that a judge accepts after checking a list of rules.

"TeGit: Generating High-Quality Instruction-Tuning Data with Text-Grounded Task Design" (Chen et al. 2023, arXiv
2309.05447): a generator turns human text into tasks, and a discriminator says of each task yes or no; only the accepted
ones stay. Here the discriminator is a model that checks rules one by one and then decides:

    S = {row : overall(row) = yes}

Of the accepted rows the budget is drawn at random, or, with `by: length`, the longest responses are taken.

Needs: a judge model behind an OpenAI-compatible endpoint (the paper's own: a fine-tuned LLaMA-2), or recorded answers.
Cost: one call per row (about 600 tokens in and 40 out): see `iterselect plan`.
Known bias: a yes or no ranks nothing: what is selected of the accepted rows is chance, or length.

Differs from the paper in: only the discriminator is here; its training data, prompt and threshold are not public, so
the rules and their wording are ours (`checker.rules` replaces them). An unreadable reply is asked about once more and
then leaves an error row. Several turns: the last response, given everything before it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from engine.composition import Composition, composed
from engine.config import RecipeConfig, RecorderConfig
from engine.config_base import PathOrName
from engine.config_endpoint import OpenAICheckerConfig
from engine.scoring.rules import Rules
from engine.scoring.text import Length
from engine.selecting.ranks import Keep, Sample, Top

ACCEPTED, LENGTH = "accepted", "length"
EXAMPLE = {"checker": {"kind": "openai", "model": "gpt-4o-mini"}}


class TegitChecker(OpenAICheckerConfig):
    prompt: PathOrName = Field(
        default="tegit", description="Prompt of kind rules: name, name/version, or the path of your own file"
    )


class Config(RecipeConfig):
    name: Literal["tegit"] = "tegit"
    checker: Annotated[TegitChecker | RecorderConfig, Field(discriminator="kind")] = Field(
        description="The discriminator, or its recorded answers (1 or 0)"
    )
    by: Literal["random", "length"] = Field(
        default="random", description="Which of the accepted rows are selected: a random draw, or the longest responses"
    )


def composition(config: Config) -> Composition:
    accepted = Keep(by=ACCEPTED, above=0.5)
    scores = {ACCEPTED: Rules(checker=config.checker)}
    if config.by == "random":
        return Composition(scores, [accepted, Sample()])
    return Composition({**scores, LENGTH: Length()}, [accepted, Top(by=LENGTH)])


select = composed(composition)
