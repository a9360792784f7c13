"""AlpaGasus: the responses that a strong language model rates as accurate.

"AlpaGasus: Training A Better Alpaca with Fewer Data" (Chen et al., ICLR 2024, arXiv 2307.08701): a judge model gives
every instruction-response pair a score from 0 to 5 for one dimension, and the pairs of at least a threshold are kept:

    S = {(x, r) : score(x, r) >= 4.5}

The paper rates accuracy; for its form for helpfulness set `rater.prompt: alpagasus-helpfulness`. Of the rows kept the
best are selected, equal ones by id; ask for a budget as large as the pool to have all of them.

Needs: a judge model behind an OpenAI-compatible endpoint, or recorded ratings. No vectors, no GPU.
Cost: one call per row (about 600 tokens in and 100 out): see `iterselect plan`.
Known bias: a judge prefers its own style, long and confident responses, and what it can check itself; code and
mathematics are rated low. Most scores are 4 or 4.5, so the threshold decides more than the order.

Differs from the paper in: the wording of the prompt is ours. A reply without a score in its first line is asked about
once more and then leaves an error row; the published code gives it -1. Ratings are joined by id, not by place in a
file. The budget limits what the threshold keeps. Rows whose text talks to the judge are not rated. Several turns:
`rater.turns` says which answers are rated; the paper has one turn.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from engine.composition import Composition, composed
from engine.config import RecipeConfig
from engine.config_base import PathOrName
from engine.config_endpoint import OpenAIRaterConfig
from engine.scoring.rating import Rating, RecordedRaterConfig
from engine.selecting.ranks import Keep, Top

RATING = "rating"
EXAMPLE = {"rater": {"kind": "openai", "model": "gpt-4o-mini"}}


class AlpagasusRater(OpenAIRaterConfig):
    prompt: PathOrName = Field(
        default="alpagasus", description="Prompt: name, name/version, or the path of your own file"
    )
    max_tokens: int = Field(default=256, ge=1, description="Longest reply, in tokens")


class RatedConfig(RecipeConfig):
    """What every method can be told that keeps rows of a rating."""

    rater: Any  # each narrows it to a judge model with its own prompt, or ratings made elsewhere
    min_rating: float | None = Field(default=None, description="Smallest rating that is kept; null keeps all")


class Config(RatedConfig):
    name: Literal["alpagasus"] = "alpagasus"
    rater: Annotated[AlpagasusRater | RecordedRaterConfig, Field(discriminator="kind")] = Field(
        description="The judge model, or ratings made elsewhere"
    )
    min_rating: float | None = Field(default=4.5, description="Smallest rating that is kept; null keeps all")


def composition(config: RatedConfig) -> Composition:
    kept = [] if config.min_rating is None else [Keep(by=RATING, at_least=config.min_rating)]
    return Composition({RATING: Rating(rater=config.rater)}, [*kept, Top(by=RATING)])


select = composed(composition)
