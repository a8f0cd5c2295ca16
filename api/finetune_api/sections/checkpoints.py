"""`spec.checkpoints`: how often a run is saved."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune_api.union import Union, member_of


class Checkpoints(Union):
    type: Literal["Auto", "Steps"] = Field(
        default="Auto",
        description="Cadence: Auto balances the time of a save against work lost, Steps is fixed. Default: Auto.",
    )
    every_steps: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="Optimizer steps between checkpoints; with type Steps only, and required there. No default.",
        json_schema_extra=member_of("Steps", required=True),
    )
    keep: int = Field(default=2, ge=1, le=100, description="Newest verified checkpoints that are kept. Default: 2.")
    on_preemption: Literal["Save", "Skip"] = Field(default="Save", description="What SIGTERM does before the pod stops. Default: Save.")
