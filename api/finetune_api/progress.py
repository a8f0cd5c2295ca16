"""Progress as trainer pods post it: Kubeflow Trainer's wire format (KEP-2779)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Metric(BaseModel):
    name: str
    value: str


class TrainerStatus(BaseModel):
    """Kubeflow Trainer's wire format (KEP-2779), so that stock trainers report here as well.

    Metrics understood: step, total_steps, epoch, loss, eval_loss, learning_rate, tokens_per_second, gpu_memory_bytes, checkpoint_step.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")

    progress_percentage: int | None = Field(default=None, ge=0, le=100)
    estimated_remaining_seconds: int | None = Field(default=None, ge=0)
    metrics: Annotated[list[Metric], Field(max_length=64)] = []
    last_updated_time: str | None = None


class ProgressReport(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")

    trainer_status: TrainerStatus
