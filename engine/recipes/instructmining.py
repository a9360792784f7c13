"""InstructMining: the rows of lowest loss as a linear rule over cheap indicators predicts it.

"Instruction Mining: Instruction Data Selection for Tuning Large Language Models" (Cao et al., arXiv 2307.06290) tunes
a model on many subsets, and regresses the logarithm of each model's loss on the subset's mean indicators. Two rules
are published:

    v1:  log L = 1.0694 - 0.1498 reward + 8.257e-5 length - 0.9350 knn
    v2:  log L = 0.0274 - 0.0078 reward + 0.4421 understandability - 0.3212 naturalness - 0.1520 coherence

with reward the logit of a reward model, length that of the response, knn the distance to the sixth nearest row, and
the others UniEval's scores in [0, 1]. Every row gets the rule's value; the lowest are selected. `rule: {kind: fit}`
learns a rule of your own from a file of subsets and the losses of the models tuned on them.

Needs: v1 a reward model and vectors; v2 a reward model, and UniEval's scores as columns of the pool (or
`indicators: {naturalness: {kind: recorded, file: ...}, ...}`); a fit the outcome of tuning runs.
Cost: one pass of the reward model; v1 also compares all rows with one another, N^2 D multiplications. A million rows of
500 tokens and a reward model of 0.4B: 4e17 operations; 4e14 multiplications for the neighbours.
Known bias: that of the reward model; v1 prefers outliers and short responses, v2, as published, what is hard to
understand: its coefficient of understandability is positive.

Differs from the paper in: its rules were fitted to its own reward model, embeddings and units; these are not all known,
so the scale of the published rules is not exactly theirs, and a fit is better. Length is in words of the response and
knn the Euclidean distance of unit vectors of the prompt. The search for the best size of the selection (BlendSearch)
tunes a model per trial and is not here: the budget is the size. Several turns: as each indicator has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from engine.config_base import Strict
from engine.indicator_rules import RuleConfig, select_by_rule
from engine.recipes.base import Context, Selection
from engine.scoring.neighbours import KnnDistance
from engine.scoring.recorded import Recorded
from engine.scoring.rewards import Reward
from engine.scoring.text import Length, Mtld
from engine.scoring.tokens import TokenScore
from engine.selecting.ranks import Top
from engine.subset_fit import FitRule, WeightsRule

LOSS = "predicted_log_loss"
PUBLISHED = {
    "v1": WeightsRule(weights={"reward": -0.1498, "length": 8.257e-5, "knn": -0.9350}, intercept=1.0694),
    "v2": WeightsRule(
        weights={"reward": -0.0078, "understandability": 0.4421, "naturalness": -0.3212, "coherence": -0.1520},
        intercept=0.0274,
    ),
}


class PublishedRule(Strict):
    kind: Literal["v1", "v2"] = Field(default="v1", description="The rule of the paper's first or later versions")


class Config(RuleConfig):
    name: Literal["instructmining"] = "instructmining"
    standard: ClassVar[Mapping[str, Any]] = {
        "prompt_length": Length(of="prompt_words"),
        "length": Length(of="response_words"),
        "reward": Reward(),
        "perplexity": TokenScore(value="perplexity"),
        "mtld": Mtld(),
        "knn": KnnDistance(neighbour=6),
        **{name: Recorded(column=name) for name in ("naturalness", "coherence", "understandability")},
    }
    rule: Annotated[PublishedRule | WeightsRule | FitRule, Field(discriminator="kind")] = Field(
        default=PublishedRule(), description="v1, v2: as published; weights: your own; fit: learned from subset losses"
    )

    def rule_or_fit(self) -> WeightsRule | FitRule:
        return PUBLISHED[self.rule.kind] if isinstance(self.rule, PublishedRule) else self.rule


def select(context: Context) -> Selection:
    return select_by_rule(context, LOSS, "loss", math.log, {}, Top(by=LOSS, order="lowest"))
