"""The stages of a run, one after another: begin, wait, read the answer, try again or give up. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from finetune_trainer.spec import Stage, StageResult

from finetune_operator.core.conditions import cut, parse_timestamp, timestamp
from finetune_operator.core.facts import SCHEDULING_GRACE
from finetune_operator.core.names import stage_job_name
from finetune_operator.core.plan import Create, Delete
from finetune_operator.finetunejob.draft import Draft
from finetune_operator.finetunejob.observed import JobFact, PodFact
from finetune_operator.finetunejob.policies import progress as progress_policy
from finetune_operator.finetunejob.policies import retry
from finetune_operator.finetunejob.policies.deadline import active_seconds
from finetune_operator.finetunejob.resources.stage_job import StageRequest, make_dry_run_pod, make_stage_job
from finetune_operator.finetunejob.types import ConditionType, FineTuneJobSpec, Phase

CONDITION: dict[Stage, ConditionType] = {
    Stage.PREPARE: ConditionType.PREPARED,
    Stage.TRAIN: ConditionType.TRAINED,
    Stage.PACKAGE: ConditionType.PACKAGED,
    Stage.EVALUATE: ConditionType.EVALUATED,
}
_PHASE: dict[Stage, Phase] = {
    Stage.PREPARE: Phase.PREPARING,
    Stage.TRAIN: Phase.TRAINING,
    Stage.PACKAGE: Phase.PACKAGING,
    Stage.EVALUATE: Phase.EVALUATING,
}
_ATTEMPTS_KEPT = 20
_STARTING = frozenset({"ContainerCreating", "PodInitializing"})
_KUBELET_GRACE = timedelta(seconds=30)
"""From the end of a pod's own grace until its kubelet is believed to be gone."""


@dataclass(frozen=True)
class Trouble:
    """What keeps a pod from running. Before `lasts_at` it may pass by itself; from then on, or where it is None, a person is needed."""

    reason: str
    message: str
    lasts_at: datetime | None = None


@dataclass(frozen=True)
class Failure:
    """A stage that no further attempt can save."""

    stage: Stage
    reason: str
    message: str


def begin(draft: Draft, stage: Stage) -> None:
    """Records the stage's first attempt; its Job is made in the pass after that is durable."""
    _set_attempt(draft, stage, {"number": 1, "failures": 0})
    draft.set(CONDITION[stage], "False", "Running", f"stage {stage} is under way")
    if kept := progress_policy.kept(draft.status.get("progress")):
        draft.status["progress"] = {"stage": stage.value, **kept}
    else:
        draft.status.pop("progress", None)


def _set_attempt(draft: Draft, stage: Stage, attempt: dict[str, Any]) -> None:
    draft.status["attempt"] = {"stage": stage.value, **attempt}
    draft.status["attemptCount"] = attempt["number"]
    draft.status_first = True
    draft.recheck(draft.now)
    draft.phase = _PHASE[stage]
    draft.reconciling = f"{CONDITION[stage]}Pending"


def run(draft: Draft, spec: FineTuneJobSpec) -> bool | Failure:
    """True: the pass ends here; False: every stage is done; Failure: the run is over."""
    for stage in Stage:
        if draft.is_true(CONDITION[stage]):
            continue
        attempt = draft.status.get("attempt")
        if attempt is None or attempt["stage"] != stage.value:
            begin(draft, stage)
            return True
        ended = _run_stage(draft, spec, stage)
        if ended is not False:
            return ended
    return False


