"""What a stage's answer leaves in status, and what is said of it. Pure."""

from __future__ import annotations

from finetune_api.answer import MemoryPlan, StageResult, read_answer
from finetune_api.finetunejob import WARNINGS_KEPT, ProgressStatus, StageWarning
from finetune_api.outcome import Reason
from finetune_api.run import Stage

from finetune_operator.finetunejob.draft import Draft


def summary(result: StageResult) -> str:
    if result.dataset:
        rows = ", ".join(f"{count} {split}" for split, count in result.dataset.rows_out.items())
        return f"{result.dataset.rows_in} rows in; out: {rows}"
    if result.stage is Stage.TRAIN and result.steps is not None:
        return f"{result.steps} steps" + (f", loss {result.train_loss:.3g}" if result.train_loss is not None else "")
    if result.stage is Stage.PACKAGE:
        proven = ", ".join(report.format for report in result.parity) or "none"
        return f"{len(result.artifacts)} artifacts, parity proven for {proven}" + (f"; {result.message}" if result.message else "")
    if result.evaluation:
        return "; ".join(f"{gate.name}: {gate.result}, {gate.evidence}" for gate in result.evaluation.gates) or "no gates"
    return ""


def absorb(draft: Draft, result: StageResult) -> None:
    """Copies an answer's evidence into status; what the answer does not speak of stays as an earlier one left it."""
    status = draft.status
    plan = _with_missing_gpus(draft, result.plan) if result.plan else None
    status.dataset = result.dataset or status.dataset
    status.plan = plan or status.plan
    status.base_model = result.base_model or status.base_model
    status.base_revision = result.base_revision or status.base_revision
    status.checkpoint = result.checkpoint or status.checkpoint
    status.evaluation = result.evaluation or status.evaluation
    status.artifacts = result.artifacts or status.artifacts
    status.parity = result.parity or status.parity
    if result.quantization_gap is not None:
        status.quantization_gap = result.quantization_gap
    if result.stage is Stage.TRAIN:
        _count_saved_steps(draft)
        if result.train_loss is not None:
            _show_loss(draft, result.train_loss)
    _warn(draft, result.stage, [*result.warnings, *(plan.warnings if plan else ())])


def _count_saved_steps(draft: Draft) -> None:
    """A pod that saves as it ends has done more than it reported last."""
    saved, plan, progress = draft.status.checkpoint, draft.status.plan, draft.status.progress or ProgressStatus()
    total = progress.total_steps or (plan.total_steps if plan else None)
    known = progress.step or 0 if progress.stage in (None, Stage.TRAIN) else 0
    if saved and total and saved.step > known:
        done = {"stage": Stage.TRAIN, "step": saved.step, "total_steps": total, "percent": 100 * saved.step // total}
        draft.status.progress = progress.model_copy(update=done)


def _show_loss(draft: Draft, mean: float) -> None:
    """A run too short to have reported shows the mean loss; the last one is what people watched."""
    progress = draft.status.progress or ProgressStatus()
    if progress.loss is None:
        draft.status.progress = progress.model_copy(update={"loss": mean})


def _with_missing_gpus(draft: Draft, plan: MemoryPlan) -> MemoryPlan:
    wanted = (draft.job["spec"].get("resources") or {}).get("gpusPerNode", 1)
    largest = draft.observed.largest_node_gpus
    if largest is None or wanted <= largest:
        return plan
    warning = f"{wanted} GPUs are asked for on one node; the largest node has {largest}"
    return MemoryPlan.model_validate(plan.model_dump() | {"warnings": [warning, *plan.warnings]})


def _warn(draft: Draft, stage: Stage, messages: list[str]) -> None:
    """Each warning once, whichever attempt or stage repeats it, and no more than status holds."""
    for message in messages:
        told = draft.status.warnings
        warning = StageWarning(stage=stage.value, message=message)
        if len(told) < WARNINGS_KEPT and warning.message not in {known.message for known in told}:
            draft.status.warnings = [*told, warning]
            draft.event(Reason.STAGE_WARNING, f"stage {stage}: {message}", warning=True)


def hear(draft: Draft, stage: Stage) -> None:
    """What pods of the stage that are being removed said when they ended: above all which checkpoint they saved."""
    removed = sorted((job for job in draft.observed.jobs if job.deleting), key=lambda job: job.attempt)
    pods = [*(pod for job in removed for pod in job.pods), *draft.observed.orphans]
    for result in (read_answer(pod.message) for pod in pods if pod.message and not pod.alive):
        if result and result.stage is stage and not _is_old_news(draft, result):
            absorb(draft, result)


def _is_old_news(draft: Draft, result: StageResult) -> bool:
    known = draft.status.checkpoint
    return bool(known and result.checkpoint and result.checkpoint.step < known.step)


def stands_still(draft: Draft) -> None:
    """Without a pod that works there is no time at which it will be done."""
    if draft.status.progress:
        draft.status.progress = draft.status.progress.model_copy(update={"eta_seconds": None})
