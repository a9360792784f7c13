"""The selectors that a composition can chain. One line per kind."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from engine.selecting.choice import LlmChoice
from engine.selecting.groups import Quota
from engine.selecting.ranks import Keep, Middle, Sample, Top
from engine.selecting.tags import TagCoverage
from engine.selecting.targets import RoundRobin
from engine.selecting.unions import Union
from engine.selecting.vectors import Diverse, FacilityLocation, GraphCut, Herding, KCenter

AnySelector = Annotated[
    Diverse
    | FacilityLocation
    | GraphCut
    | Herding
    | KCenter
    | Keep
    | LlmChoice
    | Middle
    | Quota
    | RoundRobin
    | Sample
    | TagCoverage
    | Top
    | Union,
    Field(discriminator="kind"),
]

Union.model_rebuild(_types_namespace={"AnySelector": AnySelector})  # its chains are of any selectors
