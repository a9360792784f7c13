"""InsTag: open-set tags of every query by a language model; the rows of most tags that together cover all of them.

"#InsTag: Instruction Tagging for Analyzing Supervised Fine-tuning of Large Language Models" (Lu et al., ICLR 2024,
arXiv 2308.07074). Complexity of a row: its mean number of tags of a query. Diversity of a selection: the share of all
tags that it has. The sampler ("complexity-first diverse", algorithm 1):

    sort rows by complexity; T = {}; scan: take q if |T + tags(q)| > |T|, then T = T + tags(q);
    at the end of a scan start again with T = {} on the rows that are left, until there are N

Before that tags are normalised: those in fewer than 20 queries go; lower case, special characters and stems; DBSCAN
(cosine distance 0.05) on vectors of the tags; association rules a -> b (support 40, confidence 99 %) merge a into b.

Needs: a language model behind an endpoint for the tags, or tags in a column or file; the run's encoder for the tags.
Cost: a call per query, about 250 + its own tokens in and 20 out; after that seconds for a million rows, and
about 40 bytes of memory in one process for each tag of each row.
Known bias: prefers long, many-sided queries; rare tags are often noise of the tagger, and each draws a row. English
tags and stems, whatever the language of the pool.

Differs from the paper in: tags are asked for without explanations, which would triple the replies; the thresholds 20
and 40 shrink in proportion in pools below the paper's 306,044 queries; rules are between single tags, where FP-growth
may find several on the left side; `+` and `#` at the end of a word stay, so C, C++ and C# are three; merged tags are
called by their most frequent spelling; the tags' vectors come from the run's encoder instead of PhraseBERT. The session
of several turns: every user message is tagged alone, the row has the tags of all of them, and its complexity is the
mean (`tagger.turns: last` tags the last one only).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.composition import Composition, composed
from engine.config import RecipeConfig
from engine.scoring.tags import TaggerConfig, Tags
from engine.selecting.tags import TagCoverage
from engine.tag_normalisation import COMPLEXITY, Normalisation

EXAMPLE = {"tagger": {"kind": "openai", "model": "gpt-4o-mini"}}


class Config(RecipeConfig):
    name: Literal["instag"] = "instag"
    tagger: TaggerConfig = Field(description="Who tags: kind openai, or recorded")
    normalise: Normalisation | None = Field(
        default_factory=Normalisation, description="How many spellings become one tag; null: tags as they are given"
    )


def composition(config: Config) -> Composition:
    scores = {"tags": Tags(tagger=config.tagger, normalise=config.normalise)}
    return Composition(scores, [TagCoverage(tags="tags", by=COMPLEXITY)])


select = composed(composition)
