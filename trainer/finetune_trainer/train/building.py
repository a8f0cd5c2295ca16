"""What every method's trainer is built of: arguments, base model, adapter, tokenizer, callbacks."""

from __future__ import annotations

import logging
from typing import Any

import transformers
from finetune_api.uri import repository_of

from finetune_trainer.train.hf_arguments import hf_arguments
from finetune_trainer.train.methods import TrainingJob
from finetune_trainer.train.reporting import ProgressCallback
from finetune_trainer.train.weights import load_base, make_trainable_fp32
from finetune_trainer.weight_files import stored_tensors

log = logging.getLogger(__name__)


def common_arguments(job: TrainingJob) -> dict[str, Any]:
    """For the configuration of a TRL trainer, complete but for what a method adds."""
    return {**hf_arguments(job.run, job.around), "output_dir": str(job.scratch)}


def common_parts(job: TrainingJob, arguments: Any) -> dict[str, Any]:
    """For a `GuardedLoop` over a TRL trainer, complete but for its rows and what a method adds. Draws from the run's seed on."""
    transformers.set_seed(job.run.training.seed)
    prepared = job.prepared
    model = load_base(job.run, prepared.model_folder, job.around.dtypes, arguments.device)
    return {
        "model": model,
        "args": arguments,
        "processing_class": _tokenizer(job),
        "peft_config": job.controls.trained.make(model, repository_of(prepared.model.source) or prepared.model.source, job.built),
        "callbacks": [ProgressCallback(job.progress, job.controls.store)],
        "controls": job.controls,
    }


def made_ready(trainer: Any, job: TrainingJob) -> Any:
    """The trainer, with every trainable tensor in fp32 and without transformers' own printing.

    Errors: StageError(UnsupportedAdapterVariant | AdapterMismatch) where what it would train could not be merged: before the first step.
    """
    trainer.remove_callback(transformers.PrinterCallback)
    job.controls.trained.refuse_unmergeable_tensors(trainer.model, stored_tensors(job.prepared.model_folder), job.built)
    trained, total = make_trainable_fp32(trainer.model), job.prepared.model.shape.total_parameters
    log.info("%s of %s parameters are trained", f"{trained:,}", f"{total:,}")
    return trainer


def _tokenizer(job: TrainingJob) -> Any:
    """A tokenizer for TRL, which asks it for a padding token; the ids it was made for are in the rows already."""
    special = job.prepared.tokens
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(job.prepared.tokenizer_file))
    tokenizer.eos_token = special.eos_token
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(special.pad_id)
    return tokenizer
