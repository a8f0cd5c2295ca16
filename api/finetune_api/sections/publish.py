"""`spec.publish`: what becomes of a run that passed its gates."""

from __future__ import annotations

from pydantic import Field

from finetune_api.section import ModelName, Section
from finetune_api.sections.rollout import Rollout
from finetune_api.sections.serving import Serving


class Publish(Section):
    """What becomes of a run that passed its gates."""

    model: ModelName = Field(description="Model that the version belongs to; versions of one model share one route. Required.")
    version: int | None = Field(default=None, ge=1, le=999_999, description="Version number. Default: the next free one.")
    serving: Serving = Field(default=Serving(), description="How the version is served. Default: llama.cpp, one replica.")
    rollout: Rollout = Field(default=Rollout(), description="How traffic is moved to it. Default: no route, straight to production.")
