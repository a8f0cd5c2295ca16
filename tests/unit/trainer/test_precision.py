"""The types that training takes and those that the memory plan tells, over every combination of settings and devices."""

from __future__ import annotations

from itertools import product

from finetune_api.run import LocalRunSpec
from finetune_api.sections.adapter import AdapterType
from finetune_api.sections.model import Dtype
from finetune_api.sections.quantization import QuantizationType
from finetune_api.sections.training import Precision
from finetune_trainer.device import GIB, Device
from finetune_trainer.errors import StageError
from finetune_trainer.memory import RowStatistics, plan_memory
from finetune_trainer.model_shape import ModelShape
from finetune_trainer.precision import choose_dtypes

DEVICES = [Device("cpu", GIB, has_bfloat16=False), Device("cuda", GIB), Device("cuda", GIB, has_bfloat16=False)]
SHAPE = ModelShape(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    vocab_size=1000, total_parameters=1_000_000,
)  # fmt: skip


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


def test_the_types_that_are_planned_are_those_that_training_takes() -> None:
    accepted = 0
    for *settings, device in product(AdapterType, QuantizationType, Dtype, Precision, DEVICES):
        run = make_run(*settings)
        try:
            taken = choose_dtypes(run, device)
        except StageError:
            continue
        accepted += 1
        plan = plan_memory(run, SHAPE, RowStatistics(10, 100, 20), device)
        frozen = "nf4" if run.quantization.type is QuantizationType.NF4 else taken.base
        assert (plan.dtypes.get("frozen", "float32"), plan.dtypes["compute"]) == (frozen, taken.autocast), (*settings, device)
        if plan.dtypes.get("frozen") in ("bfloat16", "float16"):
            adapter = 4 * plan.trainable_parameters
            assert plan.weights_bytes - adapter == 2 * SHAPE.total_parameters
    assert accepted == 88
