"""The models that exports are held against, run by torch: the adapter on the unquantized base, and its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from finetune_api.sections.quantization import Quantization
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from finetune_trainer.package.positions import AnswerRow

Logits = npt.NDArray[np.float32]
_COMPUTE = {"BFloat16": torch.bfloat16, "Float16": torch.float16, "Float32": torch.float32}


def tuned_logits(base: Path, adapter: Path | None, rows: Sequence[AnswerRow]) -> Iterator[Logits]:
    """Logits (positions, vocabulary) of each row in float32: the adapter on the unquantized base, or the trained model in `base`."""
    model = _load(base, torch.float32)
    return _logits(PeftModel.from_pretrained(model, str(adapter)) if adapter else model, rows)


def model_logits(folder: Path, rows: Sequence[AnswerRow]) -> Iterator[Logits]:
    """Logits of a model folder in float32, whatever its weights are stored in."""
    return _logits(_load(folder, torch.float32), rows)


def quantized_logits(base: Path, adapter: Path, quantization: Quantization, rows: Sequence[AnswerRow]) -> Iterator[Logits]:
    """Logits of what QLoRA trained: the adapter on the 4-bit base."""
    compute = _COMPUTE[quantization.effective_nf4.compute_dtype] if torch.cuda.is_available() else torch.float32
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=quantization.effective_nf4.double_quantization,
        bnb_4bit_compute_dtype=compute,
    )
    model = _load(base, compute, quantization_config=settings)
    return _logits(PeftModel.from_pretrained(model, str(adapter)), rows)


def _load(folder: Path, dtype: torch.dtype, **settings: Any) -> Any:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, device_map={"": device}, **settings
    )


def _logits(model: Any, rows: Sequence[AnswerRow]) -> Iterator[Logits]:
    model.eval()
    with torch.inference_mode():
        for row in rows:
            ids = torch.tensor([row.ids], device=model.device)
            # One row at a time: no padding, so nothing that a mask could get wrong.
            found = model(input_ids=ids, use_cache=False).logits[0, row.positions]
            yield found.float().cpu().numpy()
