"""What every config model is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[float, Field(ge=0.0, lt=1.0)]


MAY_BE_PATH = "may be a path"  # a mark in the type of a setting
PathOrName = Annotated[str, MAY_BE_PATH]  # a file or folder of this machine, or what is known by that name elsewhere


class Strict(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def may_be_path(field: FieldInfo) -> bool:
    """Whether a setting, or each of its list, is a `PathOrName`."""

    def marked(annotation: Any) -> bool:
        return MAY_BE_PATH in getattr(annotation, "__metadata__", ()) or any(map(marked, get_args(annotation)))

    return MAY_BE_PATH in field.metadata or marked(field.annotation)


def models_in(value: Any) -> Iterator[Strict]:
    """Every settings model inside a value, itself first."""
    if isinstance(value, Strict):
        yield value
        value = [getattr(value, name) for name in type(value).model_fields]
    elif isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from models_in(one)
