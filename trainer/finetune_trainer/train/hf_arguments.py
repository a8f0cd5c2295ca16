"""A run's `training` section in transformers' and TRL's own argument names. Pure, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_api.answer import MemoryPlan
from finetune_api.run import RunSpec
from finetune_api.sections.training import Optimizer, Scheduler, Switch, Training

from finetune_trainer.batches import BatchSplit, choose_split, smallest_split
from finetune_trainer.memory import DEFAULT_EPOCHS
from finetune_trainer.precision import Dtypes
from finetune_trainer.settings import refuse_findings

DEFAULT_WARMUP_RATIO = 0.03

_SCHEDULERS = {
    Scheduler.LINEAR: "linear",
    Scheduler.COSINE: "cosine",
    Scheduler.CONSTANT: "constant",
    Scheduler.CONSTANT_WITH_WARMUP: "constant_with_warmup",
    Scheduler.POLYNOMIAL: "polynomial",
    Scheduler.INVERSE_SQRT: "inverse_sqrt",
}
_OPTIMIZERS = {
    Optimizer.ADAMW: "adamw_torch",
    Optimizer.ADAMW_FUSED: "adamw_torch_fused",
    Optimizer.ADAMW_8BIT: "adamw_8bit",
    Optimizer.PAGED_ADAMW_8BIT: "paged_adamw_8bit",
    Optimizer.PAGED_ADAMW_32BIT: "paged_adamw_32bit",
    Optimizer.ADAFACTOR: "adafactor",
    Optimizer.SGD: "sgd",
}


@dataclass(frozen=True)
class Surroundings:
    """What the mapping needs beside the spec: `world_size` ranks, whether there are validation rows, and the plan of prepare."""

    world_size: int
    on_cpu: bool
    has_validation_rows: bool
    plan: MemoryPlan
    dtypes: Dtypes


def hf_arguments(run: RunSpec, around: Surroundings) -> dict[str, Any]:
    """Arguments of TrainingArguments, complete but for the output folder and what a method adds.

    Errors: StageError(InvalidArgument | InvalidBatchSize), with the field to change.
    """
    training, plan = run.training, around.plan
    refuse_findings(training)
    split = _split(training, around)
    return {
        **training.args,
        "max_steps": training.max_steps or -1,
        "num_train_epochs": training.epochs or DEFAULT_EPOCHS,
        "learning_rate": training.learning_rate or plan.learning_rate,
        "lr_scheduler_type": _SCHEDULERS[training.scheduler],
        "warmup_steps": _warmup(training),
        "per_device_train_batch_size": split.micro_batch,
        "per_device_eval_batch_size": split.micro_batch,
        "gradient_accumulation_steps": split.accumulation,
        "optim": _OPTIMIZERS[training.optimizer],
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "neftune_noise_alpha": training.neftune_noise_alpha,
        "bf16": around.dtypes.autocast == "bfloat16",
        "fp16": around.dtypes.autocast == "float16",
        "activation_checkpointing": _gradient_checkpointing(training, plan),
        "seed": training.seed,
        "data_seed": training.seed,
        "use_cpu": around.on_cpu,
        "dataloader_pin_memory": training.args.get("dataloader_pin_memory", not around.on_cpu),
        **_evaluation(training, around.has_validation_rows),
        **_PLATFORM,
    }


_PLATFORM: dict[str, Any] = {
    "logging_strategy": "steps",
    "logging_steps": 1,
    # With the filter a NaN is logged as loss 0.0 and the run ends "well".
    "logging_nan_inf_filter": False,
    # Checkpoints come from our own cadence, through `_save_checkpoint`.
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    # Without it TRL computes the logits a second time at each evaluation batch.
    "prediction_loss_only": True,
}


def _split(training: Training, around: Surroundings) -> BatchSplit:
    """As planned; the plan's micro-batch is cut where there are more ranks than it was made for."""
    planned = around.plan.per_device_batch_size
    return choose_split(training, around.world_size, lambda size: size <= planned) or smallest_split(training, around.world_size)


def _warmup(training: Training) -> float:
    """transformers' `warmup_steps`: a count, or below 1 a share of all steps."""
    if training.warmup.steps is not None:
        return training.warmup.steps
    ratio = DEFAULT_WARMUP_RATIO if training.warmup.ratio is None else training.warmup.ratio
    # transformers reads 1 as one step; all but nothing of the run is as close as a share comes.
    return min(ratio, 1 - 1e-9)


def _gradient_checkpointing(training: Training, plan: MemoryPlan) -> bool:
    if training.gradient_checkpointing is Switch.AUTO:
        return plan.gradient_checkpointing
    return training.gradient_checkpointing is Switch.ENABLED


def _evaluation(training: Training, has_validation_rows: bool) -> dict[str, Any]:
    if not has_validation_rows:
        return {"eval_strategy": "no"}
    if training.eval_every_steps is None:
        return {"eval_strategy": "epoch"}
    return {"eval_strategy": "steps", "eval_steps": training.eval_every_steps}
