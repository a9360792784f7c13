"""LIFT, curation: rows that stand out along the main directions of the pool, and of these the best rated.

"Rethinking the Instruction Quality: LIFT is What You Need" (Xu et al., arXiv 2312.11508), after an expansion of the
data:

1. Variety: vectors are centred and reduced to their leading principal components; a row's score is the variance of its
   own reduced features, and the highest share (paper: 20 %) is kept.
2. Quality: a judge model scores accuracy, explanation, clarity and difficulty of what is left; the mean of the four
   ranks the rows, and the best are selected, equal ones by id.

Needs: vectors, and a judge model behind an OpenAI-compatible endpoint or recorded ratings.
Cost: the embedding, and one call per row of the share that variety keeps: see `iterselect plan`.
Known bias: the variance of a row's features grows with its distance from the mean, so variety favours outliers: rare
languages, code, broken text. Explanation and difficulty favour long responses.

Differs from the paper in: the expansion, in which a model rewrites instructions, is not here: rows that it made would
need a pool of their own, so rewrite first and select from both. The number of components, the prompt and how the four
scores become one are not published: 32, our wording, and their mean. The vectors are the configured encoder's (paper:
an API's), of the prompt; `text: pair` embeds prompt and response. Several turns: `rater.turns` says which answers are
rated.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from engine.composition import Composition, composed
from engine.config import RecipeConfig
from engine.config_endpoint import OpenAIRaterConfig
from engine.greedy_selection import VectorConfig
from engine.scoring.rating import Rating, RecordedRaterConfig
from engine.scoring.row_variance import RowVariance
from engine.selecting.ranks import Top

VARIETY, QUALITY = "variety", "quality"
EXAMPLE = {"rater": {"kind": "openai", "model": "gpt-4o-mini"}}


class LiftRater(OpenAIRaterConfig):
    prompt: str = Field(default="lift-quality", description="Prompt: name, name/version, or the path of your own file")
    max_tokens: int = Field(default=64, ge=1, description="Longest reply, in tokens")


class Config(VectorConfig, RecipeConfig):
    name: Literal["lift"] = "lift"
    rater: Annotated[LiftRater | RecordedRaterConfig, Field(discriminator="kind")] = Field(
        description="The judge model, or ratings made elsewhere"
    )
    variety: float = Field(
        default=0.2, gt=0.0, description="Rows that the variance keeps: a share of the pool, or a number"
    )
    components: int = Field(default=32, ge=2, description="Leading principal components of the vectors")


def composition(config: Config) -> Composition:
    scores = {
        VARIETY: RowVariance(text=config.text, components=config.components),
        QUALITY: Rating(rater=config.rater, rows="left"),
    }
    return Composition(scores, [Top(by=VARIETY, rows=config.variety), Top(by=QUALITY)])


select = composed(composition)
