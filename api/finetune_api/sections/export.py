"""`spec.export`: what is made of the result."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.section import Section, map_list


class GGUFType(StrEnum):
    F16 = "F16"
    BF16 = "BF16"
    Q8_0 = "Q8_0"
    Q6_K = "Q6_K"
    Q5_K_M = "Q5_K_M"
    Q4_K_M = "Q4_K_M"


PARITY_BOUNDS: dict[str, tuple[float, float]] = {
    "Merged": (1e-4, 0.995),
    "F16": (1e-4, 0.99),
    "BF16": (1e-4, 0.99),
    "Q8_0": (3e-3, 0.965),
    "Q6_K": (1e-2, 0.95),
    "Q5_K_M": (2e-2, 0.935),
    "Q4_K_M": (6e-2, 0.89),
}
"""Default bounds per format: (largest mean KL in nats over answer positions, least share of equal top-1 tokens).

Source: llama.cpp's quantization table for Llama-3-8B, with room for other models.
"""


class ParityBound(Section):
    format: Literal["Merged", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"] = Field(
        description="Format that the bounds hold for. Required."
    )
    max_kl: float | None = Field(
        default=None,
        alias="maxKL",
        gt=0,
        le=10,
        description="Largest mean KL divergence from the adapter on the unquantized base, in nats. Default: the format's (F16 1e-4, Q8_0 3e-3, Q4_K_M 6e-2).",
    )
    min_top1_agreement: float | None = Field(
        default=None,
        alias="minTop1Agreement",
        ge=0,
        le=1,
        description="Least share of answer positions with the same most likely token. Default: the format's.",
    )


class Export(Section):
    merged: Literal["Publish", "Omit"] = Field(
        default="Publish",
        description="Whether the merged safetensors are among the published artifacts. Default: Publish.",
    )
    gguf: Annotated[list[GGUFType], Field(max_length=8)] = Field(
        default=[],
        description="GGUF files to make, by llama.cpp's type names. Default: none.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    parity: Annotated[list[ParityBound], Field(max_length=8)] = Field(
        default=[],
        description="Bounds that differ from a format's default. Default: none.",
        json_schema_extra=map_list("format"),
    )

    def bounds(self, format: str) -> tuple[float, float]:
        """`(largest mean KL, least top-1 agreement)` that hold for a format."""
        max_kl, min_top1 = PARITY_BOUNDS[format]
        for own in self.parity:
            if own.format == format:
                max_kl = own.max_kl if own.max_kl is not None else max_kl
                min_top1 = own.min_top1_agreement if own.min_top1_agreement is not None else min_top1
        return max_kl, min_top1
