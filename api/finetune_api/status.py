"""Pieces of status that both kinds have. What is longer than status may hold is cut when it is read: one over its schema is refused for ever."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any, Literal

from annotated_types import GroupedMetadata, MaxLen
from pydantic import AwareDatetime, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from finetune_api.section import Section


def cut(text: str, limit: int = 1024) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, whole seconds: what the API server writes itself."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class AtMost(GroupedMetadata):
    """So many characters of a text, items of a list or members of a map; the rest is left out when it is read."""

    limit: int

    def __iter__(self) -> Iterator[Any]:
        yield MaxLen(self.limit)
        yield BeforeValidator(self._fitting)

    def _fitting(self, value: Any) -> Any:
        match value:
            case str():
                return cut(value, self.limit)
            case list() | tuple():
                return value[: self.limit]
            case dict():
                return dict(islice(value.items(), self.limit))
        return value


LARGEST_INTEGER = 2**53
"""The API server takes a larger one for a real number, and refuses that where an integer is wanted."""

Short = Annotated[str, AtMost(256)]

Long = Annotated[str, AtMost(1024)]

Time = Annotated[
    AwareDatetime, PlainSerializer(timestamp, when_used="json"), WithJsonSchema({"type": "string", "maxLength": 256}, mode="validation")
]
"""A moment that is calculated with. One that is only shown is a text, which any operator's hand can have written."""


def atomic_list() -> dict[str, Any]:
    """Marks a list that is replaced as a whole: its items have no name."""
    return {"x-kubernetes-list-type": "atomic"}


class Loose(Section):
    """A part of status: written by us alone. Members of a newer operator are kept as they are by an older one that does not know them."""

    model_config = ConfigDict(extra="allow")


class ConditionStatus(Loose):
    type: Short = Field(description="Name of the condition.")
    status: Literal["True", "False", "Unknown"] = Field(description="True, False or Unknown.")
    reason: Short = Field(default="", description="Why, in one PascalCase word that programs may rely on.")
    message: Long = Field(default="", description="Why, in a sentence.")
    observed_generation: int = Field(default=0, description="Generation of the spec that it speaks of.")
    last_transition_time: Time | None = Field(default=None, description="When status last changed (RFC 3339).")
