"""What of `training.args` is refused without a library: on the run alone, and on the rows that prepare counted. Pure."""

from __future__ import annotations

from finetune_api.arguments import training_findings
from finetune_api.outcome import Reason
from finetune_api.sections.training import Training

from finetune_trainer.errors import StageError


def refuse_findings(training: Training) -> None:
    """Errors: StageError(InvalidArgument) with each argument that is wrong, and what to do."""
    findings = training_findings(training)
    if findings:
        raise StageError(Reason.INVALID_ARGUMENT, "; ".join(f"training.args.{name}: {sentence}" for name, sentence in findings))


def refuse_no_evaluation(training: Training, validation_rows: int) -> None:
    """Errors: StageError(InvalidArgument) where an evaluation is asked for that has no rows: transformers crashes as training starts."""
    if training.args.get("eval_on_start") and not validation_rows:
        raise StageError(
            Reason.INVALID_ARGUMENT,
            "training.args.eval_on_start: there are no validation rows to evaluate; remove it, or raise preparation.split.validation",
        )
