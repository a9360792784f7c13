"""What recipes share that score a row by a weighted sum of indicators, with weights that are given or learned.

It knows no method: which indicators there are, and what is done with the sum, the recipe says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from engine.composition import Composition, run_composition
from engine.config import RecipeConfig
from engine.recipes.base import Context, Selection
from engine.scoring import AnyScore
from engine.scoring.arithmetic import Linear
from engine.scoring.table import score_table
from engine.selecting.base import Selector
from engine.subset_fit import FitRule, WeightsRule, fitted

AnyRule = Annotated[WeightsRule | FitRule, Field(discriminator="kind")]


class RuleConfig(RecipeConfig):
    """Settings of such a recipe. It adds a field `rule`."""

    standard: ClassVar[Mapping[str, Any]]  # the indicators it knows, by name
    rule: Any
    indicators: dict[str, AnyScore] = Field(
        default_factory=dict, description="Scores by name, in place of or beside the standard ones"
    )

    @model_validator(mode="after")
    def _indicators_exist(self) -> RuleConfig:
        rule, known = self.rule_or_fit(), self.known()
        unknown = [n for n in (rule.indicators if isinstance(rule, FitRule) else rule.weights) if n not in known]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no indicator; there are: {', '.join(known)}; add it to `indicators`")
        return self

    def known(self) -> dict[str, Any]:
        """All indicators, by name."""
        return {**self.standard, **self.indicators}

    def rule_or_fit(self) -> WeightsRule | FitRule:
        """The rule with its weights, or what they are learned from."""
        return self.rule


def select_by_rule(
    context: Context, name: str, outcome: str, transform: Callable[[float], float], more: Mapping[str, Any],
    selector: Selector,
) -> Selection:  # fmt: skip
    """Runs a selector over the weighted sum.

    Args:
        name: of the sum, as a score.
        outcome, transform: of a fit; see `fitted`.
        more: further scores that the selector reads.
    """
    config = context.config.recipe
    assert isinstance(config, RuleConfig)
    rule, known = config.rule_or_fit(), config.known()
    if isinstance(rule, FitRule):
        scores = score_table(context, {indicator: known[indicator] for indicator in rule.indicators})
        rule, facts = fitted(context, rule, scores, outcome, transform)
    else:
        facts = rule.model_dump(exclude={"kind"})
    scores = {indicator: known[indicator] for indicator in rule.weights}
    total = Linear(weights=rule.weights, intercept=rule.intercept)
    return run_composition(context, Composition({**scores, name: total, **more}, [selector], {"rule": facts}))
