"""What a run trains on. Plain numbers, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GIB = 1 << 30


@dataclass(frozen=True)
class Device:
    """One of a pod's devices. `flops`: peak dense FLOP/s in bf16; None where a time cannot be told.

    `has_bfloat16`: whether it computes in bf16 by itself; a CPU does so slowly, and only where a run asks for it.
    """

    kind: Literal["cuda", "cpu"]
    memory_bytes: int
    flops: float | None = None
    has_bfloat16: bool = True


GPUS: dict[str, Device] = {
    "A10G": Device("cuda", 24 * GIB, 70e12),
    "L4": Device("cuda", 24 * GIB, 121e12),
    "RTX 3090": Device("cuda", 24 * GIB, 71e12),
    "RTX 4090": Device("cuda", 24 * GIB, 165e12),
    "A100-40GB": Device("cuda", 40 * GIB, 312e12),
    "L40S": Device("cuda", 48 * GIB, 362e12),
    "A100-80GB": Device("cuda", 80 * GIB, 312e12),
    "H100": Device("cuda", 80 * GIB, 989e12),
    "H200": Device("cuda", 141 * 10**9, 989e12),
    "B200": Device("cuda", 180 * 10**9, 2250e12),
}
"""Memory and peak dense bf16 FLOP/s. Source: NVIDIA's data sheets."""

ASSUMED_GPU = GPUS["A10G"]
"""The smallest common one: a plan made before a GPU is seen must not promise too much."""
ASSUMED_CPU = Device("cpu", 4 * GIB, None, has_bfloat16=False)
