"""`spec.checkpoints`: how often a run is saved."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from finetune_api.section import Section, rules


class Checkpoints(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(("(self.type == 'Steps') == has(self.everySteps)", "everySteps goes with type Steps"))
    )

    type: Literal["Auto", "Steps"] = Field(
        default="Auto",
        description="Cadence: Auto balances the time of a save against work lost, Steps is fixed. Default: Auto.",
    )
    every_steps: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="Optimizer steps between checkpoints; only with type Steps. No default.",
    )
    keep: int = Field(default=2, ge=1, le=100, description="Newest verified checkpoints that are kept. Default: 2.")
    on_preemption: Literal["Save", "Skip"] = Field(default="Save", description="What SIGTERM does before the pod stops. Default: Save.")
