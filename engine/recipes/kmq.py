"""k-means-quality: every cluster gives its share, drawn in proportion to quality.

"Diversify and Conquer: Diversity-Centric Data Selection with Iterative Refinement" (Yu et al. 2024, arXiv 2409.11378),
its static method, kMQ:

    rows of cluster j = budget * size_j / N        P(row) ~ quality(row), without replacement

Needs: vectors, and a score of quality: a reward model, a judge's rating, a perplexity, or one recorded.
Cost: K-Means, and that of the score. A million rows, 100 clusters and 20 iterations of 384 dimensions: 8e11
multiplications.
Known bias: that of the score, less than by its highest rows; every topic keeps its share, poor ones too.

Differs from the paper in: the draw goes by a hash of (seed, id); K is ours. A reward is a logit, not a weight, so by
default its logistic function is drawn by, the chance that the response is preferred to one of reward 0; we could not
confirm how the paper normalises its scores. `weight: score` draws by the score itself, without rows of 0 or less,
`reciprocal` by its inverse, for perplexities. Shares are of the rows that have a weight. The iterative method, which
tunes a model between draws, is not here. Several turns: as the score and the vectors have it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from engine.composition import Composition, composed
from engine.config import RecipeConfig
from engine.greedy_selection import VectorConfig
from engine.scoring import AnyScore
from engine.scoring.arithmetic import Weight
from engine.scoring.clusters import Cluster
from engine.scoring.rewards import Reward
from engine.selecting.groups import Quota

QUALITY, WEIGHT, CLUSTER = "quality", "weight", "cluster"


class Config(VectorConfig, RecipeConfig):
    name: Literal["kmq"] = "kmq"
    quality: AnyScore = Field(default=Reward(), description="Score that rows are drawn by; higher is better")
    weight: Literal["score", "logistic", "reciprocal"] = Field(
        default="logistic", description="How the score becomes a weight: as it is; for rewards; for perplexities"
    )
    clusters: int = Field(default=100, ge=1, description="K of K-Means; at most a tenth of the pool's rows")
    iterations: int = Field(default=20, ge=1, description="Most K-Means iterations")

    @model_validator(mode="after")
    def _fits(self) -> Config:
        composition(self)
        return self


def composition(config: Config) -> Composition:
    scores: dict[str, Any] = {QUALITY: config.quality}
    by = QUALITY
    if config.weight != "score":
        scores[WEIGHT], by = Weight(of=QUALITY, form=config.weight), WEIGHT
    scores[CLUSTER] = Cluster(text=config.text, clusters=config.clusters, iterations=config.iterations)
    return Composition(scores, [Quota(group=CLUSTER, by=by, take="weighted")])


select = composed(composition)