def _run_stage(draft: Draft, spec: FineTuneJobSpec, stage: Stage) -> bool | Failure:
    """False once the stage is done."""
    attempt = draft.status["attempt"]
    draft.reconciling = f"{CONDITION[stage]}Pending"
    name = stage_job_name(draft.job["metadata"]["name"], stage, attempt["number"])
    fact = next((job for job in draft.observed.jobs if job.name == name), None)
    tried_before = any(record["stage"] == stage.value for record in draft.status.get("attempts", []))
    draft.phase = Phase.RESUMING if tried_before and not _has_reported(draft, fact) else _PHASE[stage]
    last_words_by = retry.last_words_by(fact) if fact else None
    if last_words_by and draft.now < last_words_by:
        draft.recheck(last_words_by)
        return True
    if fact and fact.state == "Complete":
        return _complete(draft, spec, stage, fact)
    if spec.suspend:
        return _suspend(draft, stage, fact)
    _resume(draft)
    if fact and fact.state == "Failed":
        return _failed(draft, spec, stage, fact)
    if fact:
        _wait(draft, stage, fact)
        return True
    return _create(draft, spec, stage)


def _has_reported(draft: Draft, fact: JobFact | None) -> bool:
    """Whether the attempt's pod has, now or in an earlier life of this operator."""
    last = (draft.status.get("progress") or {}).get("lastUpdateTime")
    return draft.observed.progress is not None or bool(fact and last and parse_timestamp(last) >= fact.created_at)


def _complete(draft: Draft, spec: FineTuneJobSpec, stage: Stage, fact: JobFact) -> bool | Failure:
    result = retry.answer(fact)
    if result is None:
        attempt = draft.status["attempt"]
        if attempt.get("report") and fact.pods and fact.pods[0].phase == "Succeeded":
            return Failure(stage, "AnswerUnreadable", _unreadable(stage, fact.pods[0]))
        # the pod vanished before its answer was read: the manifest has it, and reading it takes no GPU
        _set_attempt(draft, stage, {"number": attempt["number"] + 1, "failures": attempt.get("failures", 0), "report": True})
        return True
    _absorb(draft, result)
    if stage is Stage.EVALUATE and spec.retention.checkpoints == "Delete":
        draft.status.pop("checkpoint", None)  # the stage removed it
    draft.set(CONDITION[stage], "True", "Completed", _summary(result))
    draft.event(CONDITION[stage].value, f"stage {stage} is done. {_summary(result)}".strip())
    return False


def _unreadable(stage: Stage, pod: PodFact) -> str:
    return (
        f"stage {stage} ended well, but pod {pod.name} left no answer in its termination message, and neither when asked again: "
        "is spec.image a trainer image of this release?"
    )


def _summary(result: StageResult) -> str:
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


def _absorb(draft: Draft, result: StageResult) -> None:
    """Copies an answer's evidence into status, under status' own member names; numbers that are none become null, which is not written."""
    wire = json.loads(result.model_dump_json(by_alias=True, exclude_none=True))
    for member in ("dataset", "plan", "baseModel", "baseRevision", "checkpoint", "evaluation", "quantizationGap"):
        if member in wire:
            draft.status[member] = wire[member]
    for member in ("artifacts", "parity"):
        if wire.get(member):
            draft.status[member] = wire[member]
    if result.stage is Stage.TRAIN and wire.get("trainLoss") is not None:
        # a run too short to have reported shows the mean loss; the last one is what people watched
        draft.status["progress"] = {"loss": wire["trainLoss"], **(draft.status.get("progress") or {})}
    if result.plan is not None:
        _warn_of_missing_gpus(draft)


def _warn_of_missing_gpus(draft: Draft) -> None:
    wanted = (draft.job["spec"].get("resources") or {}).get("gpusPerNode", 1)
    largest = draft.observed.largest_node_gpus
    if largest is not None and wanted > largest:
        warnings = draft.status["plan"].setdefault("warnings", [])
        warnings.append(f"{wanted} GPUs are asked for on one node; the largest node has {largest}")


