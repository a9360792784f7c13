"""Tree-Instruct as a selector: the queries whose semantic parse tree has the most nodes.

"Tree-Instruct: A Preliminary Study of the Intrinsic Relationship between Complexity and Alignment" (Zhao et al.,
arXiv 2308.05696) measures the complexity of an instruction by the nodes of its semantic tree, which a language model
draws, and makes data by adding nodes. As a selector ("Instruction Node" in DEITA, arXiv 2312.15685):

    score = number of nodes of the tree; the highest are selected, equal ones by id

Needs: a language model behind an endpoint for the trees, or recorded numbers of nodes. No vectors, no answers.
Cost: a call per row, about 350 tokens and the query in, 100 to 1,000 out: of the paid recipes the dearest replies.
Known bias: prefers long queries, and nearly measures their length. Weak as a selector: with 6,000 rows MT-Bench 5.65,
where random rows have 5.84 (LLaMA-13B, in DEITA's table).

Differs from the paper in: it selects, where the paper grows trees; the prompt is ours, as the paper's is not published;
a tree is JSON, and a reply that is none is asked for once more and then an error row. Several turns: the last user
message, without those before it (`parser.turns: mean` or `sum` puts all of them together).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.composition import Composition, composed
from engine.config import RecipeConfig
from engine.scoring.trees import ParserConfig, Tree
from engine.selecting.ranks import Top

EXAMPLE = {"parser": {"kind": "openai", "model": "gpt-4o-mini"}}


class Config(RecipeConfig):
    name: Literal["tree_instruct"] = "tree_instruct"
    parser: ParserConfig = Field(description="Who draws the trees: kind openai, or recorded numbers of nodes")


def composition(config: Config) -> Composition:
    return Composition({"nodes": Tree(parser=config.parser)}, [Top(by="nodes")])


select = composed(composition)
