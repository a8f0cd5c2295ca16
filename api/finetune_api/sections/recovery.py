"""`spec.recovery` and `spec.resumeFrom`: what happens after a failure, and what an older job left."""

from __future__ import annotations

from pydantic import Field

from finetune_api.section import Name, Section, mutable


class Recovery(Section):
    max_attempts: int = Field(
        default=3,
        ge=1,
        le=100,
        description="Attempts a stage has; preemption and node loss do not count. Default: 3.",
        json_schema_extra=mutable(),
    )


class ResumeFrom(Section):
    job_name: Name = Field(description="Older FineTuneJob in the namespace whose stages with equal inputs are taken over. Required.")