def _suspend(draft: Draft, stage: Stage, fact: JobFact | None) -> bool:
    """The attempt's Job is deleted, not suspended: a queue would un-suspend it. What was saved is found again at the next start."""
    draft.phase = Phase.SUSPENDED
    if fact and (fact.state == "Active" or fact.deleting):
        if _reason(draft, ConditionType.SUSPENDED) != "Suspending":
            _record(draft, fact, retry.Outcome("Suspended", "", counted=False))
        if not fact.deleting:
            draft.actions.append(_delete(draft, fact))
        draft.set(ConditionType.SUSPENDED, "False", "Suspending", "pods are saving their work")
        if (result := retry.answer(fact)) is not None:
            _absorb(draft, result)
        _mind_lost_nodes(draft, fact)
        return True
    if not draft.is_true(ConditionType.SUSPENDED):
        draft.status["activeSeconds"] = active_seconds(draft.status, draft.now)
        draft.status.pop("activeSince", None)
        draft.event("Suspended", f"stage {stage} is suspended; its work so far is on storage")
    draft.set(ConditionType.SUSPENDED, "True", "Suspended", "spec.suspend is true; set it to false to go on")
    draft.set(CONDITION[stage], "False", "Suspended", f"stage {stage} goes on when spec.suspend is false")
    draft.reconciling = ""
    return True


def _mind_lost_nodes(draft: Draft, fact: JobFact) -> None:
    for trouble in (_stopping(pod, draft.now) for pod in fact.pods if pod.deleting):
        if trouble.lasts_at:
            draft.recheck(trouble.lasts_at)
        else:
            draft.stalled = (trouble.reason, trouble.message)


def _reason(draft: Draft, type: ConditionType) -> str:
    return next((c["reason"] for c in draft.status.get("conditions", []) if c["type"] == type), "")


def _resume(draft: Draft) -> None:
    if draft.is_true(ConditionType.SUSPENDED):
        draft.status["activeSince"] = timestamp(draft.now)
        draft.event("Resumed", "spec.suspend is false; the run goes on")
    draft.set(ConditionType.SUSPENDED, "False", "NotSuspended")


def _failed(draft: Draft, spec: FineTuneJobSpec, stage: Stage, fact: JobFact) -> bool | Failure:
    outcome = retry.outcome(fact)
    if outcome.result:
        _absorb(draft, outcome.result)
    attempt = draft.status["attempt"]
    failures = attempt.get("failures", 0) + (1 if outcome.counted else 0)
    _record(draft, fact, outcome)
    if outcome.final:
        return Failure(stage, outcome.reason, outcome.message)
    if failures >= spec.recovery.max_attempts:
        return Failure(stage, outcome.reason, f"{outcome.message} (attempt {failures} of {spec.recovery.max_attempts})")
    wait = retry.backoff(failures if outcome.counted else 0)
    following = {"number": attempt["number"] + 1, "failures": failures}
    if attempt.get("report") and outcome.reason != "StageMissing":
        following["report"] = True
    if wait:
        following["notBefore"] = timestamp(draft.now + wait)
    _set_attempt(draft, stage, following)
    draft.set(CONDITION[stage], "False", "Retrying", f"{outcome.reason}: {outcome.message}")
    draft.event("Retrying", f"stage {stage}, attempt {attempt['number']} ended: {outcome.reason}: {outcome.message}", warning=True)
    return True


def _record(draft: Draft, fact: JobFact, outcome: retry.Outcome) -> None:
    record = {
        "stage": fact.stage,
        "number": fact.attempt,
        "reason": outcome.reason,
        "counted": outcome.counted,
        "start": timestamp(fact.created_at),
        "end": timestamp(fact.finished_at or draft.now),
        "node": outcome.node,
        "exitCode": outcome.exit_code,
        "resumedFromStep": outcome.result.resumed_from_step if outcome.result else None,
        "message": cut(outcome.message, 512),
    }
    attempts = [*draft.status.get("attempts", []), {key: value for key, value in record.items() if value is not None}]
    draft.status["attempts"] = attempts[-_ATTEMPTS_KEPT:]


def _delete(draft: Draft, fact: JobFact) -> Delete:
    return Delete("batch/v1", "Job", draft.job["metadata"]["namespace"], fact.name, fact.uid, "Foreground")


