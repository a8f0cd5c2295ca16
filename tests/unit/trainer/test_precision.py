"""The types that training takes and those that the memory plan tells, over every combination of settings and devices."""

from __future__ import annotations

from itertools import product

from finetune_api.run import LocalRunSpec
from finetune_api.sections.adapter import AdapterType
from finetune_api.sections.model import Dtype
from finetune_api.sections.quantization import QuantizationType
from finetune_api.sections.training import Precision
from finetune_trainer.errors import StageError
from finetune_trainer.memory import Device as PlannedDevice
from finetune_trainer.memory import dtypes
from finetune_trainer.precision import Device, choose_dtypes

DEVICES = {
    Device.CPU: PlannedDevice("cpu", 1, has_bfloat16=False),
    Device.GPU: PlannedDevice("cuda", 1),
    Device.GPU_WITHOUT_BF16: PlannedDevice("cuda", 1, has_bfloat16=False),
}


def make_run(adapter: str, quantization: str, dtype: str, precision: str) -> LocalRunSpec:
    return LocalRunSpec.model_validate(
        {
            "storage": {"root": "/x", "prefix": "y"},
            "model": {"source": "m", "dtype": dtype},
            "datasets": [],
            "adapter": {"type": adapter},
            "quantization": {"type": quantization},
            "training": {"precision": precision},
        }
    )


def test_what_training_takes_and_what_is_planned() -> None:
    accepted, differing = 0, set()
    for settings in product(AdapterType, QuantizationType, Dtype, Precision):
        run = make_run(*settings)
        for device, planned_device in DEVICES.items():
            try:
                taken = choose_dtypes(run, device)
            except StageError:
                continue
            accepted += 1
            planned = dtypes(run, planned_device)
            frozen = "nf4" if run.quantization.type is QuantizationType.NF4 else taken.base
            if (planned.get("frozen", "float32"), planned["compute"]) != (frozen, taken.autocast):
                differing.add((*settings, device))
    assert accepted == 88
    half_weights_alone = product([AdapterType.LORA], QuantizationType, [Dtype.BFLOAT16, Dtype.FLOAT16], [Precision.AUTO])
    said = {(*settings, device) for settings in half_weights_alone for device in Device}
    assert differing == {
        entry
        for entry in said
        if not (entry[2] is Dtype.BFLOAT16 and entry[4] is Device.GPU)
        and not (entry[2] is Dtype.FLOAT16 and entry[4] is Device.GPU_WITHOUT_BF16)
    }
    assert len(differing) == 8
