"""Each field of `training` in transformers' names, and the types that a device gives."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.answer import MemoryPlan
from finetune_api.arguments import schema
from finetune_api.run import RunSpec
from finetune_api.sections.training import Training
from finetune_trainer.device import ASSUMED_CPU, GIB, Device
from finetune_trainer.errors import StageError
from finetune_trainer.precision import Dtypes, choose_dtypes
from finetune_trainer.train.hf_arguments import Surroundings, hf_arguments

PLAN = MemoryPlan(
    weights_bytes=0,
    gradients_bytes=0,
    optimizer_bytes=0,
    activations_bytes=0,
    total_bytes=0,
    trainable_parameters=1,
    total_parameters=1,
    per_device_batch_size=6,
    gradient_accumulation_steps=4,
    gradient_checkpointing=True,
    learning_rate=2e-4,
    total_steps=10,
)


def make_run(**sections: Any) -> RunSpec:
    return RunSpec.model_validate({"storage": {"root": "/s", "prefix": "p"}, "model": {"source": "hf://a/b"}, "datasets": [], **sections})


def arguments(training: dict[str, Any], world_size: int = 1, on_cpu: bool = False, has_validation_rows: bool = True) -> dict[str, Any]:
    dtypes = Dtypes(base="bfloat16", autocast="bfloat16", quantized_compute="bfloat16")
    return hf_arguments(make_run(training=training), Surroundings(world_size, on_cpu, has_validation_rows, PLAN, dtypes))


@pytest.mark.parametrize(
    ("training", "wanted"),
    [
        ({}, {"num_train_epochs": 3.0, "max_steps": -1, "learning_rate": 2e-4, "warmup_steps": 0.03, "lr_scheduler_type": "cosine"}),
        (
            {},
            {
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 4,
                "activation_checkpointing": True,
                "eval_strategy": "epoch",
            },
        ),
        ({}, {"optim": "adamw_torch", "weight_decay": 0.0, "max_grad_norm": 1.0, "neftune_noise_alpha": None, "seed": 42, "data_seed": 42}),
        (
            {},
            {"logging_nan_inf_filter": False, "save_strategy": "no", "report_to": "none", "logging_steps": 1, "prediction_loss_only": True},
        ),
        ({"epochs": 0.5}, {"num_train_epochs": 0.5, "max_steps": -1}),
        ({"maxSteps": 7}, {"max_steps": 7}),
        ({"learningRate": 1e-3}, {"learning_rate": 1e-3}),
        ({"warmup": {"steps": 0}}, {"warmup_steps": 0}),
        ({"warmup": {"steps": 12}}, {"warmup_steps": 12}),
        ({"warmup": {"ratio": 0.1}}, {"warmup_steps": 0.1}),
        ({"globalBatchSize": 7}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 7}),
        ({"globalBatchSize": 12}, {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2}),
        ({"globalBatchSize": 4}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}),
        ({"perDeviceBatchSize": 2}, {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "gradient_accumulation_steps": 8}),
        ({"gradientCheckpointing": "Disabled"}, {"activation_checkpointing": False}),
        ({"evalEverySteps": 5}, {"eval_strategy": "steps", "eval_steps": 5}),
        ({"weightDecay": 0.1, "maxGradNorm": 0.3}, {"weight_decay": 0.1, "max_grad_norm": 0.3}),
        ({"neftuneNoiseAlpha": 5}, {"neftune_noise_alpha": 5}),
        ({"seed": 3}, {"seed": 3, "data_seed": 3}),
        ({"args": {"adam_beta2": 0.95}}, {"adam_beta2": 0.95}),
    ],
)
def test_fields_become_arguments(training: dict[str, Any], wanted: dict[str, Any]) -> None:
    made = arguments(training)
    assert {name: made[name] for name in wanted} == wanted


def test_every_argument_that_is_set_exists_in_trl() -> None:
    assert set(arguments({})) <= set(schema())


@pytest.mark.parametrize("name", ["Linear", "Cosine", "Constant", "ConstantWithWarmup", "Polynomial", "InverseSqrt"])
def test_each_scheduler_has_a_name_of_transformers(name: str) -> None:
    assert arguments({"scheduler": name})["lr_scheduler_type"] in schema()["lr_scheduler_type"]["choices"]


@pytest.mark.parametrize("name", ["AdamW", "AdamWFused", "AdamW8bit", "PagedAdamW8bit", "PagedAdamW32bit", "Adafactor", "SGD"])
def test_each_optimizer_has_a_name_of_transformers(name: str) -> None:
    assert arguments({"optimizer": name})["optim"] in schema()["optim"]["choices"]


def test_every_field_of_training_is_used() -> None:
    """No field is accepted and ignored: packing and max_length act in rows.py and prepare, precision in precision.py, batches in batches.py."""
    import inspect

    from finetune_trainer.train import hf_arguments as module

    elsewhere = {"packing", "max_length", "precision", "global_batch_size", "per_device_batch_size"}
    unused = {name for name in Training.model_fields if f"training.{name}" not in inspect.getsource(module)} - elsewhere
    assert unused == set()


def test_without_validation_rows_nothing_is_evaluated() -> None:
    assert arguments({"evalEverySteps": 5}, has_validation_rows=False)["eval_strategy"] == "no"


def test_ranks_share_the_batch() -> None:
    made = arguments({"globalBatchSize": 16}, world_size=4)
    assert (made["per_device_train_batch_size"], made["gradient_accumulation_steps"]) == (4, 1)


@pytest.mark.parametrize(
    ("training", "world_size", "sentence"),
    [
        ({"globalBatchSize": 6}, 4, "multiple of the 4 GPUs"),
        ({"globalBatchSize": 2}, 4, "multiple of the 4 GPUs"),
        ({"globalBatchSize": 16, "perDeviceBatchSize": 16}, 4, "perDeviceBatchSize × 4 GPUs = 64"),
    ],
)
def test_batches_that_do_not_divide_are_refused(training: dict[str, Any], world_size: int, sentence: str) -> None:
    with pytest.raises(StageError, match=sentence):
        arguments(training, world_size=world_size)


def test_wrong_arguments_are_refused_by_name() -> None:
    with pytest.raises(StageError, match=r"training.args.bf16: use training.precision; training.args.adam_beta1: must be number"):
        arguments({"args": {"bf16": True, "adam_beta1": "x"}})


GPU = Device("cuda", 24 * GIB)
GPU_WITHOUT_BF16 = Device("cuda", 24 * GIB, has_bfloat16=False)
FULL = {"adapter": {"type": "None"}}
NF4 = {"quantization": {"type": "NF4"}}


@pytest.mark.parametrize(
    ("sections", "device", "wanted"),
    [
        ({}, GPU, Dtypes("bfloat16", "bfloat16", "bfloat16")),
        ({}, GPU_WITHOUT_BF16, Dtypes("float16", "float16", "float16")),
        ({}, ASSUMED_CPU, Dtypes("float32", "float32", "bfloat16")),
        (NF4, GPU_WITHOUT_BF16, Dtypes("float16", "float16", "float16")),
        (FULL, GPU, Dtypes("float32", "bfloat16", "bfloat16")),
        (FULL, ASSUMED_CPU, Dtypes("float32", "float32", "bfloat16")),
        ({"training": {"precision": "BFloat16"}}, ASSUMED_CPU, Dtypes("bfloat16", "bfloat16", "bfloat16")),
        ({"training": {"precision": "Float32"}}, GPU, Dtypes("float32", "float32", "bfloat16")),
        ({"model": {"source": "hf://a/b", "dtype": "BFloat16"}}, ASSUMED_CPU, Dtypes("bfloat16", "bfloat16", "bfloat16")),
        ({"model": {"source": "hf://a/b", "dtype": "Float32"}}, GPU, Dtypes("float32", "bfloat16", "bfloat16")),
    ],
)
def test_types_by_device(sections: dict[str, Any], device: Device, wanted: Dtypes) -> None:
    assert choose_dtypes(make_run(**sections), device) == wanted


@pytest.mark.parametrize(
    ("sections", "device", "sentence"),
    [
        ({"training": {"precision": "Float16"}}, ASSUMED_CPU, "needs a GPU"),
        ({"training": {"precision": "BFloat16"}}, GPU_WITHOUT_BF16, "has no bf16"),
        (
            {"model": {"source": "hf://a/b", "dtype": "BFloat16"}, "training": {"precision": "Float32"}},
            GPU,
            "precision of the same kind",
        ),
        ({**FULL, **NF4}, GPU, "set adapter.type to LoRA"),
        ({**FULL, "model": {"source": "hf://a/b", "dtype": "BFloat16"}}, GPU, "fp32 masters"),
    ],
)
def test_types_that_cannot_train_are_refused(sections: dict[str, Any], device: Device, sentence: str) -> None:
    with pytest.raises(StageError, match=sentence):
        choose_dtypes(make_run(**sections), device)
