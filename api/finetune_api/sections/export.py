"""`spec.export`: what is made of the result."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from finetune_api.section import Section, map_list, rules
from finetune_api.sections.model import Dtype


class GGUFType(StrEnum):
    F16 = "F16"
    BF16 = "BF16"
    Q8_0 = "Q8_0"
    Q6_K = "Q6_K"
    Q5_K_M = "Q5_K_M"
    Q4_K_M = "Q4_K_M"


class ParityBound(Section):
    format: Literal["Merged", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"] = Field(
        description="Format that the bounds hold for. Required."
    )
    max_kl: float | None = Field(
        default=None,
        alias="maxKL",
        gt=0,
        le=10,
        description="Largest mean KL divergence from the adapter on the unquantized base, in nats. Default: three times what correct rounding of this model to the format, or the runtime's own arithmetic, was measured to lose.",
    )
    min_top1_agreement: float | None = Field(
        default=None,
        alias="minTop1Agreement",
        ge=0,
        le=1,
        description="Least share of answer positions with the same most likely token. Default: it may change at twice as many positions as by correct rounding or the runtime's arithmetic, and three more.",
    )


class Export(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.parity.all(p, p.format == 'Merged' || p.format in self.gguf)",
                "parity bounds a format that is not made: list it in export.gguf, or remove the bound",
            )
        )
    )

    merged: Literal["Publish", "Omit"] = Field(
        default="Publish",
        description="Whether the merged safetensors are among the published artifacts. Default: Publish.",
    )
    merged_dtype: Dtype = Field(
        default=Dtype.AUTO,
        description="Type of the merged weights. Auto: bf16 where the base is and rounding to it loses at most 1 % of the tune and of the top tokens, else fp16 where its precision holds the weights and its range twice the largest activation, else fp32 (vLLM casts that to 16 bits unless told otherwise). Default: Auto.",
    )
    gguf: Annotated[list[GGUFType], Field(max_length=8)] = Field(
        default=[],
        description="GGUF files to make, by llama.cpp's type names. Default: none.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    parity: Annotated[list[ParityBound], Field(max_length=8)] = Field(
        default=[],
        description="Bounds that take the place of those measured in the stage. Default: none.",
        json_schema_extra=map_list("format"),
    )

    def own_bounds(self, format: str) -> ParityBound | None:
        """The bounds that the user set for a format."""
        return next((bound for bound in self.parity if bound.format == format), None)
