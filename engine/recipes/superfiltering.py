"""Superfiltering: instruction-following difficulty (IFD) as a small language model sees it.

"Superfiltering: Weak-to-Strong Data Filtering for Fast Instruction-Tuning" (Li et al., ACL 2024, arXiv 2402.00530): a
weak model orders rows by IFD much as a strong one does, so GPT-2 (124M) can score for a model of any size.

    IFD = ppl(A|Q) / ppl(A) = exp(s(A|Q) - s(A))

with s the mean NLL of the response's tokens. Rows below 1 are sorted and the highest are selected (paper: 10 %). Prompt
and response are plain text, a line each, cut to 1,024 tokens.

Needs: a small causal language model; a CPU will do.
Cost: two forward passes of that model per row, over prompt plus response and over the response.
Known bias: as recipe `ifd`; besides, GPT-2 reads English, and text in another language or code scores by accident of
its tokenizer. Choose a small multilingual model there.

Differs from the paper in: both passes score exactly the same tokens after a start token; the published code has no
start token, so without the prompt it leaves out the first token of the response, and where the two texts merge it is
off by one more. A row that cannot be scored is an error row instead of a score of 0. The diverse form
(Superfiltering.D, facility location over the top 20 %) is not here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.recipes.ifd import IfdConfig, composition, select

__all__ = ["Config", "composition", "select"]


class Config(IfdConfig):
    name: Literal["superfiltering"] = "superfiltering"
    template: Literal["chat", "alpaca", "plain"] = Field(
        default="plain",
        description="How prompt and response become one text; chat: the model's own template, plain if it has none",
    )
    ratio: Literal["loss", "perplexity"] = Field(
        default="perplexity", description="IFD as the ratio of the two mean losses, or of the two perplexities"
    )
    truncated: Literal["drop", "keep"] = Field(
        default="keep", description="Rows whose response was cut at max_tokens: leave them out, or score what is left"
    )
