"""Supervised fine-tuning: LoRA, QLoRA or full weights, by TRL's SFTTrainer over rows that prepare tokenised and masked."""

from __future__ import annotations

import logging
from typing import Any

import transformers
import trl

from finetune_trainer import adapters, rows
from finetune_trainer.errors import StageError
from finetune_trainer.hf_arguments import hf_arguments
from finetune_trainer.loop import GuardedLoop
from finetune_trainer.methods import Trained, TrainingJob
from finetune_trainer.reporting import ProgressCallback, eval_loss_at
from finetune_trainer.spec import ExitCode, Packing
from finetune_trainer.weights import load_base, make_trainable_fp32

log = logging.getLogger(__name__)


class SFT(GuardedLoop, trl.SFTTrainer):  # type: ignore[misc]
    pass


def train(job: TrainingJob) -> Trained:
    """Trains to the last step, from the newest checkpoint where one counts.

    Errors: StageError(Terminated | Diverged | Superseded | DocumentsLeak | …); `result` carries the newest checkpoint.
    """
    warnings: list[str] = []
    trainer = build(job, padding_free=True)
    if rows.rows_see_each_other(trainer):
        if job.run.training.packing is Packing.DOCUMENTS:
            raise StageError("DocumentsLeak", "this model's attention mixes packed rows; set training.packing to None")
        warnings.append("this model's attention would mix the rows of a flattened batch: rows are padded instead")
        trainer = build(job, padding_free=False)

    checkpoint = job.controls.store.newest
    last_step = _last_step(trainer)
    with job.controls.interruption.deferred():
        if checkpoint is None:
            log.info("the model is loaded; next: %d steps", last_step)
            trainer.train()
        elif checkpoint.step < last_step:
            job.controls.cadence.start_from(checkpoint.step)
            log.info("resuming at step %d of %d", checkpoint.step, last_step)
            trainer.train(resume_from_checkpoint=str(checkpoint.folder))
        else:
            trainer.restore(checkpoint.folder)
    job.controls.interruption.end_if_requested()
    # transformers returns normally from a run that something stopped early.
    if trainer.state.global_step < last_step:
        raise StageError("StoppedEarly", f"training ended at step {trainer.state.global_step} of {last_step}", ExitCode.CRASH)

    return Trained(
        model=trainer.model,
        eval_loss=_final_eval_loss(trainer),
        history=trainer.state.log_history,
        steps=trainer.state.global_step,
        resumed_from_step=checkpoint.step if checkpoint else None,
        warnings=warnings,
    )


def build(job: TrainingJob, padding_free: bool) -> Any:
    """TRL's trainer over the base model, its adapter and the prepared rows, with every trainable tensor in fp32."""
    run, prepared = job.run, job.prepared
    arguments = trl.SFTConfig(
        **hf_arguments(run, job.around),
        output_dir=str(job.scratch),
        # Rows come tokenised, masked, truncated and packed; the collator flattens a batch into one row of documents.
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        padding_free=padding_free,
    )
    transformers.set_seed(run.training.seed)
    model = load_base(run, prepared.model_folder, job.around.dtypes, arguments.device)
    trainer = SFT(
        model=model,
        args=arguments,
        train_dataset=rows.training_rows(prepared, run.training),
        eval_dataset=rows.validation_rows(prepared, arguments.per_device_eval_batch_size * job.around.world_size),
        processing_class=_tokenizer(job),
        peft_config=adapters.peft_config(run.adapter, model, prepared.model.source.removeprefix("hf://")),
        callbacks=[ProgressCallback(job.progress, job.controls.store)],
        controls=job.controls,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    log.info("%s of %s parameters are trained", make_trainable_fp32(trainer.model), prepared.model.shape.total_parameters)
    return trainer


def _tokenizer(job: TrainingJob) -> Any:
    """A tokenizer for TRL, which asks it for a padding token; the ids it was made for are in the rows already."""
    special = job.prepared.tokens
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(job.prepared.tokenizer_file))
    tokenizer.eos_token = special.eos_token
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(special.pad_id)
    return tokenizer


def _last_step(trainer: Any) -> int:
    """Optimizer steps of the whole run. Source: transformers.Trainer.set_initial_training_values."""
    steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
    return int(steps)


def _final_eval_loss(trainer: Any) -> float | None:
    """Mean loss per token on the validation rows after the last step; None without such rows."""
    if trainer.eval_dataset is None:
        return None
    taken = eval_loss_at(trainer.state.log_history, trainer.state.global_step)
    return taken if taken is not None else float(trainer.evaluate()["eval_loss"])
