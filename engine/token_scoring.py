"""What the methods that stand on token log-probabilities share: the pass of a language model over the pool.

The pass is one step, `steps/token_scores-<8 hex>`, known by the pool, the model and how texts are laid out, so methods
that agree on these share it. What a method adds is arithmetic on its columns. It knows no method.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from engine.artifacts import Step
from engine.backends import pinned
from engine.config_base import Strict
from engine.recipes.base import Context
from engine.runtime import StageSpec


class LanguageModelConfig(Strict):
    """Settings of the pass. Two scores with the same ones share it."""

    model: str = Field(
        default="openai-community/gpt2", description="Causal language model that reads the pool: path or id"
    )
    max_tokens: int = Field(
        default=1024, ge=8, description="Longest prompt plus response; a longer response is cut, at its end"
    )
    template: Literal["chat", "alpaca", "plain"] = Field(
        default="chat",
        description="How prompt and response become one text; chat: the model's own template, plain if it has none",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 where the processor has it; logits are float32 in any case"
    )

    def shared(self) -> dict[str, Any]:
        """These settings alone, of a model that has more."""
        return {name: getattr(self, name) for name in LanguageModelConfig.model_fields}


def token_scores(context: Context, config: LanguageModelConfig) -> Step:
    """The step `token_scores`, parallel to the pool's parts: `row` and TOKEN_SCORE_COLUMNS.

    Raises:
        EnvironmentProblem: E320, the model is not here.
        TooManyFailures: E600, more rows than `max_failed` have no score.
    """
    from engine.models.encoder import resolve_precision
    from engine.models.token_scores import TOKEN_SCORE_COLUMNS, TokenScores

    # A GPU rounds differently, so the device is part of what is hashed.
    device = "cuda" if context.config.runtime.gpus else "cpu"
    names = ("model", "max_tokens", "template")
    chosen = {**{name: getattr(config, name) for name in names}, "device": device}
    chosen["precision"] = resolve_precision(config.precision, device)
    settings, identity = pinned("token_scores", chosen)
    target = context.step("token_scores", identity, [context.pool.fingerprint])
    stage = StageSpec(
        name="token_scores",
        factory=TokenScores,
        kwargs={**settings, "weights": identity["model"]},
        columns_in=TokenScores.columns_in,
        columns_out=TOKEN_SCORE_COLUMNS,
        resources=context.resources(),
    )
    record = context.runtime.map_parts(stage, context.pool, target)
    context.check_failures(target.folder, record.failed, record.rows)
    return target
