"""The base model in memory, from safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from finetune_api.outcome import Reason
from finetune_api.run import RunSpec
from finetune_api.sections.model import AttentionImplementation
from finetune_api.sections.quantization import QuantizationType

from finetune_trainer.errors import StageError
from finetune_trainer.precision import Dtypes
from finetune_trainer.quantized import keep_layout, nf4_settings

_ATTENTION = {
    AttentionImplementation.EAGER: "eager",
    AttentionImplementation.SDPA: "sdpa",
    AttentionImplementation.FLASH_ATTENTION_2: "flash_attention_2",
}


def load_base(run: RunSpec, folder: Path, dtypes: Dtypes, device: torch.device) -> Any:
    """The causal language model of `folder`, its weights in `dtypes.base` or NF4.

    Errors: StageError(InvalidModel) where files and architecture do not fit, with what is missing; code of the model never runs.
    """
    quantized: dict[str, Any] = {}
    if run.quantization.type is QuantizationType.NF4:
        quantized = {"quantization_config": nf4_settings(run.quantization, dtypes.quantized_compute), "device_map": {"": device}}
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtypes.base),
            attn_implementation=_ATTENTION.get(run.model.attention_implementation),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **quantized,
        )
    except ImportError as error:
        raise StageError(Reason.UNSUPPORTED_ATTENTION, f"model.attentionImplementation: {error}"[:400]) from error
    except (ValueError, OSError) as error:
        raise StageError(Reason.INVALID_MODEL, f"the base model cannot be loaded: {error}"[:400]) from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise StageError(Reason.INVALID_MODEL, f"the base model's safetensors lack {len(info['missing_keys'])} tensors ({missing})")
    keep_layout(model)
    return model


def make_trainable_fp32(model: torch.nn.Module) -> int:
    """Turns every trainable tensor to float32 and returns how many parameters are trainable.

    TRL casts those of a quantized base to bf16, and PEFT's own upcast leaves saved modules as the base is: in bf16 most updates
    of a small learning rate round to nothing.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.to(torch.float32)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trainable, "nothing is trainable"
    assert all(parameter.dtype == torch.float32 for parameter in trainable)
    return sum(parameter.numel() for parameter in trainable)
