"""MoDS: a diverse seed of rows that a reward model likes, and the rows whose prompts the model cannot answer well yet.

"MoDS: Model-oriented Data Selection for Instruction Tuning" (Du et al., arXiv 2311.15653). Three conditions:

    quality:    reward(prompt, response) > min_reward
    coverage:   k-center over the vectors of the prompts of these rows: the seed
    necessity:  reward(prompt, the model's own answer) < max_necessity, the rows that the model needs

The seed and the rows of need, the neediest first, are one selection; a row that is both counts once.

Needs: a reward model, vectors; for necessity the answers of the model that will be tuned, best after it was tuned on
the seed alone: run once without `answers`, tune on that, then run with `answers` from that model (`recorded`, or a
generator). Without answers the selection is the seed.
Cost: one pass of the reward model, one inner product per row and pick; with answers, one answer per row of quality and
a second pass of the reward model over these. A million rows of 500 tokens and a reward model of 0.4B: 4e17 operations.
Known bias: that of the reward model, twice; outliers, as every k-center.

Differs from the paper in: the tuning on the seed is left to whoever makes the answers. The first row of the seed is
that of the smallest hash of (seed, id), where the published code draws one without a seed; vectors are those of the
run's encoder instead of BERT's CLS token, and of instruction and input. Two accounts of the paper run a second
k-center over the rows of need; the published code takes all of them, and so do we unless `necessity_rows` is set. The
code's merge keeps duplicates and drops rows that failed without a word; here a row comes once and has its reason. The
rows are at most the budget: the seed first, then the neediest. Several turns: rewards are of the last response, or of
an answer in its place, given everything before it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from engine.composition import Composition, composed
from engine.config import GeneratorConfig, NoGeneratorConfig, RecipeConfig
from engine.greedy_selection import VectorConfig
from engine.scoring.recorded import Recorded
from engine.scoring.rewards import Reward
from engine.selecting.ranks import Keep, Top
from engine.selecting.unions import Union
from engine.selecting.vectors import KCenter

REWARD, NECESSITY = "reward", "necessity"


class Config(VectorConfig, RecipeConfig):
    name: Literal["mods"] = "mods"
    reward: Annotated[Reward | Recorded, Field(discriminator="kind")] = Field(
        default=Reward(), description="Score of the row's own response"
    )
    min_reward: float = Field(default=0.0, description="Rows need a reward above this; its scale is the model's")
    answers: GeneratorConfig = Field(
        default=NoGeneratorConfig(), description="The answers of the model that will be tuned; none: the seed alone"
    )
    necessity: Recorded | None = Field(
        default=None, description="Recorded rewards of the model's answers, instead of `answers`"
    )
    max_necessity: float = Field(default=0.0, description="Answers with a reward below this say that a row is needed")
    seed_rows: float = Field(
        default=0.1, gt=0.0, description="Rows of the seed where rows of need follow: a share of the pool, or a number"
    )
    necessity_rows: float | None = Field(
        default=None, gt=0.0, description="k-center over the rows of need to so many; null takes the neediest"
    )

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if not isinstance(self.answers, NoGeneratorConfig):
            if not isinstance(self.reward, Reward):
                raise ValueError("answers need a reward model; with recorded rewards give `necessity`, recorded too")
            if self.necessity is not None:
                raise ValueError("give `answers` or `necessity`, not both")
        return self


def composition(config: Config) -> Composition:
    scores: dict[str, Any] = {REWARD: config.reward}
    good = Keep(by=REWARD, above=config.min_reward)
    if config.necessity is not None:
        scores[NECESSITY] = config.necessity
    elif isinstance(config.reward, Reward) and not isinstance(config.answers, NoGeneratorConfig):
        changes = {"answers": config.answers, "answer_above": config.min_reward}
        scores[NECESSITY] = config.reward.model_copy(update=changes)
    else:
        return Composition(scores, [good, KCenter(text=config.text)])
    needed = Keep(by=NECESSITY, below=config.max_necessity)
    most = Top(by=NECESSITY, order="lowest")
    if config.necessity_rows is not None:
        most = KCenter(text=config.text, rows=config.necessity_rows)
    seed = KCenter(text=config.text, rows=config.seed_rows)
    return Composition(scores, [good, Union(chains=[[seed], [needed, most]])])


select = composed(composition)
