"""Nuggets: the rows that help a language model with other tasks when they stand before them as an example.

"One-Shot Learning as Instruction Data Prospector for Large Language Models" (Li et al., arXiv 2312.10302), section 3:

    GS(z) = #{j : log p(a_j | z, q_j) > log p(a_j | q_j)} / #{j}

over anchor tasks (q_j, a_j), one from each of 100 clusters of the pool. Rows of highest golden score are selected, or
those above a threshold (paper: 0.85, and others from 0.5 to 0.9).

Needs: a causal language model, best the base model that will be tuned; an encoder for the clusters.
Cost: rows x anchors forward passes over prompt and response of an anchor, after one pass per row over the row itself:
5.2 million short passes for Alpaca with 100 anchors. The rows' keys and values are shared by all anchors.
Known bias: a long, plain, well-formed example helps with almost any task by showing the format; the score knows only
`anchors` + 1 values, so many rows are equal and their ids decide.

Differs from the paper in: the clusters are of vectors of the run's encoder, the whole pair, where the paper averages
the language model's own hidden states, those of padding among them; `encoder.model` may be that language model. An
anchor is not scored by itself. A blank line separates example and task, which the published code runs together.
Anchors longer than `anchor_tokens` are left out, where the code cuts prompt and response at 200 tokens. Ratios are over
the anchors that are left. Several turns: the last response, given all before it as text. The budget is what is kept at
most; `above` is off by default.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.composition import Composition, composed
from engine.config import RecipeConfig
from engine.config_base import OpenFraction
from engine.scoring.one_shot import OneShot, OneShotConfig
from engine.selecting.ranks import Keep, Top

GOLDEN = "golden"


class Config(OneShotConfig, RecipeConfig):
    name: Literal["nuggets"] = "nuggets"
    above: OpenFraction | None = Field(
        default=None, description="Rows of this golden score or less are left out; null keeps them"
    )


def composition(config: Config) -> Composition:
    helpful = [] if config.above is None else [Keep(by=GOLDEN, above=config.above)]
    return Composition({GOLDEN: OneShot(**config.taken_by(OneShot))}, [*helpful, Top(by=GOLDEN)])


select = composed(composition)
