"""Bases held in 4 bits: how bitsandbytes is told to load them, and that it leaves them as loaded. Imports torch."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from finetune_api.sections.quantization import Quantization


def nf4_settings(quantization: Quantization, compute: str) -> Any:
    """For `from_pretrained(quantization_config=…)`. compute: what weights are unpacked to, by torch's name (`precision.nf4_compute`)."""
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=quantization.effective_nf4.double_quantization,
        bnb_4bit_compute_dtype=getattr(torch, compute),
    )


def keep_layout(model: torch.nn.Module) -> None:
    """Keeps 4-bit weights in the one layout that has a backward pass.

    On a CPU with avx512_bf16 the first forward pass in eval mode would repack them for a product without gradients, for good: all
    that trains below such a layer stands still, and no error says so. Source: bitsandbytes.nn.Linear4bit.forward.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
