"""Before a run starts: what is checked, whether it was done before, and when another spec is another start. Pure."""

from __future__ import annotations

from datetime import timedelta

from finetune_api.finetunejob import ConditionType, FineTuneJobSpec, VersionRef
from finetune_api.outcome import Reason
from finetune_api.run import Stage
from finetune_api.section import digest_of

from finetune_operator.core.plan import PASSING_PROBLEMS
from finetune_operator.core.refusal import REFUSED_S
from finetune_operator.finetunejob import attempt, checks
from finetune_operator.finetunejob.draft import Draft
from finetune_operator.finetunejob.ending import succeed
from finetune_operator.finetunejob.policies.digest import run_digest, spec_digest, template_text
from finetune_operator.finetunejob.resources.run_spec import images_of
from finetune_operator.finetunejob.status import CONDITION


def validate(draft: Draft, spec: FineTuneJobSpec) -> bool:
    """Before the start; afterwards only that it is still the run that was started."""
    if draft.status.start_time:
        return _is_another_run(draft, spec)
    if _is_published_already(draft, spec):
        return True
    found = checks.findings(checks.Subject(spec, draft.job, draft.observed, draft.settings))
    if found:
        refuse(draft, found)
        return True
    draft.set(ConditionType.VALIDATED, "True", Reason.VALID, "")
    return False


def _is_another_run(draft: Draft, spec: FineTuneJobSpec) -> bool:
    """Until a pod of the run was there another spec is another start. Later CEL refuses it, and this is for what got by."""
    if _is_unchanged(draft, spec):
        draft.status.spec_digest = spec_digest(spec)
        if draft.status.first_pod_time is None and (
            _has_worked(draft) or any(job.pods for job in draft.observed.jobs) or draft.observed.orphans
        ):
            draft.status.first_pod_time = draft.now
        draft.set(ConditionType.VALIDATED, "True", Reason.VALID)
        return False
    if draft.status.first_pod_time is None and not _has_worked(draft):
        _start_anew(draft)
        return True
    message = "the spec differs from what was started; put it back, or create another job for another run"
    if not _already_refused(draft, Reason.SPEC_CHANGED):
        draft.event(Reason.SPEC_CHANGED, message, warning=True)
    draft.set(ConditionType.VALIDATED, "False", Reason.SPEC_CHANGED, message)
    draft.stalled = (Reason.SPEC_CHANGED, message)
    draft.recheck(draft.now + timedelta(seconds=draft.settings.missing_recheck_s))
    return True


def _is_unchanged(draft: Draft, spec: FineTuneJobSpec) -> bool:
    status = draft.status
    if status.spec_digest is None:  # started by an earlier release
        return run_digest(spec, draft.observed.config_maps) == status.run_digest
    return spec_digest(spec) == status.spec_digest and not _waits_for_a_template_that_changed(draft, spec)


def _waits_for_a_template_that_changed(draft: Draft, spec: FineTuneJobSpec) -> bool:
    """No Job holds the text that was read at the start, so it may as well start with what is there now."""
    wanted = draft.status.chat_template_digest
    return bool(wanted) and not draft.observed.jobs and not _has_worked(draft) and _template_digest(draft, spec) != wanted


def _template_digest(draft: Draft, spec: FineTuneJobSpec) -> str | None:
    text = template_text(spec, draft.observed.config_maps)
    return digest_of(text) if text is not None else None


def _has_worked(draft: Draft) -> bool:
    """Whether the run has got anywhere: also where an earlier release noted no first pod."""
    ended = any(job.state != "Active" for job in draft.observed.jobs)
    tried = any(record.reason != Reason.SUSPENDED for record in draft.status.attempts)
    return ended or tried or any(draft.is_true(CONDITION[stage]) for stage in Stage)


def _start_anew(draft: Draft) -> None:
    """What was made for the former spec goes first: the new start uses the same names."""
    for job in draft.observed.jobs:
        draft.stop(job)
    draft.reconciling = Reason.STARTED_ANEW
    if draft.observed.jobs or draft.alive_pods:
        return
    status = draft.status
    status.start_time = status.active_since = status.attempt = status.attempt_count = status.active_seconds = None
    status.run_digest = status.spec_digest = status.chat_template_digest = status.images = None
    for stage in Stage:
        draft.set(CONDITION[stage], "Unknown", Reason.WAITING)
    draft.event(Reason.STARTED_ANEW, "the spec changed before any pod of the run was there; it is checked and started as it is now")
    draft.status_first = True
    draft.recheck(draft.now)


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
    succeed(draft, Reason.ALREADY_PUBLISHED, message)
    return True


def refuse(draft: Draft, found: list[checks.Finding]) -> None:
    first = found[0]
    message = "; ".join(finding.message for finding in found)
    if not _already_refused(draft, first.reason):
        draft.event(first.reason, message, warning=True)
    draft.set(ConditionType.VALIDATED, "False", first.reason, message)
    if first.reason in PASSING_PROBLEMS:
        draft.reconciling = first.reason
    else:
        draft.stalled = (first.reason, message)
    if any(finding.passing for finding in found):
        again_s = REFUSED_S + 1 if draft.observed.refused_pods or draft.observed.refused_claim else draft.settings.missing_recheck_s
        draft.recheck(draft.now + timedelta(seconds=again_s))


def _already_refused(draft: Draft, reason: str) -> bool:
    old = draft.was(ConditionType.VALIDATED)
    return old is not None and (old.status, old.reason) == ("False", reason)


def start(draft: Draft, spec: FineTuneJobSpec) -> bool:
    """The start is durable before any child exists."""
    if draft.status.start_time:
        return False
    if spec.suspend:
        draft.set(ConditionType.SUSPENDED, "True", Reason.SUSPENDED, "spec.suspend is true; nothing was started")
        return True
    status = draft.status
    status.start_time = status.active_since = draft.now
    status.active_seconds = 0
    status.run_digest = run_digest(spec, draft.observed.config_maps)
    status.spec_digest = spec_digest(spec)
    status.chat_template_digest = _template_digest(draft, spec)
    status.images = images_of(spec, draft.settings)
    draft.set(ConditionType.SUSPENDED, "False", Reason.NOT_SUSPENDED)
    draft.set(ConditionType.RESOURCES_APPLIED, "True", Reason.APPLIED)
    attempt.begin(draft, Stage.PREPARE)
    draft.event(Reason.STARTED, "the run has started with stage prepare")
    return True
