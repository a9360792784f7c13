"""A small configuration with every shape that the real one may have, for the tests of reading and writing."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from engine.errors import ConfigError


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Remote(Strict):
    kind: Literal["remote"] = "remote"
    model: str = Field(description="Name of the model")
    max_usd: float = Field(default=1.0, ge=0, description="Money limit")
    remote: int = Field(default=1, description="Named like its own tag")


class Local(Strict):
    kind: Literal["local"] = "local"
    threads: int = Field(default=1, ge=1, description="CPU threads")
    mode: Literal["fast", "slow"] = "fast"


Judge = Annotated[Remote | Local, Field(discriminator="kind")]


class Stop(Strict):
    max_rounds: int = Field(default=5, ge=1, le=100, description="Most rounds")
    accuracy: float | Literal["auto"] = Field(default="auto", description="Stop at this validation accuracy")

    @model_validator(mode="after")
    def _check(self) -> Stop:
        if self.max_rounds == 13:
            raise ConfigError("max_rounds must not be 13", fix="take 12 or 14")
        return self


class Run(Strict):
    seed: int = Field(default=0, description="Seed of every draw")
    budget: float = Field(gt=0, description="Share of the pool")
    judge: Judge = Field(description="Who compares")
    judges: list[Judge] = Field(default_factory=list, description="More of them")
    stop: Stop = Field(default_factory=Stop, description="When to stop")
    maybe: Stop | None = Field(default=None, description="Another stop, off by default")
    color: Color = Color.RED
    limits: dict[str, int] = Field(default_factory=dict, description="Rows per source")
    weights: dict[str, Stop] = Field(default_factory=dict)
    pair: tuple[int, str] = (1, "a")
    texts: list[str] = Field(default_factory=list)
    flag: bool = False

    @field_validator("seed")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("the seed must be even")
        return value
