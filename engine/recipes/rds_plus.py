"""RDS+: the rows most similar to examples of what the model is for, in turns, so that every example has its share.

"Large-Scale Data Selection for Instruction Tuning" (Ivison et al. 2025, arXiv 2503.01807): representation-based data
selection. Rows and target examples are embedded; the examples take turns, and each takes the row of

    largest cos(example, row)

that no example has taken yet, until the budget is reached.

Needs: vectors; a file of target examples, in any format that a pool may have, such as the development set of a task.
Cost: T N D multiplications for T examples, seldom more than twice. A million rows, 1,000 examples and 384 dimensions:
4e11.
Known bias: what is near in topic and wording, whatever its quality. Rows that are among the target examples come
first: keep the target set out of the pool, or you train on your test.

Differs from the paper in: its vectors are the mean of the last hidden states of the model that will be tuned, later
tokens weighing more; ours are those of the run's encoder, of prompt and response as one text. Turns go by the ids of
the examples, not by their order in the file. For several tasks at a time the paper averages per task; here all
examples of `target` take turns as one set. Several turns of a conversation: one text.
"""

from __future__ import annotations

from typing import Literal

from engine.composition import Composition, composed
from engine.config import RecipeConfig
from engine.greedy_selection import PairConfig
from engine.scoring.targets import TargetSimilarity
from engine.selecting.targets import RoundRobin
from engine.targets import TargetConfig

EXAMPLE = {"target": "dev.jsonl"}


class Config(PairConfig, TargetConfig, RecipeConfig):
    name: Literal["rds_plus"] = "rds_plus"


def composition(config: Config) -> Composition:
    shared = {"target": config.target, "text": config.text}
    return Composition({"similarity": TargetSimilarity(**shared)}, [RoundRobin(**shared)])


select = composed(composition)
