"""`spec.adapter`: what is trained."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.section import Section
from finetune_api.union import Union, member_of


class TargetModules(Union):
    type: Literal["AllLinear", "Names"] = Field(
        default="AllLinear",
        description="All linear layers but the output head, or the named modules. Default: AllLinear.",
    )
    names: Annotated[list[Annotated[str, Field(max_length=128)]], Field(min_length=1, max_length=64)] | None = Field(
        default=None,
        description="Module names as PEFT matches them; with type Names only, and required there. No default.",
        json_schema_extra=member_of("Names", required=True),
    )


class LoRA(Section):
    rank: int = Field(default=16, ge=1, le=1024, description="Rank r of the update. Default: 16.")
    alpha: float = Field(default=32, gt=0, le=4096, description="Scale: the update is multiplied by alpha / rank. Default: 32.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before the update. Default: 0.")
    target_modules: TargetModules = Field(default=TargetModules(), description="Layers that get an update. Default: all linear ones.")
    modules_to_save: Annotated[list[Annotated[str, Field(max_length=128)]], Field(max_length=16)] = Field(
        default=[],
        description="Modules trained in full and saved with the adapter, such as embed_tokens and lm_head. Default: none.",
    )


class AdapterType(StrEnum):
    LORA = "LoRA"
    NONE = "None"


class Adapter(Union):
    type: AdapterType = Field(default=AdapterType.LORA, description="LoRA, or None for training all weights. Default: LoRA.")
    lora: LoRA | None = Field(
        default=None,
        description="Settings of LoRA; with type LoRA only. Default: rank 16, alpha 32, all linear layers.",
        json_schema_extra=member_of("LoRA"),
    )

    @property
    def effective_lora(self) -> LoRA:
        return self.lora or LoRA()
