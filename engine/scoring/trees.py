"""Number of nodes of a row's semantic parse tree, drawn by a language model or recorded (arXiv 2308.05696).

Several turns: as the parser's `turns` says, the last user message has a tree, or every one, and their sizes are put
together; a recorded number is the row's, whatever it was made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from engine.config import RecorderConfig
from engine.config_endpoint import OpenAITreeConfig
from engine.paid.passes import PaidPass
from engine.paid.tagging import NODES, tree_pass
from engine.recipes.base import Context
from engine.scoring.base import Measured, Score
from engine.scoring.recorded import recorded_numbers

ParserConfig = Annotated[OpenAITreeConfig | RecorderConfig, Field(discriminator="kind")]


class Tree(Measured):
    """Nodes of the parse tree of each row's query."""

    kind: Literal["tree"] = "tree"
    parser: ParserConfig = Field(description="Who draws the trees, or where their numbers of nodes are recorded")

    @property
    def passes(self) -> Sequence[PaidPass]:
        return (tree_pass(self.parser),) if isinstance(self.parser, OpenAITreeConfig) else ()

    def measure(self, context: Context) -> Score:
        if isinstance(self.parser, OpenAITreeConfig):
            return Score.of(tree_pass(self.parser).run(context), NODES)
        return recorded_numbers(context, self.parser.model_dump(exclude={"kind"}), NODES)
