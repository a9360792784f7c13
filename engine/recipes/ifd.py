"""Instruction-following difficulty: the responses that the prompt helps least, while it still helps.

"From Quantity to Quality: Boosting LLM Performance with Self-Guided Data Selection for Instruction Tuning" (Cherry; Li
et al., NAACL 2024, arXiv 2308.12032), section 2.2:

    IFD = s(A|Q) / s(A)

with s the mean NLL of the response's tokens, after the prompt and after the response marker alone. A value of 1 or more
says that the prompt does not help: prompt and response do not belong together, and the row is left out. The highest of
the rest are selected. `ratio: perplexity` is exp(s(A|Q) - s(A)), as Superfiltering has it; the two rank differently.

Needs: a causal language model, best the one that will be tuned. No labels, no judge, no vectors.
Cost: two forward passes per row, over prompt plus response and over the response. A million rows of 600 tokens in both
passes and 0.5B parameters: 6e17 operations.
Known bias: prefers short prompts and open-ended, creative responses; translations, sums and extractions score low,
because there the prompt helps most. Scores of very short responses are noise.

Differs from the paper in: an IFD of exactly 1 is left out (its code leaves out what is above 1). The model is scored as
it is, without the pre-experience tuning on 1,000 clustered rows (as in the authors' second version; that tuning is not
available here yet). Both passes score exactly the same tokens, from one tokenisation of both texts; the published code
may be off by one where prompt and response merge. The budget is a share of the pool, where the published script takes
its share of what is left after the filter. Instruction and input are one prompt, so `template: alpaca` (the paper's)
has no separate "### Input:". The model's own chat template is the default. Several turns: the last response, given
everything before it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.composition import Composition, composed
from engine.config import RecipeConfig
from engine.config_base import PathOrName
from engine.scoring.tokens import TokenScore
from engine.selecting.ranks import Keep, Top
from engine.token_scoring import LanguageModelConfig

IFD, CUT = "ifd", "tokens_cut"


class IfdConfig(LanguageModelConfig, RecipeConfig):
    """What every form of the score can be told."""

    ratio: Literal["loss", "perplexity"] = Field(
        default="loss", description="IFD as the ratio of the two mean losses, or of the two perplexities"
    )
    max_ifd: float | None = Field(
        default=1.0, gt=0.0, description="Rows with this IFD or more are left out as misaligned; null keeps them"
    )
    truncated: Literal["drop", "keep"] = Field(
        default="drop", description="Rows whose response was cut at max_tokens: leave them out, or score what is left"
    )


class Config(IfdConfig):
    name: Literal["ifd"] = "ifd"
    model: PathOrName = Field(default="Qwen/Qwen2.5-0.5B", description="The base model that will be tuned: path or id")
    max_tokens: int = Field(
        default=2048, ge=8, description="Longest prompt plus response; a longer response is cut, at its end"
    )


def composition(config: IfdConfig) -> Composition:
    value = "ifd" if config.ratio == "loss" else "ifd_perplexity"
    scores = {IFD: TokenScore(value=value, **config.shared())}
    whole = [Keep(by=CUT, at_most=0)] if config.truncated == "drop" else []
    aligned = [] if config.max_ifd is None else [Keep(by=IFD, below=config.max_ifd)]
    return Composition(scores, [*whole, *aligned, Top(by=IFD)])


select = composed(composition)
