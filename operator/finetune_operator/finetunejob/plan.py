"""What is to be done about a FineTuneJob: the whole behaviour of the job's controller. Pure.

A pass walks STEPS in order; a step that answers True has said all there is to say for now.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from finetune_api.finetunejob import ConditionType, FineTuneJobSpec
from finetune_api.outcome import Reason
from finetune_api.run import Stage

from finetune_operator.core import names
from finetune_operator.core.facts import SCHEDULING_GRACE
from finetune_operator.core.names import Object
from finetune_operator.core.plan import PASSING_PROBLEMS, Create, Plan
from finetune_operator.core.settings import Settings
from finetune_operator.core.unreadable import Unreadable, complaint
from finetune_operator.finetunejob import attempt, checks, ending, obstacles, publish, start
from finetune_operator.finetunejob.draft import Draft
from finetune_operator.finetunejob.observed import Observed
from finetune_operator.finetunejob.policies.deadline import active_seconds, deadline_at
from finetune_operator.finetunejob.resources.claim import make_claim
from finetune_operator.finetunejob.status import read_status


def plan(job: Object, observed: Observed, settings: Settings, now: datetime) -> Plan:
    """The whole status to write and the actions to take for `job` as it stands in `observed` at `now` (aware, UTC)."""
    if job["metadata"].get("deletionTimestamp"):
        return Plan(status=job.get("status") or {})
    status = read_status(job)
    if isinstance(status, Unreadable):
        told, events = complaint(status, "nothing is done until it is mended or the job is deleted", now)
        return Plan(status=told, events=events)
    draft = Draft(job, status, observed, settings, now)
    if draft.status_of(ConditionType.SUCCEEDED) != "Unknown":
        ending.after_the_end(draft)
        return draft.plan()
    spec = checks.parse(job.get("spec") or {})
    if isinstance(spec, checks.Finding):
        start.refuse(draft, [spec])
        return draft.plan()
    for step in STEPS:
        if step(draft, spec):
            break
    return draft.plan()


# ------------------------------------------------------------------------------------------------------------------- steps


def _validate(draft: Draft, spec: FineTuneJobSpec) -> bool:
    """A run that may not go on can still be stopped."""
    if not start.validate(draft, spec):
        return False
    current = draft.status.attempt
    if current and draft.status_of(ConditionType.VALIDATED) == "False" and not _deadline(draft, spec) and spec.suspend:
        attempt.suspend(draft, current.stage)
    return True


def _report_problems(draft: Draft, spec: FineTuneJobSpec) -> bool:
    """What the API refused to do for us, in its words. Goes on: the cause may be gone."""
    if not draft.observed.problems:
        draft.set(ConditionType.RESOURCES_APPLIED, "True", Reason.APPLIED)
        return False
    first = draft.observed.problems[0]
    message = f"{first.kind} {first.name}: {first.message}"
    if draft.status_of(ConditionType.RESOURCES_APPLIED) != "False":
        draft.event(first.reason, message, warning=True)
    draft.set(ConditionType.RESOURCES_APPLIED, "False", first.reason, message)
    lasts_at = _quota_lasts_at(draft) if first.reason == Reason.QUOTA_EXCEEDED else draft.now
    if lasts_at > draft.now:
        draft.recheck(lasts_at)
    elif first.reason not in PASSING_PROBLEMS:
        draft.stalled = (first.reason, message)
    draft.recheck(draft.now + timedelta(minutes=1))
    return False


def _quota_lasts_at(draft: Draft) -> datetime:
    """A quota is given back some moments after a pod ended: until then nobody needs to be told."""
    old = draft.was(ConditionType.RESOURCES_APPLIED)
    since = old.last_transition_time if old and old.status == "False" else None
    return (since or draft.now) + SCHEDULING_GRACE


def _deadline(draft: Draft, spec: FineTuneJobSpec) -> bool:
    due = deadline_at(draft.status, spec.active_deadline_seconds, draft.now)
    if due is None:
        return False
    if due > draft.now:
        draft.recheck(due)
        return False
    seconds = active_seconds(draft.status, draft.now)
    message = f"the run was active for {seconds} s, spec.activeDeadlineSeconds is {spec.active_deadline_seconds}; checkpoints are kept"
    attempt.record_stopped(draft, Reason.DEADLINE_EXCEEDED)
    ending.fail(draft, Reason.DEADLINE_EXCEEDED, message, draft.status.attempt.stage if draft.status.attempt else None)
    return True


def _ensure_claim(draft: Draft, spec: FineTuneJobSpec) -> bool:
    template = spec.storage.persistent_volume_claim
    assert template is not None
    name = names.claim_name(draft.job["metadata"]["name"], draft.job["metadata"]["uid"])
    # later an empty one would stand in for what the stages left on it
    if template.size and not draft.has_been_prepared and draft.observed.claims.get(name) is None:
        draft.actions.append(Create(make_claim(template, spec.retention, draft.job)))
    return False


def _run_stages(draft: Draft, spec: FineTuneJobSpec) -> bool:
    ended = attempt.run(draft, spec)
    if isinstance(ended, attempt.Failure):
        ending.fail(draft, ended.reason, ended.message, ended.stage)
        return True
    return ended


def _publish(draft: Draft, spec: FineTuneJobSpec) -> bool:
    if spec.publish is None:
        return False
    if draft.status_of(ConditionType.PUBLISHED) != "True" and obstacles.lacks_its_claim(draft, spec, ConditionType.PUBLISHED):
        return True
    if draft.reason_was(ConditionType.PUBLISHED) == Reason.CLAIM_LOST:  # it is back, with or without its files
        draft.set(ConditionType.PUBLISHED, "Unknown", Reason.WAITING)
        attempt.look_again(draft, before=Stage.EVALUATE)
        return True
    refused = publish.run(draft, spec)
    if isinstance(refused, publish.Refused):
        draft.set(ConditionType.PUBLISHED, "False", refused.reason, refused.message)
        ending.fail(draft, refused.reason, refused.message)
        return True
    return refused


def _end(draft: Draft, spec: FineTuneJobSpec) -> bool:
    reference = draft.status.model_version_ref
    ending.succeed(
        draft, Reason.COMPLETED, f"published as {reference.name}" if reference else "all stages are done; artifacts are in status"
    )
    return True


Step = Callable[[Draft, FineTuneJobSpec], bool]
STEPS: tuple[Step, ...] = (_validate, start.start, _report_problems, _deadline, _ensure_claim, _run_stages, _publish, _end)
