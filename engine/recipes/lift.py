"""LIFT: rows that stand out along the main directions of the pool, and of these the best rated.

"Rethinking the Instruction Quality: LIFT is What You Need" (Xu et al., arXiv 2312.11508):

0. Expansion, with a `rewriter`: a model writes a new task and its response from each row's last instruction, and the
   new rows join the pool.
1. Variety: vectors are centred and reduced to their leading principal components; a row's score is the variance of its
   own reduced features, and the highest share (paper: 20 %) is kept.
2. Quality: a judge model scores accuracy, explanation, clarity and difficulty of what is left; the mean of the four
   ranks the rows, and the best are selected, equal ones by id.

Needs: vectors, and a judge model behind an OpenAI-compatible endpoint or recorded ratings; for the expansion a model
that writes, behind an endpoint too.
Cost: the embedding, and one call per row of the share that variety keeps; with a rewriter one long call per row (about
400 tokens in and 400 out) and twice as many ratings: see `iterselect plan`.
Known bias: the variance of a row's features grows with its distance from the mean, so variety favours outliers: rare
languages, code, broken text. Explanation and difficulty favour long responses.

Differs from the paper in: without a rewriter there is no expansion. One new row is made of each, of one turn and
without tools; one that cannot be read, or that the pool has already, is left out. The number of components, the
prompts, the rules of rewriting and how the four scores become one are not published: 32, our wording, and their mean.
A budget that is a share is one of the pool before the expansion. The vectors are the configured encoder's (paper: an
API's), of the prompt; `text: pair` embeds prompt and response. Several turns: `rater.turns` says which answers are
rated.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from engine.composition import Composition, composed
from engine.config import RecipeConfig
from engine.config_base import PathOrName
from engine.config_endpoint import OpenAIRaterConfig, OpenAIRewriterConfig
from engine.greedy_selection import VectorConfig
from engine.paid.rewriting import rewriting_pass
from engine.scoring.rating import Rating, RecordedRaterConfig
from engine.scoring.row_variance import RowVariance
from engine.selecting.ranks import Top

VARIETY, QUALITY = "variety", "quality"
EXAMPLE = {"rater": {"kind": "openai", "model": "gpt-4o-mini"}}


class LiftRater(OpenAIRaterConfig):
    prompt: PathOrName = Field(
        default="lift-quality", description="Prompt: name, name/version, or the path of your own file"
    )
    max_tokens: int = Field(default=64, ge=1, description="Longest reply, in tokens")


class Config(VectorConfig, RecipeConfig):
    name: Literal["lift"] = "lift"
    rater: Annotated[LiftRater | RecordedRaterConfig, Field(discriminator="kind")] = Field(
        description="The judge model, or ratings made elsewhere"
    )
    rewriter: OpenAIRewriterConfig | None = Field(
        default=None, description="The model that makes a new row of each row first; none: no expansion"
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
    rewriting = None if config.rewriter is None else rewriting_pass(config.rewriter)
    return Composition(scores, [Top(by=VARIETY, rows=config.variety), Top(by=QUALITY)], rewriting=rewriting)


select = composed(composition)
