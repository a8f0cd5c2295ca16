"""Supervised fine-tuning: LoRA, QLoRA or full weights, by TRL's SFTTrainer over rows that prepare tokenised and masked."""

from __future__ import annotations

from typing import Any

import trl
from finetune_api.outcome import Reason
from finetune_api.sections.training import Packing

from finetune_trainer.errors import StageError
from finetune_trainer.train import rows
from finetune_trainer.train.building import common_arguments, common_parts, made_ready
from finetune_trainer.train.loop import GuardedLoop, run_to_last_step
from finetune_trainer.train.methods import Trained, TrainingJob


class SFT(GuardedLoop, trl.SFTTrainer):  # type: ignore[misc]
    pass


def train(job: TrainingJob) -> Trained:
    """Trains to the last step. Errors: StageError(DocumentsLeak); those of `run_to_last_step`."""
    warnings: list[str] = []
    trainer = build(job, padding_free=True)
    if rows.rows_see_each_other(trainer):
        if job.run.training.packing is Packing.DOCUMENTS:
            raise StageError(Reason.DOCUMENTS_LEAK, "this model's attention mixes packed rows; set training.packing to None")
        warnings.append("this model's attention would mix the rows of a flattened batch: rows are padded instead")
        trainer = build(job, padding_free=False)
    return run_to_last_step(trainer, job, warnings)


def build(job: TrainingJob, padding_free: bool) -> Any:
    """TRL's trainer over the base model, its adapter and the prepared rows, with every trainable tensor in fp32."""
    arguments = trl.SFTConfig(
        **common_arguments(job),
        # Rows come tokenised, masked, truncated and packed; the collator flattens a batch into one row of documents.
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        padding_free=padding_free,
    )
    trainer = SFT(
        **common_parts(job, arguments),
        train_dataset=rows.training_rows(job.prepared, job.run.training),
        eval_dataset=rows.validation_rows(job.prepared, arguments.per_device_eval_batch_size * job.around.world_size),
    )
    return made_ready(trainer, job)
