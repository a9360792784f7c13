"""Instruction Backtranslation, self-curation: the answers that a model rates as what an assistant would say.

"Self-Alignment with Instruction Backtranslation" (Humpback; Li et al., ICLR 2024, arXiv 2308.06259), section 2.3: the
model that is being trained rates every candidate pair with a rubric of five levels, and the pairs of a level k or more
are kept for the next round of training:

    A_k = {(x, y) : score(x, y) >= k}, k = 5

The paper also gives k = 4.5 in one place; with whole scores the two agree. Of the rows kept the best are selected,
equal ones by id; ask for a budget as large as the pool to have all of them.

Needs: a rater behind an OpenAI-compatible endpoint (the method's own: the model that will be tuned, on vLLM), or
recorded ratings.
Cost: one call per row with a short reason (about 700 tokens in and 80 out): see `iterselect plan`.
Known bias: a model likes what it would say itself, and the rubric asks for an assistant's voice: excerpts of web pages
and forum posts are rated low however good they are.

Differs from the paper in: only the curation of pairs is here, not the backward model that writes instructions for web
text, and one pass instead of two with tuning between them: tune, serve the tuned model and run again for the second.
The rubric's wording is ours. The score is read from the last line ("Score: n") and must be from 1 to 5; an unreadable
reply is asked about once more and then leaves an error row (unofficial code loses half of the replies). Several turns:
`rater.turns`; the paper has one turn.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from engine.config_base import PathOrName
from engine.config_endpoint import OpenAIRaterConfig
from engine.recipes.alpagasus import EXAMPLE, RatedConfig, composition, select
from engine.scoring.rating import RecordedRaterConfig

__all__ = ["EXAMPLE", "Config", "composition", "select"]


class BacktranslationRater(OpenAIRaterConfig):
    prompt: PathOrName = Field(
        default="backtranslation", description="Prompt: name, name/version, or the path of your own file"
    )
    max_tokens: int = Field(default=256, ge=1, description="Longest reply, in tokens")


class Config(RatedConfig):
    name: Literal["backtranslation"] = "backtranslation"
    rater: Annotated[BacktranslationRater | RecordedRaterConfig, Field(discriminator="kind")] = Field(
        description="The model that rates, or ratings made elsewhere"
    )
    min_rating: float | None = Field(default=5.0, description="Smallest rating that is kept (k); null keeps all")
