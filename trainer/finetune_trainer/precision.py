"""Which type each kind of tensor has in memory: the one table that training and its memory plan follow. Pure, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.outcome import Reason
from finetune_api.run import RunSpec
from finetune_api.sections.model import Dtype
from finetune_api.sections.quantization import Quantization, QuantizationType
from finetune_api.sections.training import Precision

from finetune_trainer.adapters import adapter_of
from finetune_trainer.device import Device
from finetune_trainer.errors import StageError


@dataclass(frozen=True)
class Dtypes:
    """Names as torch has them (`float32`). Trainable tensors and optimizer states are float32 always.

    `base`: the model's weights as they are loaded; `autocast`: what matrix products run in; `quantized_compute`: what NF4 weights
    are unpacked to.
    """

    base: str
    autocast: str
    quantized_compute: str


_NAMES = {"BFloat16": "bfloat16", "Float16": "float16", "Float32": "float32"}


def choose_dtypes(run: RunSpec, device: Device) -> Dtypes:
    """The types of a run on a device.

    Errors: StageError(UnsupportedPrecision) for a combination that cannot train, with the field to change.
    """
    autocast = _autocast(run, device)
    base = _base(run, autocast)
    if base != "float32" and autocast == "float32":
        raise StageError(
            Reason.UNSUPPORTED_PRECISION,
            f"model.dtype {run.model.dtype} needs training.precision of the same kind: set it to {run.model.dtype} or leave it out",
        )
    return Dtypes(base=base, autocast=autocast, quantized_compute=nf4_compute(run.quantization, device))


def nf4_compute(quantization: Quantization, device: Device) -> str:
    """What NF4 weights are unpacked to on a device, by torch's name: as asked for, or fp16 where it has no bf16."""
    asked = _NAMES[quantization.effective_nf4.compute_dtype]
    return "float16" if asked == "bfloat16" and _is_gpu_without_bfloat16(device) else asked


def shown_dtypes(run: RunSpec, dtypes: Dtypes) -> dict[str, str]:
    """Types as `status.plan` shows them: of frozen weights (absent where all are trained), of trained ones, of the arithmetic."""
    shown = {"trained": "float32", "compute": dtypes.autocast}
    if not adapter_of(run.adapter).freezes_base:
        return shown
    return {"frozen": "nf4" if run.quantization.type is QuantizationType.NF4 else dtypes.base, **shown}


def _is_gpu_without_bfloat16(device: Device) -> bool:
    return device.kind == "cuda" and not device.has_bfloat16


def _autocast(run: RunSpec, device: Device) -> str:
    wanted = run.training.precision
    if wanted is Precision.AUTO:
        frozen_is_half = adapter_of(run.adapter).freezes_base and run.model.dtype in (Dtype.BFLOAT16, Dtype.FLOAT16)
        return _NAMES[run.model.dtype] if frozen_is_half else _fastest(device)
    if wanted is Precision.FLOAT16 and device.kind == "cpu":
        raise StageError(Reason.UNSUPPORTED_PRECISION, "training.precision Float16 needs a GPU; on CPU use BFloat16 or Float32")
    if wanted is Precision.BFLOAT16 and _is_gpu_without_bfloat16(device):
        raise StageError(Reason.UNSUPPORTED_PRECISION, "this GPU has no bf16; set training.precision to Float16 or leave it out")
    return _NAMES[wanted]


def _fastest(device: Device) -> str:
    if device.kind == "cpu":
        return "float32"
    return "bfloat16" if device.has_bfloat16 else "float16"


def _base(run: RunSpec, autocast: str) -> str:
    if not adapter_of(run.adapter).freezes_base:
        if run.quantization.type is not QuantizationType.NONE:
            raise StageError(Reason.UNSUPPORTED_QUANTIZATION, "quantized weights cannot be trained; set adapter.type to LoRA")
        if run.model.dtype not in (Dtype.AUTO, Dtype.FLOAT32):
            raise StageError(
                Reason.UNSUPPORTED_PRECISION,
                "full weights are trained as fp32 masters; remove model.dtype, training.precision sets autocast",
            )
        return "float32"
    return autocast if run.model.dtype is Dtype.AUTO else _NAMES[run.model.dtype]
