"""SelectIT: the responses that language models rate well, surely, and alike in any wording.

"SelectIT: Selective Instruction Tuning for LLMs via Uncertainty-Aware Self-Reflection" (Liu et al., NeurIPS 2024, arXiv
2402.16705), section 3:

    S_tok  = B 1/(K-1) sum_k |p_B - p_k|,  B = argmax_k p_k     one model, one rating prompt; K = 5 digits
    S_sent = mean(S_tok) / (1 + alpha std(S_tok))               over the rating prompts
    S      = sum_j N_j / (sum_i N_i) S_sent_j                   over the models, N_j parameters each

with p the probabilities of the digits at the first token of the answer. The highest are selected (paper: 20 %).

Needs: one or more causal language models, best the base models that will be tuned. No judge, no vectors, no training.
Cost: a forward pass per row, model and prompt: with the defaults five, over prompt and response each. A million rows of
500 tokens with one model of 7B: 3.5e19 operations.
Known bias: a model is surest about what it has seen often: fluent English, short and common tasks. A small model rates
by accident of its tokenizer; look at the spread of the scores before trusting them. A response that asks for a high
rating may get it.

Differs from the paper in: all rating prompts are used at every level, where the published code draws one at random for
the token level; their wording is ours. The margin is computed from p itself and models are weighed by their share of
all parameters; `compat: true` does as the published code: p through a second softmax, and N_j / (N_1 + ... + N_j), the
first model by the first two. Digits are found in the model's own tokenizer. A row whose rating prompt does not fit in
max_tokens is left out; the code skips it and mixes up the rows after it. Several turns: the last response, given all
before it as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from engine.composition import Composition, composed
from engine.config import RecipeConfig
from engine.config_base import PathOrName, Strict
from engine.scoring.arithmetic import Agreement, Linear
from engine.scoring.base import Derived, Measured
from engine.scoring.digits import Digits
from engine.selecting.ranks import Top
from engine.token_scoring import CausalModelConfig

SCORE = "selectit"


class RatingModel(Strict):
    """One of several models."""

    model: PathOrName = Field(description="Causal language model: path or id")
    parameters: float | None = Field(
        default=None, gt=0.0, description="Its number of parameters, in any unit; default: counted in its files"
    )


class Config(CausalModelConfig, RecipeConfig):
    name: Literal["selectit"] = "selectit"
    max_tokens: int = Field(default=2048, ge=8, description="Longest rating prompt; a longer one is no score")
    models: list[RatingModel] = Field(
        default_factory=list, description="Several models, small before large; default: `model` alone"
    )
    prompts: list[PathOrName] = Field(
        default=["accuracy", "helpfulness", "completeness", "relevance", "example"],
        min_length=1,
        description="Rating prompts: bundled names or paths of files, all used",
    )
    template: Literal["chat", "plain"] = Field(
        default="plain", description="How a model is asked; chat: in its own chat template, plain if it has none"
    )
    alpha: float = Field(default=0.2, ge=0.0, description="Weight of the disagreement between prompts")
    compat: bool = Field(default=False, description="Second softmax and weights of models as in the published code")


def model_weights(parameters_J: Sequence[float], compat: bool) -> list[float]:
    """Each model's share in the score; they add up to 1 unless `compat` is set."""
    if not compat or len(parameters_J) == 1:
        return [number / sum(parameters_J) for number in parameters_J]
    return [number / sum(parameters_J[: max(2, j + 1)]) for j, number in enumerate(parameters_J)]


def composition(config: Config) -> Composition:
    models = config.models or [RatingModel(model=config.model)]
    shared = config.taken_by(Digits) | {"value": "token_twice" if config.compat else "token"}
    passes: dict[str, Measured | Derived] = {}
    levels: dict[str, Measured | Derived] = {}
    for j, one in enumerate(models, 1):
        of_model = []
        for k, prompt in enumerate(config.prompts, 1):
            of_model.append(f"token_{j}_{k}")
            passes[of_model[-1]] = Digits(**{**shared, "model": one.model, "prompt": prompt})
        levels[f"sentence_{j}"] = Agreement(of=of_model, alpha=config.alpha)
    numbers = [1.0] if len(models) == 1 else [one.parameters or parameters_of(one.model) for one in models]
    levels[SCORE] = Linear(weights=dict(zip(levels, model_weights(numbers, config.compat), strict=True)))
    return Composition({**passes, **levels}, [Top(by=SCORE)])


def parameters_of(model: str) -> float:
    """Numbers in a model's safetensors files."""
    from engine.models.causal import count_parameters

    return float(count_parameters(model))


select = composed(composition)
