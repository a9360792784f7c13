"""InstructionGPT-4, for text: the best rows by a sum of indicators, from every cluster in proportion to its size.

"InstructionGPT-4: A 200-Instruction Paradigm for Fine-Tuning MiniGPT-4" (Wei et al., arXiv 2308.12067) scores
image-caption pairs by CLIP, a reward model, their length and GPT-4, learns from 30 tuned subsets what a good subset is,
and takes from each of 10 clusters int(quota * size / N) rows of highest score, at least one. What is left without
images is here:

    score = sum of weight * indicator        quota of a cluster = budget * size / N, at least 1

Needs: a reward model and vectors; a judge's rating when it is among the indicators, such as
`indicators: {rating: {kind: recorded, column: rating}}`; a fit needs the outcome of tuning runs.
Cost: one pass of the reward model, and K-Means.
Known bias: that of the reward model, and towards long responses.

Differs from the paper in: it is about text, so CLIP score and image features are not here. The paper's selector, an
attention network over indicators and principal components, trained on 30 subsets, is replaced by a weighted sum: with
the given weights (the paper's scales of reward and length, which are ours as weights of a sum), or by least squares of
the subsets' `score`, higher is better (`rule: {kind: fit}`). Clusters are K-Means clusters of the vectors, not spectral
clusters of image features: they are round, and scale to millions of rows. The shares are by largest remainder and give
exactly the budget; the published code cuts the sum of rounded shares. Its sort drops the fraction of a score; ours
does not. Several turns: as each indicator has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from engine.greedy_selection import VectorConfig
from engine.indicator_rules import AnyRule, RuleConfig, select_by_rule
from engine.recipes.base import Context, Selection
from engine.scoring.clusters import Cluster
from engine.scoring.rewards import Reward
from engine.scoring.text import Length
from engine.selecting.groups import Quota
from engine.subset_fit import WeightsRule

SCORE, CLUSTER = "score", "cluster"


class Config(VectorConfig, RuleConfig):
    name: Literal["instructiongpt4"] = "instructiongpt4"
    standard: ClassVar[Mapping[str, Any]] = {"reward": Reward(), "length": Length(of="response_chars")}
    rule: AnyRule = Field(
        default=WeightsRule(weights={"reward": 10.0, "length": 10 / 1009}),
        description="Weights of the indicators; or fit: learned from subsets and the scores of models tuned on them",
    )
    clusters: int = Field(default=10, ge=1, description="K of K-Means; at most a tenth of the pool's rows")
    iterations: int = Field(default=20, ge=1, description="Most K-Means iterations")
    at_least: int = Field(default=1, ge=0, description="Rows that every cluster gives, however small it is")


def select(context: Context) -> Selection:
    config = context.config.recipe
    assert isinstance(config, Config)
    cluster = Cluster(text=config.text, clusters=config.clusters, iterations=config.iterations)
    quota = Quota(group=CLUSTER, by=SCORE, at_least=config.at_least)
    return select_by_rule(context, SCORE, "score", float, {CLUSTER: cluster}, quota)
