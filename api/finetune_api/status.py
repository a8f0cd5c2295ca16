"""Pieces of status that both kinds have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from finetune_api.section import Section

Short = Annotated[str, Field(max_length=256)]

Long = Annotated[str, Field(max_length=1024)]


class Loose(Section):
    """A part of status: written by us alone, read leniently so that an older operator understands a newer one's status."""

    model_config = ConfigDict(extra="ignore")


class ConditionStatus(Loose):
    type: Short = Field(description="Name of the condition.")
    status: Literal["True", "False", "Unknown"] = Field(description="True, False or Unknown.")
    reason: Short = Field(description="Why, in one PascalCase word that programs may rely on.")
    message: Long = Field(default="", description="Why, in a sentence.")
    observed_generation: int = Field(default=0, description="Generation of the spec that it speaks of.")
    last_transition_time: Short = Field(description="When status last changed (RFC 3339).")
