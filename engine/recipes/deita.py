"""DEITA: complex prompts with good responses, but none too similar to one taken before.

"What Makes Good Data for Alignment? A Comprehensive Study of Automatic Data Selection in Instruction Tuning" (Liu et
al., ICLR 2024, arXiv 2312.15685), section 3:

    score(x) = sum over turns t of c_t q_t,    c, q = sum_{k=1..6} k p_k

with p the probabilities of the digits 1 to 6 at the first token of a scorer's answer: c to the turn's prompt, q to its
prompt and response. Rows are walked from the highest score down, and one is taken unless its largest cosine similarity
to the rows taken is 0.9 or more, until the budget is full.

Needs: two scorers, and the run's encoder. The published ones are language models of 7B parameters:
    complexity: {kind: digits, model: hkust-nlp/deita-complexity-scorer, prompt: deita-complexity}
    quality: {kind: digits, model: hkust-nlp/deita-quality-scorer, prompt: deita-quality}
Without them `model` is asked for a rating in plain words, which a model of 7B or more does better than by chance.
`kind: rating` asks a judge (prompts `deita-complexity` and `deita-quality`); `kind: recorded` takes scores that are
there already.
Cost: two forward passes per turn, one over the prompt and one over prompt and response; vectors for every row. A
million single turns of 500 tokens with two scorers of 7B: 1.4e19 operations.
Known bias: prefers long rows: a sum over turns grows with their number, and both scorers like length. Set `turns: mean`
where long conversations are not wanted. A rating in plain words by a small model is close to noise.

Differs from the paper in: vectors are those of the run's encoder over prompt and response, where the paper takes a 13B
language model's last token (`encoder.model` may be one, with `encoder.pooling: last`). The published filter depends on
its batch size above 1; here it is exact, and a similarity of exactly 0.9 is too much. A row with a turn that does not
fit in max_tokens is left out, nothing is cut and no score is made up. A turn is a user's message and its answer,
without what came before it; system messages are not shown. A judge sees what came before, and a recorded score is the
whole row's.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from engine.composition import Composition, composed
from engine.config import RecipeConfig, RecorderConfig
from engine.config_endpoint import OpenAIRaterConfig
from engine.greedy_selection import PairConfig
from engine.scoring.arithmetic import Product
from engine.scoring.base import Derived, Measured
from engine.scoring.digits import Digits
from engine.scoring.rating import Rating
from engine.scoring.recorded import Recorded
from engine.scoring.turns import OverTurns, TurnProduct
from engine.selecting.vectors import Diverse
from engine.token_scoring import CausalModelConfig

COMPLEXITY, QUALITY, EVOL = "complexity", "quality", "evol"
Scorer = Annotated[Digits | Rating | Recorded, Field(discriminator="kind")]


class Config(PairConfig, CausalModelConfig, RecipeConfig):
    name: Literal["deita"] = "deita"
    max_tokens: int = Field(default=2048, ge=8, description="Longest rating prompt of `model`")
    template: Literal["chat", "plain"] = Field(
        default="plain", description="How `model` is asked; chat: in its own chat template, plain if it has none"
    )
    complexity: Scorer | None = Field(default=None, description="Scores prompts; default: `model` in plain words")
    quality: Scorer | None = Field(default=None, description="Scores responses; default: `model` in plain words")
    turns: OverTurns = Field(
        default="sum",
        description="How turns become one score: the sum or the mean of their products; last: the last response only, "
        "given all before it",
    )
    similarity: float = Field(
        default=0.9, gt=-1.0, description="Rows with this cosine similarity or more to a row taken before are left out"
    )

    @model_validator(mode="after")
    def _fits(self) -> Config:
        given = [one for one in (self.complexity, self.quality) if one is not None]
        if any("turns" in (one.rater if isinstance(one, Rating) else one).model_fields_set for one in given):
            raise ValueError("the scorers take `turns` from the recipe")
        if is_recorded(self.complexity) != is_recorded(self.quality) and self.turns != "last":
            raise ValueError("a recorded score is one number per row, so with one of them `turns` must be last")
        return self


def composition(config: Config) -> Composition:
    both = {COMPLEXITY: config.complexity, QUALITY: config.quality}
    scores: dict[str, Measured | Derived] = {
        name: by_turn(one or Digits(**{**config.taken_by(Digits), "prompt": name}), config.turns)
        for name, one in both.items()
    }
    per_row = config.turns == "last" or is_recorded(config.complexity)
    scores[EVOL] = Product(of=list(both)) if per_row else TurnProduct(of=list(both), take=config.turns)
    return Composition(scores, [Diverse(by=EVOL, similarity=config.similarity, text=config.text)])


def is_recorded(scorer: Measured | None) -> bool:
    """Whether its numbers are there already, one per row."""
    return isinstance(scorer.rater if isinstance(scorer, Rating) else scorer, RecorderConfig)


def by_turn(scorer: Digits | Rating | Recorded, turns: OverTurns) -> Measured:
    """A scorer that gives a number for each turn, or for `last` and for recorded scores one for the row."""
    if isinstance(scorer, Digits):
        return scorer.model_copy(update={"turns": "last" if turns == "last" else "each"})
    if isinstance(scorer, Rating) and isinstance(scorer.rater, OpenAIRaterConfig):
        rater = scorer.rater.model_copy(update={"turns": turns})
        return scorer.model_copy(update={"rater": rater, "each": turns != "last"})
    return scorer


select = composed(composition)
