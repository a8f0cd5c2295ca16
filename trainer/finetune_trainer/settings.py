"""Which settings are refused without a library: on the run alone, on what the image has, and on the rows that prepare counted."""

from __future__ import annotations

import os
import shlex
import shutil
from importlib.util import find_spec

from finetune_api.arguments import training_findings
from finetune_api.outcome import Reason
from finetune_api.run import RunSpec
from finetune_api.sections.model import AttentionImplementation
from finetune_api.sections.training import Training

from finetune_trainer.errors import StageError


def refuse_findings(training: Training, gpus: int | None = None) -> None:
    """`gpus`: what it trains with; 0 is the CPU, None is not known. Errors: StageError(InvalidArgument) with each argument that is wrong,
    and what to do."""
    findings = training_findings(training, gpus)
    if findings:
        raise StageError(Reason.INVALID_ARGUMENT, "; ".join(f"training.args.{name}: {sentence}" for name, sentence in findings))


def refuse_unserved(run: RunSpec) -> None:
    """What this image cannot do, or a CPU, where training gets no GPU: every stage of a run has one image.

    Errors: StageError(InvalidArgument | UnsupportedAttention), with the field.
    """
    refuse_findings(run.training, run.gpus_per_node)
    _refuse_attention(run)
    _refuse_without_liger(run.training)
    _refuse_without_compiler(run.training)


def _refuse_attention(run: RunSpec) -> None:
    if run.model.attention_implementation is not AttentionImplementation.FLASH_ATTENTION_2:
        return
    field = "model.attentionImplementation FlashAttention2"
    if not run.gpus_per_node:
        raise StageError(Reason.UNSUPPORTED_ATTENTION, f"{field} needs a GPU, and resources.gpusPerNode is 0; take SDPA")
    if find_spec("flash_attn") is None:
        raise StageError(Reason.UNSUPPORTED_ATTENTION, f"{field}: this image has no flash-attn; take SDPA, or an image that has it")


def _refuse_without_liger(training: Training) -> None:
    if training.args.get("use_liger_kernel") and find_spec("liger_kernel") is None:
        raise StageError(Reason.INVALID_ARGUMENT, "training.args.use_liger_kernel: the trainer image has no liger-kernel; remove it")


_COMPILING = ("torch_compile", "torch_compile_mode", "torch_compile_backend")
"""Each of them has transformers compile the model, where it is set. Source: transformers.TrainingArguments.__post_init__."""


def _refuse_without_compiler(training: Training) -> None:
    """torch's inductor, which is the default, compiles C++ when the first step is due. Source: torch._inductor.cpp_builder."""
    asked = [name for name in _COMPILING if training.args.get(name)]
    compiler = (shlex.split(os.environ.get("CXX", "")) or ["g++"])[0]
    if asked and training.args.get("torch_compile_backend") in (None, "inductor") and shutil.which(compiler) is None:
        raise StageError(
            Reason.INVALID_ARGUMENT,
            f"training.args.{asked[0]}: the trainer image has no C++ compiler ({compiler}); remove it, or take another image",
        )


def refuse_no_evaluation(training: Training, validation_rows: int) -> None:
    """Errors: StageError(InvalidArgument) where an evaluation is asked for that has no rows: transformers crashes as training starts."""
    if training.args.get("eval_on_start") and not validation_rows:
        raise StageError(
            Reason.INVALID_ARGUMENT,
            "training.args.eval_on_start: there are no validation rows to evaluate; remove it, or raise preparation.split.validation",
        )
