"""What is to be done about a FineTuneJob: the whole behaviour of the job's controller. Pure.

A pass walks STEPS in order; a step that answers True has said all there is to say for now.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from finetune_api.finetunejob import ConditionType, FineTuneJobSpec, FineTuneJobStatus, ProgressStatus, VersionRef
from finetune_api.outcome import Reason
from finetune_api.run import Stage

from finetune_operator.core import names
from finetune_operator.core.facts import SCHEDULING_GRACE
from finetune_operator.core.names import Object
from finetune_operator.core.plan import PASSING_PROBLEMS, Create, Delete, Plan
from finetune_operator.core.settings import Settings
from finetune_operator.core.unreadable import Unreadable, complaint
from finetune_operator.finetunejob import attempt, checks, publish
from finetune_operator.finetunejob.draft import Draft
from finetune_operator.finetunejob.observed import Observed
from finetune_operator.finetunejob.policies.deadline import active_seconds, deadline_at
from finetune_operator.finetunejob.policies.digest import run_digest
from finetune_operator.finetunejob.resources.claim import make_claim
from finetune_operator.finetunejob.resources.run_spec import images_of
from finetune_operator.finetunejob.status import CONDITION, read_status


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
        _after_the_end(draft)
        return draft.plan()
    spec = checks.parse(job.get("spec") or {})
    if isinstance(spec, checks.Finding):
        _refuse(draft, [spec])
        return draft.plan()
    for step in STEPS:
        if step(draft, spec):
            break
    return draft.plan()


# ------------------------------------------------------------------------------------------------------------------- steps


def _validate(draft: Draft, spec: FineTuneJobSpec) -> bool:
    """Before the start; afterwards only that it is still the run that was started."""
    if draft.status.start_time:
        return _has_changed(draft, spec)
    if _is_published_already(draft, spec):
        return True
    found = checks.findings(checks.Subject(spec, draft.job, draft.observed, draft.settings))
    if found:
        _refuse(draft, found)
        return True
    draft.set(ConditionType.VALIDATED, "True", Reason.VALID, "")
    return False


def _has_changed(draft: Draft, spec: FineTuneJobSpec) -> bool:
    """CEL refuses most edits of a started run, but cannot see free-form members (training.args, tolerations, affinity)."""
    if run_digest(spec, draft.observed.config_maps) == draft.status.run_digest:
        draft.set(ConditionType.VALIDATED, "True", Reason.VALID)
        return False
    message = "the spec (or a ConfigMap it names) differs from what was started; put it back, or create another job for another run"
    if not _already_refused(draft, Reason.SPEC_CHANGED):
        draft.event(Reason.SPEC_CHANGED, message, warning=True)
    draft.set(ConditionType.VALIDATED, "False", Reason.SPEC_CHANGED, message)
    draft.stalled = (Reason.SPEC_CHANGED, message)
    draft.recheck(draft.now + timedelta(seconds=draft.settings.missing_recheck_s))
    if not _deadline(draft, spec) and spec.suspend and draft.status.attempt:
        attempt.suspend(draft, draft.status.attempt.stage)
    return True


def _is_published_already(draft: Draft, spec: FineTuneJobSpec) -> bool:
    """A run is its content: a re-created, restored or re-applied job never trains twice."""
    if spec.publish is None:
        return False
    digest = run_digest(spec, draft.observed.config_maps)
    version = next((version for version in draft.observed.versions if version.run_digest == digest), None)
    if version is None:
        return False
    message = (
        f"{version.name} was made by a run of the same content; nothing was run. Data behind a URI is not compared: "
        "set spec.runId on a new object to run again"
    )
    draft.status.run_digest = digest
    draft.status.model_version_ref = VersionRef(name=version.name, version=version.version)
    draft.set(ConditionType.VALIDATED, "True", Reason.VALID)
    draft.set(ConditionType.PUBLISHED, "True", Reason.ALREADY_PUBLISHED, message)
    _succeed(draft, Reason.ALREADY_PUBLISHED, message)
    return True


def _refuse(draft: Draft, found: list[checks.Finding]) -> None:
    first = found[0]
    message = "; ".join(finding.message for finding in found)
    if not _already_refused(draft, first.reason):
        draft.event(first.reason, message, warning=True)
    draft.set(ConditionType.VALIDATED, "False", first.reason, message)
    draft.stalled = (first.reason, message)
    if any(finding.passing for finding in found):
        draft.recheck(draft.now + timedelta(seconds=draft.settings.missing_recheck_s))


def _already_refused(draft: Draft, reason: str) -> bool:
    old = draft.was(ConditionType.VALIDATED)
    return old is not None and (old.status, old.reason) == ("False", reason)


def _start(draft: Draft, spec: FineTuneJobSpec) -> bool:
    """The start is durable before any child exists; from then on the spec is immutable."""
    if draft.status.start_time:
        return False
    if spec.suspend:
        draft.set(ConditionType.SUSPENDED, "True", Reason.SUSPENDED, "spec.suspend is true; nothing was started")
        return True
    status = draft.status
    status.start_time = status.active_since = draft.now
    status.active_seconds = 0
    status.run_digest = run_digest(spec, draft.observed.config_maps)
    status.images = images_of(spec, draft.settings)
    draft.set(ConditionType.SUSPENDED, "False", Reason.NOT_SUSPENDED)
    draft.set(ConditionType.RESOURCES_APPLIED, "True", Reason.APPLIED)
    attempt.begin(draft, Stage.PREPARE)
    draft.event(Reason.STARTED, "the run has started with stage prepare")
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
    fail(draft, Reason.DEADLINE_EXCEEDED, message, draft.status.attempt.stage if draft.status.attempt else None)
    return True


def _ensure_claim(draft: Draft, spec: FineTuneJobSpec) -> bool:
    template = spec.storage.persistent_volume_claim
    assert template is not None
    if template.size and not draft.is_true(ConditionType.PACKAGED):
        name = names.claim_name(draft.job["metadata"]["name"], draft.job["metadata"]["uid"])
        if draft.observed.claims.get(name) is None:
            draft.actions.append(Create(make_claim(template, spec.retention, draft.job)))
    return False


def _run_stages(draft: Draft, spec: FineTuneJobSpec) -> bool:
    ended = attempt.run(draft, spec)
    if isinstance(ended, attempt.Failure):
        fail(draft, ended.reason, ended.message, ended.stage)
        return True
    return ended


def _publish(draft: Draft, spec: FineTuneJobSpec) -> bool:
    if spec.publish is None:
        return False
    refused = publish.run(draft, spec)
    if isinstance(refused, publish.Refused):
        draft.set(ConditionType.PUBLISHED, "False", refused.reason, refused.message)
        fail(draft, refused.reason, refused.message)
        return True
    return refused


def _end(draft: Draft, spec: FineTuneJobSpec) -> bool:
    reference = draft.status.model_version_ref
    _succeed(draft, Reason.COMPLETED, f"published as {reference.name}" if reference else "all stages are done; artifacts are in status")
    return True


Step = Callable[[Draft, FineTuneJobSpec], bool]
STEPS: tuple[Step, ...] = (_validate, _start, _report_problems, _deadline, _ensure_claim, _run_stages, _publish, _end)


# --------------------------------------------------------------------------------------------------------------------- ends


def _succeed(draft: Draft, reason: Reason, message: str) -> None:
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
    attempt.stands_still(draft)


def _stop_live_jobs(draft: Draft) -> None:
    for live in draft.live_jobs:
        draft.stop(live)


def _hear_the_last_pod(draft: Draft) -> None:
    """A pod that the end stopped saves its work within its grace: what it saved is the newest checkpoint there is."""
    last = draft.status.attempt
    if last and not draft.is_true(CONDITION[last.stage]):
        attempt.hear(draft, last.stage)


def _after_the_end(draft: Draft) -> None:
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
