"""SelectLLM: a language model picks the most useful instructions from small regions of different ones.

"SelectLLM: Can LLMs Select Important Instructions to Annotate?" (Parkar et al., arXiv 2401.16553). The pool needs no
answers. K-Means on the instructions' vectors with K clusters; R regions of K rows: region after region takes, centre
after centre, the nearest row that no region has. The model is shown a region's instructions, numbered, and picks

    budget / R of them: clear, relevant, complex and detailed, diverse, instructive, challenging

The paper has R = 1,000 and K = 14 (Dolly) or 51 (Alpaca, cleaned), so that regions use the whole pool.

Needs: vectors of the prompts (the paper: all-MiniLM-L6-v2, as the bundled encoder) and a language model behind an
endpoint.
Cost: R calls, 1,000 whatever the budget and the size of the pool; each has K instructions, up to `max_chars` each.
Known bias: of a pool of more than R times K rows only those nearest to the centres are ever shown; models prefer what
stands first or last in a list.

Differs from the paper in: any budget, the first regions give one row more; fewer regions where the pool or the budget
is small; a region is never padded with repeated rows; its rows are numbered in the order of a hash, not of the
clusters; a reply that is not exactly the wanted number of different ids is asked for once more and then the region
gives nothing (the published code then takes the first ids, off by one, and can take a padded row twice); instructions
longer than `max_chars` are cut, those that talk to the model are not shown. Several turns: all text before the last
assistant message is the instruction.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.composition import Composition, composed
from engine.config import RecipeConfig
from engine.config_endpoint import OpenAIChooserConfig
from engine.selecting.choice import LlmChoice

EXAMPLE = {"chooser": {"kind": "openai", "model": "gpt-4o-mini"}}


class Config(RecipeConfig):
    name: Literal["selectllm"] = "selectllm"
    chooser: OpenAIChooserConfig = Field(description="Who chooses")
    regions: int = Field(default=1000, ge=1, description="Most regions; each is one call")
    region_rows: int | None = Field(
        default=None, ge=2, description="Rows of a region; default: as the regions use the pool, from 14 to 51"
    )
    max_chars: int = Field(default=2000, ge=1, description="Longer instructions are shown up to here")


def composition(config: Config) -> Composition:
    return Composition({}, [LlmChoice(**config.model_dump(exclude={"name"}))])


select = composed(composition)
