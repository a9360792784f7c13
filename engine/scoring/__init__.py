"""The scores that a composition can name. One line per kind; importing them loads no model library."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from engine.scoring.arithmetic import Agreement, Linear, Product, Weight
from engine.scoring.clusters import Cluster
from engine.scoring.digits import Digits
from engine.scoring.neighbours import KnnDistance
from engine.scoring.one_shot import OneShot
from engine.scoring.rating import Rating
from engine.scoring.recorded import Recorded
from engine.scoring.rewards import Reward
from engine.scoring.row_variance import RowVariance
from engine.scoring.rules import Rules
from engine.scoring.tags import Tags
from engine.scoring.targets import TargetSimilarity
from engine.scoring.text import Length, Mtld
from engine.scoring.tokens import TokenScore
from engine.scoring.trees import Tree
from engine.scoring.turns import TurnProduct

AnyScore = Annotated[
    Agreement
    | Cluster
    | Digits
    | KnnDistance
    | Length
    | Linear
    | Mtld
    | OneShot
    | Product
    | Rating
    | Recorded
    | Reward
    | RowVariance
    | Rules
    | Tags
    | TargetSimilarity
    | TokenScore
    | Tree
    | TurnProduct
    | Weight,
    Field(discriminator="kind"),
]
