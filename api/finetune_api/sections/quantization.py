"""`spec.quantization`: how the frozen base is held in memory."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from finetune_api.section import Section
from finetune_api.union import Union, member_of


class QuantizationType(StrEnum):
    NONE = "None"
    NF4 = "NF4"


class NF4(Section):
    double_quantization: bool = Field(default=True, description="Quantize NF4's scales too. Default: true.")
    compute_dtype: Literal["BFloat16", "Float16", "Float32"] = Field(
        default="BFloat16",
        description="Type that NF4 weights are unpacked to. Default: BFloat16 (fp16 where the device has no bf16).",
    )


class Quantization(Union):
    type: QuantizationType = Field(
        default=QuantizationType.NONE,
        description="How the frozen base is held in memory while training; QLoRA is LoRA with NF4. Default: None.",
    )
    nf4: NF4 | None = Field(
        default=None,
        description="Settings of NF4; with type NF4 only. Default: double quantization, unpacked to BFloat16.",
        json_schema_extra=member_of("NF4"),
    )

    @property
    def effective_nf4(self) -> NF4:
        return self.nf4 or NF4()
