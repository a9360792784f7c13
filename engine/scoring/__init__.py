"""The scores that a composition can name. One line per kind; importing them loads no model library."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

<<<<<<< HEAD
from engine.scoring.arithmetic import Linear, Product, Weight
from engine.scoring.clusters import Cluster
from engine.scoring.rating import Rating
from engine.scoring.neighbours import KnnDistance
=======
from engine.scoring.arithmetic import Agreement, Linear, Product
from engine.scoring.clusters import Cluster
from engine.scoring.digits import Digits
>>>>>>> e614868 (Digit logits: ratings read off a language model's next token, with versioned prompts; per-turn scores; agreement of several)
from engine.scoring.recorded import Recorded
from engine.scoring.rules import Rules
from engine.scoring.rewards import Reward
from engine.scoring.targets import TargetSimilarity
from engine.scoring.text import Length, Mtld
from engine.scoring.tokens import TokenScore
from engine.scoring.turns import TurnProduct

AnyScore = Annotated[
<<<<<<< HEAD
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
=======
    Agreement | Cluster | Digits | Length | Linear | Product | Recorded | TokenScore | TurnProduct,
>>>>>>> e614868 (Digit logits: ratings read off a language model's next token, with versioned prompts; per-turn scores; agreement of several)
    Field(discriminator="kind"),
]
