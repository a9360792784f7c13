"""Superfiltering: instruction-following difficulty (IFD) as a small language model sees it.

"Superfiltering: Weak-to-Strong Data Filtering for Fast Instruction-Tuning" (Li et al., ACL 2024, arXiv 2402.00530): a
weak model orders rows by IFD much as a strong one does, so GPT-2 (124M) can score for a model of any size.

    IFD = ppl(A|Q) / ppl(A) = exp(s(A|Q) - s(A))

with s the mean NLL of the response's tokens. Rows below 1 are sorted and the highest are selected (paper: 10 %). Prompt
and response are plain text, a line each, cut to 1,024 tokens.

Needs: a small causal language model; a CPU will do.
Cost: two forward passes of that model per row, over prompt plus response and over the response. A million rows of 600
tokens in both passes and GPT-2 (124M): 1.5e17 operations.
Known bias: as recipe `ifd`; besides, GPT-2 reads English, and text in another language or code scores by accident of
its tokenizer. Choose a small multilingual model there.

Differs from the paper in: both passes score exactly the same tokens after a start token; the published code has no
start token, so without the prompt it leaves out the first token of the response, and where the two texts merge it is
off by one more. A row that cannot be scored is an error row instead of a score of 0.

`diverse` is Superfiltering.D: of the 20 % of highest IFD, those that stand best for these 20 %, by facility location on
vectors of prompt and response (paper: MiniLM, 2 % of the pool; set `budget: 0.02`). Its similarity is cosine, where the
published code takes one made from Euclidean distances; `facility_location` says how that is summed.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.composition import Composition, composed
from engine.recipes import ifd
from engine.selecting.ranks import Top
from engine.selecting.vectors import FacilityLocation


class Config(ifd.IfdConfig):
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
    diverse: bool = Field(
        default=False, description="Choose the budget among the rows of highest IFD, by facility location on vectors"
    )
    shortlist: float = Field(
        default=0.2, gt=0.0, description="diverse: rows of highest IFD to choose among, a share of the pool or a number"
    )


def composition(config: Config) -> Composition:
    by_ifd = ifd.composition(config)
    if not config.diverse:
        return by_ifd
    chain = [*by_ifd.select[:-1], Top(by=ifd.IFD, rows=config.shortlist), FacilityLocation()]
    return Composition(by_ifd.scores, chain)


select = composed(composition)
