"""The end of a run, and what is left to do after it. Pure."""

from __future__ import annotations

from datetime import timedelta

from finetune_api.finetunejob import ConditionType, FineTuneJobStatus, ProgressStatus
from finetune_api.outcome import Reason
from finetune_api.run import Stage

from finetune_operator.core import names
from finetune_operator.core.plan import Delete
from finetune_operator.finetunejob.draft import Draft
from finetune_operator.finetunejob.evidence import hear, stands_still
from finetune_operator.finetunejob.policies.deadline import active_seconds
from finetune_operator.finetunejob.status import CONDITION


def succeed(draft: Draft, reason: Reason, message: str) -> None:
    draft.set(ConditionType.SUCCEEDED, "True", reason, message)
    draft.reconciling, draft.stalled = "", None
    if draft.status.start_time:
        draft.status.progress = (draft.status.progress or ProgressStatus()).model_copy(update={"percent": 100})
    _close(draft)
    draft.event(Reason.SUCCEEDED, message)


def fail(draft: Draft, reason: str, message: str, stage: Stage | None = None) -> None:
    """The end for good: live pods are stopped with their grace, checkpoints stay where they are."""
    whole = message + _where(draft.status)
    if stage is not None and not draft.is_true(CONDITION[stage]):
        draft.set(CONDITION[stage], "False", reason, message)
    draft.set(ConditionType.SUCCEEDED, "False", reason, whole)
    draft.set(ConditionType.SUSPENDED, "False", Reason.NOT_SUSPENDED)
    draft.stalled = (reason, whole)
    draft.reconciling = ""
    _close(draft)
    draft.event(Reason.FAILED, f"{reason}: {message}", warning=True)
    _stop_live_jobs(draft)


def _where(status: FineTuneJobStatus) -> str:
    kept = status.checkpoint
    return f"; the last checkpoint (step {kept.step}) is at {kept.uri}" if kept else ""


def _close(draft: Draft) -> None:
    status = draft.status
    status.active_seconds = active_seconds(status, draft.now)
    status.active_since = None
    status.completion_time = draft.now
    stands_still(draft)


def _stop_live_jobs(draft: Draft) -> None:
    for live in draft.live_jobs:
        draft.stop(live)


def _hear_the_last_pod(draft: Draft) -> None:
    """A pod that the end stopped saves its work within its grace: what it saved is the newest checkpoint there is."""
    last = draft.status.attempt
    if last and not draft.is_true(CONDITION[last.stage]):
        hear(draft, last.stage)


def after_the_end(draft: Draft) -> None:
    """Terminal never leaves: only leftovers are cleaned, and the TTL counts from the recorded end."""
    old = draft.was(ConditionType.SUCCEEDED)
    if old and old.status == "False":
        _hear_the_last_pod(draft)
        draft.set(ConditionType.SUCCEEDED, "False", old.reason, old.message.removesuffix(_where(draft.before)) + _where(draft.status))
        draft.stalled = (old.reason, old.message.removesuffix(_where(draft.before)) + _where(draft.status))
    _stop_live_jobs(draft)
    ttl = (draft.job.get("spec") or {}).get("ttlSecondsAfterFinished")
    if ttl is None or draft.status.completion_time is None:
        return
    due = draft.status.completion_time + timedelta(seconds=ttl)
    if due > draft.now:
        draft.recheck(due)
        return
    metadata = draft.job["metadata"]
    draft.actions.append(Delete(names.API_VERSION, names.FINETUNEJOB, metadata["namespace"], metadata["name"], metadata["uid"]))
