"""The models that exports are held against, run by torch in float32: the adapter on the unquantized base, and its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from finetune_api.sections.quantization import Quantization
from peft import PeftModel
from transformers import AutoModelForCausalLM

from finetune_trainer.device import ASSUMED_CPU, Device
from finetune_trainer.package.positions import AnswerRow
from finetune_trainer.package.rounding import Rounding
from finetune_trainer.precision import nf4_compute
from finetune_trainer.quantized import keep_layout, nf4_settings

Logits = npt.NDArray[np.float32]
DTYPES = {"BFloat16": torch.bfloat16, "Float16": torch.float16, "Float32": torch.float32}


_WATCHED_ROWS = 16


class Peak:
    """The largest magnitude that goes into or comes out of any of a model's layers, over the first rows."""

    def __init__(self) -> None:
        self.value = 0.0

    def watched(self, model: Any, rows: Sequence[AnswerRow]) -> Iterator[Logits]:
        """The model's logits; watching costs a pass over every activation, so it ends after a few rows."""
        leaves = [module for module in model.modules() if not list(module.children())]
        hooks = [module.register_forward_hook(self._see) for module in leaves]
        yield from _logits(model, rows[:_WATCHED_ROWS])
        for hook in hooks:
            hook.remove()
        yield from _logits(model, rows[_WATCHED_ROWS:])

    def _see(self, _module: Any, arguments: tuple[Any, ...], output: Any) -> None:
        for found in (*arguments, output):
            if isinstance(found, torch.Tensor) and found.is_floating_point() and found.numel():
                self.value = max(self.value, *(abs(float(end)) for end in found.aminmax()))


def tuned_logits(base: Path, adapter: Path | None, rows: Sequence[AnswerRow]) -> Iterator[Logits]:
    """Logits (positions, vocabulary) of each row in float32: the adapter on the unquantized base, or the trained model in `base`."""
    return _logits(_tuned(base, adapter), rows)


def model_logits(folder: Path, rows: Sequence[AnswerRow]) -> Iterator[Logits]:
    """Logits of a model folder in float32, whatever its weights are stored in."""
    return _logits(_load(folder, torch.float32), rows)


def rounded_logits(base: Path, adapter: Path | None, rows: Sequence[AnswerRow], rounding: Rounding, peak: Peak) -> Iterator[Logits]:
    """Logits of the tuned model, merged by PEFT, with each weight rounded and nothing else: what a correct export says."""
    model = _tuned(base, adapter)
    model = model.merge_and_unload() if adapter else model
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.from_numpy(rounding(name, weight.float().cpu().numpy())))
    return peak.watched(model, rows)


def round_to_dtype(dtype: str) -> Rounding:
    """Rounds to a type by torch's own conversion; `dtype` as the API names it."""
    return lambda _, values: torch.from_numpy(values).to(DTYPES[dtype]).float().numpy()


def quantized_logits(base: Path, adapter: Path, quantization: Quantization, rows: Sequence[AnswerRow]) -> Iterator[Logits]:
    """Logits of what QLoRA trained: the adapter on the 4-bit base."""
    compute = nf4_compute(quantization, _device())
    model = _load(base, torch.float32, quantization_config=nf4_settings(quantization, compute))
    keep_layout(model)
    return _logits(PeftModel.from_pretrained(model, str(adapter)), rows)


def _tuned(base: Path, adapter: Path | None) -> Any:
    model = _load(base, torch.float32)
    return PeftModel.from_pretrained(model, str(adapter)) if adapter else model


def _load(folder: Path, dtype: torch.dtype, **settings: Any) -> Any:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, device_map={"": device}, **settings
    )


def _device() -> Device:
    if not torch.cuda.is_available():
        return ASSUMED_CPU
    memory = torch.cuda.get_device_properties(0).total_memory
    return Device("cuda", memory, has_bfloat16=torch.cuda.is_bf16_supported(including_emulation=False))


_BATCH_TOKENS = 512


def _logits(model: Any, rows: Sequence[AnswerRow]) -> Iterator[Logits]:
    model.eval()
    with torch.inference_mode():
        for batch in _batches(rows):
            longest = max(len(row.ids) for row in batch)
            # Padded at the end and without a mask: in a causal model no token sees what comes after it.
            ids = torch.tensor([row.ids + row.ids[-1:] * (longest - len(row.ids)) for row in batch], device=model.device)
            found = model(input_ids=ids, use_cache=False).logits
            for row, logits in zip(batch, found, strict=True):
                yield logits[row.positions].float().cpu().numpy()


def _batches(rows: Sequence[AnswerRow]) -> Iterator[list[AnswerRow]]:
    """Rows in their order, as many at once as fit when padded to the longest."""
    batch: list[AnswerRow] = []
    for row in rows:
        longest = max(len(other.ids) for other in (*batch, row))
        if batch and longest * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
