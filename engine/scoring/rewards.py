"""Rewards: a trained model's score of the row's own response, or of the answer that a generator gives to its prompt.

One pass over the pool, the step `rewards`, known by the pool, the model and how rows are laid out; methods that agree
on these share it. With `answers` a generator answers first, and a low reward of its answer says what the model lacks:
necessity in MoDS (Du et al., arXiv 2311.15653). Several turns: the last response given everything before it.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from engine.artifacts import Joined, Source, Step
from engine.backends import build_generator, pinned
from engine.config import GeneratorConfig, NoGeneratorConfig
from engine.config_base import PathOrName
from engine.recipes.base import Context
from engine.runtime import StageSpec
from engine.schema import ANSWER, RESPONSE
from engine.scoring.base import Measured, Score
from engine.scoring.some_rows import asked_rows, over_pool

REWARD = "reward"


class Reward(Measured):
    """The reward of an answer."""

    kind: Literal["reward"] = "reward"
    model: PathOrName = Field(
        default="OpenAssistant/reward-model-deberta-v3-large-v2",
        description="Classifier of one output, trained as a reward model: path or id",
    )
    max_tokens: int = Field(default=2048, ge=8, description="Longest input; lowered to what the model can take")
    template: Literal["auto", "pair", "chat"] = Field(
        default="auto", description="pair: prompt and answer as two texts; chat: the model's template; auto: if any"
    )
    too_long: Literal["cut", "error"] = Field(
        default="cut", description="Longer rows: cut the answer at its end, or make them error rows"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 where the processor has it"
    )
    answers: GeneratorConfig = Field(
        default=NoGeneratorConfig(), description="Whose answers get the reward; none: the row's own response"
    )
    answer_above: float | None = Field(
        default=None, description="Ask for answers only where the own response's reward is above this; null: everywhere"
    )

    @model_validator(mode="after")
    def _has_answers(self) -> Reward:
        if self.answer_above is not None and isinstance(self.answers, NoGeneratorConfig):
            raise ValueError("answer_above needs answers")
        return self

    def measure(self, context: Context) -> Score:
        if isinstance(self.answers, NoGeneratorConfig):
            return Score.of(self._rewards(context, context.pool, RESPONSE), REWARD)
        asked = context.pool if self.answer_above is None else self._asked(context, self.answer_above)
        answers = answers_of(context, self.answers, asked)
        rewards = self._rewards(context, Joined(answers, asked), ANSWER)
        if asked is context.pool:
            return Score.of(rewards, REWARD)
        return Score.of(over_pool(context, "answer_rewards", rewards, [REWARD]), REWARD)

    def _rewards(self, context: Context, source: Source, answer: str) -> Step:
        """The step `rewards`, parallel to the source's parts: `row` and REWARD_COLUMNS."""
        from engine.models.encoder import resolve_precision
        from engine.models.reward import REWARD_COLUMNS, Rewards

        device = "cuda" if context.config.runtime.gpus else "cpu"  # a GPU rounds differently
        chosen: dict[str, Any] = {name: getattr(self, name) for name in ("model", "max_tokens", "template", "too_long")}
        chosen |= {"device": device, "precision": resolve_precision(self.precision, device), "answer": answer}
        settings, identity = pinned("rewards", chosen)
        target = context.step("rewards", identity, [source.fingerprint])
        stage = StageSpec(
            name="rewards",
            factory=Rewards,
            kwargs={**settings, "weights": identity["model"]},
            columns_in=(*Rewards.columns_in, answer),
            columns_out=REWARD_COLUMNS,
            resources=context.resources(),
        )
        record = context.runtime.map_parts(stage, source, target)
        context.check_failures(target.folder, record.failed, record.rows)
        cuts = (target.read(part.index, ["tokens_cut"])["tokens_cut"].fill_null(0) for part in record.parts)
        cut = sum(int(np.count_nonzero(found)) for found in cuts)
        if cut:
            context.runtime.observer.note(f"{cut:,} answers were cut to fit the reward model")
        return target

    def _asked(self, context: Context, above: float) -> Step:
        """The step `asked`: rows of the pool whose own response has a reward above the number, in the pool's parts."""
        own = self._rewards(context, context.pool, RESPONSE)

        def keep(part: int) -> pa.Array:
            reward_M = own.read(part, [REWARD])[REWARD].to_numpy()
            with np.errstate(invalid="ignore"):
                return pa.array(reward_M > above)

        return asked_rows(context, {"above": above}, [own.fingerprint], keep)


def answers_of(context: Context, config: GeneratorConfig, asked: Step) -> Step:
    """The step `answers`: the generator's answer to every row of `asked`, in its parts.

    Raises:
        TooManyFailures: E600, more rows than `max_failed` have no answer.
    """
    vectors = context.vectors() if config.kind == "neighbor" else None
    index = context.index(vectors) if vectors is not None else None
    backend = build_generator(context, config, index)
    assert backend is not None
    try:
        inputs = [source.fingerprint for source in (asked, vectors) if source is not None]
        target = context.paid_step("answers", backend.identity, inputs)
        record = backend.run(asked, target)
    finally:
        backend.close()
        if index is not None:
            index.close()
    context.check_failures(target.folder, record.failed, record.rows)
    return target
