"""`spec.quantization`: how the frozen base is held in memory."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from finetune_api.section import Section


class QuantizationType(StrEnum):
    NONE = "None"
    NF4 = "NF4"


class Quantization(Section):
    type: QuantizationType = Field(
        default=QuantizationType.NONE,
        description="How the frozen base is held in memory while training; QLoRA is LoRA with NF4. Default: None.",
    )
    double_quantization: bool = Field(default=True, description="Quantize NF4's scales too. Default: true.")
    compute_dtype: Literal["BFloat16", "Float16", "Float32"] = Field(
        default="BFloat16",
        description="Type that NF4 weights are unpacked to. Default: BFloat16 (fp16 where the device has no bf16).",
    )
