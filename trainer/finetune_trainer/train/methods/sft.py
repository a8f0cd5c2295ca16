"""Supervised fine-tuning: LoRA, QLoRA or full weights, by TRL's SFTTrainer over rows that prepare tokenised and masked."""

from __future__ import annotations

from typing import Any

import trl
from finetune_api.outcome import Reason
from finetune_api.sections.training import Packing

from finetune_trainer.batches import refuse_no_batch
from finetune_trainer.errors import StageError
from finetune_trainer.train import rows
from finetune_trainer.train.building import common_arguments, common_parts, made_ready
from finetune_trainer.train.loop import GuardedLoop, run_to_last_step
from finetune_trainer.train.methods import Trained, TrainingJob
from finetune_trainer.train.trial import refuse_arguments, told_by_field


class SFT(GuardedLoop, trl.SFTTrainer):  # type: ignore[misc]
    pass


def train(job: TrainingJob) -> Trained:
    """Trains to the last step. Errors: StageError(InvalidArgument | SettingsRefused | DocumentsLeak); those of `run_to_last_step`."""
    warnings: list[str] = []
    refuse_arguments(job.run.training.args, lambda args: configuration(job.with_arguments(args), padding_free=True))
    trainer = build(job, padding_free=True)
    if rows.rows_see_each_other(trainer):
        if job.run.training.packing is Packing.DOCUMENTS:
            raise StageError(Reason.DOCUMENTS_LEAK, "this model's attention mixes packed rows; set training.packing to None")
        warnings.append("this model's attention would mix the rows of a flattened batch: rows are padded instead")
        trainer = build(job, padding_free=False)
    return run_to_last_step(trainer, job, warnings)


def configuration(job: TrainingJob, padding_free: bool) -> Any:
    return trl.SFTConfig(
        **common_arguments(job),
        # Rows come tokenised, masked, truncated and packed; the collator flattens a batch into one row of documents.
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        padding_free=padding_free,
    )


def build(job: TrainingJob, padding_free: bool) -> Any:
    """TRL's trainer over the base model, its adapter and the prepared rows, with every trainable tensor in fp32.

    Errors: StageError(InvalidArgument | SettingsRefused).
    """
    arguments = configuration(job, padding_free)
    train_rows = rows.training_rows(job.prepared, job.run.training)
    refuse_no_batch(job.run.training, len(train_rows), arguments.per_device_train_batch_size * job.around.world_size)
    parts = common_parts(job, arguments)
    with told_by_field(job.run.training.args):
        trainer = SFT(
            **parts,
            train_dataset=train_rows,
            eval_dataset=rows.validation_rows(job.prepared, arguments.per_device_eval_batch_size * job.around.world_size),
        )
    return made_ready(trainer, job)