def _create(draft: Draft, spec: FineTuneJobSpec, stage: Stage) -> bool:
    attempt = draft.status["attempt"]
    if attempt.get("notBefore"):
        due = parse_timestamp(attempt["notBefore"])
        if due > draft.now:
            draft.recheck(due)
            return True
    others = [job for job in draft.live_jobs if job.attempt != attempt["number"] or job.stage != stage.value]
    if others:  # at most one live attempt: an older one goes first
        draft.actions += [_delete(draft, job) for job in others if not job.deleting]
        return True
    request = StageRequest(stage, attempt["number"], report=attempt.get("report", False))
    body = make_stage_job(spec, draft.job, request, draft.observed, draft.settings)
    draft.actions.append(Create(body, make_dry_run_pod(body)))
    return True


# --------------------------------------------------------------------------------------------------------------- while it runs


def _wait(draft: Draft, stage: Stage, fact: JobFact) -> None:
    trouble = _trouble(fact, draft.now)
    if trouble:
        _tell(draft, stage, trouble)
        return
    if draft.status_of(CONDITION[stage]) != "False" or _reason(draft, CONDITION[stage]) != "Running":
        draft.set(CONDITION[stage], "False", "Running", f"stage {stage} is under way")
    _take_progress(draft, stage)


def _tell(draft: Draft, stage: Stage, trouble: Trouble) -> None:
    """The stage says at once what it waits for, in the words it was first seen with; Stalled says it when it lasts."""
    if trouble.lasts_at and trouble.lasts_at > draft.now:
        if _reason(draft, CONDITION[stage]) != trouble.reason:
            draft.set(CONDITION[stage], "False", trouble.reason, trouble.message)
        draft.recheck(trouble.lasts_at)
        return
    if _reason(draft, ConditionType.STALLED) != trouble.reason:
        draft.event(trouble.reason, trouble.message, warning=True)
    draft.stalled = (trouble.reason, trouble.message)
    draft.set(CONDITION[stage], "False", trouble.reason, trouble.message)


def _trouble(fact: JobFact, now: datetime) -> Trouble | None:
    """What keeps a pod from running, in kubelet's, scheduler's or admission's words."""
    if fact.refused and not fact.pods:
        return Trouble("PodRefused", fact.refused)
    return next((found for pod in fact.pods if (found := _pod_trouble(pod, now))), None)


def _pod_trouble(pod: PodFact, now: datetime) -> Trouble | None:
    if pod.deleting:
        return _stopping(pod, now)
    if pod.waiting and pod.waiting[0] not in _STARTING:
        reason, message = pod.waiting
        return Trouble(reason, f"pod {pod.name}: {message or reason}; it goes on by itself once this is mended")
    if pod.unschedulable:
        lasts_at = pod.unschedulable_since + SCHEDULING_GRACE if pod.unschedulable_since else None
        return Trouble("Unschedulable", f"pod {pod.name}: {pod.unschedulable}; it goes on by itself once a node has room", lasts_at)
    return None


def _stopping(pod: PodFact, now: datetime) -> Trouble:
    """Preempted, evicted or deleted: its kubelet ends it within its grace, unless the node is lost."""
    lost_at = pod.gone_by + _KUBELET_GRACE if pod.gone_by else now
    if now < lost_at:
        return Trouble("Stopping", f"pod {pod.name} is being stopped ({pod.disruption or 'deleted'}) and saves its work", lost_at)
    return Trouble(
        "NodeLost",
        f"pod {pod.name} is on a lost node and its volume cannot move; bring node {pod.node} back or free it with: "
        f"kubectl delete pod {pod.name} --grace-period=0 --force",
    )


def _take_progress(draft: Draft, stage: Stage) -> None:
    report = draft.observed.progress
    if report is None:
        return
    old = draft.status.get("progress") or {}
    due = progress_policy.next_write_at(old, draft.settings.progress_write_s)
    if due and due > draft.now:
        draft.recheck(due)
        return
    fresh = progress_policy.to_status(stage.value, report, old, draft.now)
    if {**old, "lastUpdateTime": ""} != {**fresh, "lastUpdateTime": ""}:
        draft.status["progress"] = fresh
