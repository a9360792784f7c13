"""The scores that a composition can name. One line per kind; importing them loads no model library."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from engine.scoring.arithmetic import Linear, Product, Weight
from engine.scoring.clusters import Cluster
from engine.scoring.rating import Rating
from engine.scoring.neighbours import KnnDistance
from engine.scoring.recorded import Recorded
from engine.scoring.rules import Rules
from engine.scoring.rewards import Reward
from engine.scoring.targets import TargetSimilarity
from engine.scoring.text import Length, Mtld
from engine.scoring.tokens import TokenScore

AnyScore = Annotated[
    Cluster
    | KnnDistance
    | Length
    | Linear
    | Mtld
    | Product
    | Rating
    | Recorded
    | Reward
    | Rules
    | TargetSimilarity
    | TokenScore
    | Weight,
    Field(discriminator="kind"),
]
