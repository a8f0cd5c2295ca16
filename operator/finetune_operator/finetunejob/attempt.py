"""The attempts of a run's stages, one after another: begin, wait, read the answer, try again or give up. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from finetune_api.finetunejob import ATTEMPTS_KEPT, AttemptRecord, ConditionType, CurrentAttempt, FineTuneJobSpec, ProgressStatus
from finetune_api.outcome import Reason, Retry
from finetune_api.run import Stage
from finetune_api.status import timestamp

from finetune_operator.core import names
from finetune_operator.core.names import stage_job_name
from finetune_operator.core.plan import Create
from finetune_operator.core.refusal import REFUSED_S
from finetune_operator.finetunejob import obstacles
from finetune_operator.finetunejob.draft import Draft
from finetune_operator.finetunejob.evidence import absorb, hear, stands_still, summary
from finetune_operator.finetunejob.observed import JobFact, PodFact
from finetune_operator.finetunejob.policies import progress as progress_policy
from finetune_operator.finetunejob.policies import retry
from finetune_operator.finetunejob.policies.deadline import active_seconds
from finetune_operator.finetunejob.policies.trouble import trouble_of
from finetune_operator.finetunejob.resources.run_spec import StageRequest, images_of
from finetune_operator.finetunejob.resources.stage_job import make_dry_run_pod, make_stage_job
from finetune_operator.finetunejob.status import CONDITION

_ASKED_LONG_AGO = timedelta(seconds=REFUSED_S)
_PENDING: dict[Stage, Reason] = {
    Stage.PREPARE: Reason.PREPARED_PENDING,
    Stage.TRAIN: Reason.TRAINED_PENDING,
    Stage.PACKAGE: Reason.PACKAGED_PENDING,
    Stage.EVALUATE: Reason.EVALUATED_PENDING,
}


@dataclass(frozen=True)
class Failure:
    """A stage that no further attempt can save; `reason` may be a word of an image of the user's own."""

    stage: Stage
    reason: str
    message: str


def begin(draft: Draft, stage: Stage) -> None:
    """Records the stage's next attempt; its Job is made in the pass after that is durable.

    That is the first one, unless a later stage did not find what this one had left, or this one what earlier ones had.
    """
    records, sought = draft.status.attempts, draft.reason_of(CONDITION[stage]) == Reason.RESULT_SOUGHT
    failures = 0 if sought else retry.failures(stage, records)
    number = retry.next_number(stage, draft.observed.jobs, records)
    not_before = draft.now + retry.backoff(failures) if failures else None
    _set_attempt(draft, CurrentAttempt(stage=stage, number=number, failures=failures, not_before=not_before, report=sought or None))
    words = f"what stage {stage} left is looked for on the storage" if sought else f"stage {stage} is under way"
    draft.set(CONDITION[stage], "False", Reason.RUNNING, words)
    kept = progress_policy.kept(draft.status.progress)
    draft.status.progress = ProgressStatus(stage=stage.value, **kept) if kept else None


def _set_attempt(draft: Draft, attempt: CurrentAttempt) -> None:
    draft.status.attempt = attempt
    draft.status.attempt_count = attempt.number
    draft.status_first = True
    draft.recheck(draft.now)
    draft.reconciling = _PENDING[attempt.stage]


def run(draft: Draft, spec: FineTuneJobSpec) -> bool | Failure:
    """True: the pass ends here; False: every stage is done; Failure: the run is over."""
    for stage in Stage:
        if draft.is_true(CONDITION[stage]):
            continue
        attempt = draft.status.attempt
        if attempt is None or attempt.stage is not stage:
            begin(draft, stage)
            return True
        ended = _run_stage(draft, spec, attempt)
        if ended is not False:
            return ended
    return False


def _run_stage(draft: Draft, spec: FineTuneJobSpec, attempt: CurrentAttempt) -> bool | Failure:
    """False once the stage is done."""
    draft.reconciling = _PENDING[attempt.stage]
    name = stage_job_name(draft.job["metadata"]["name"], attempt.stage, attempt.number)
    fact = next((job for job in draft.observed.jobs if job.name == name), None)
    last_words_by = retry.last_words_by(fact) if fact else None
    if last_words_by and draft.now < last_words_by:
        draft.recheck(last_words_by)
        return True
    if fact and fact.state == "Complete":
        return _complete(draft, spec, attempt, fact)
    if spec.suspend:
        return suspend(draft, attempt.stage)
    _resume(draft)
    if fact and fact.state == "Failed":
        return _failed(draft, spec, attempt, fact)
    if fact:
        _wait(draft, attempt, fact)
        return True
    return _create(draft, spec, attempt)


def _complete(draft: Draft, spec: FineTuneJobSpec, attempt: CurrentAttempt, fact: JobFact) -> bool | Failure:
    stage, result = attempt.stage, retry.answer(fact)
    if result is None:
        if attempt.report and fact.pods and fact.pods[0].phase == "Succeeded":
            return Failure(stage, Reason.ANSWER_UNREADABLE, _unreadable(stage, fact.pods[0]))
        # the pod vanished before its answer was read: the manifest has it, and reading it takes no GPU
        _set_attempt(draft, CurrentAttempt(stage=stage, number=attempt.number + 1, failures=attempt.failures, report=True))
        return True
    absorb(draft, result)
    if stage.is_last and spec.retention.checkpoints == "Delete":
        draft.status.checkpoint = None  # the stage removed it
    draft.set(CONDITION[stage], "True", Reason.COMPLETED, summary(result))
    draft.event(CONDITION[stage].value, f"stage {stage} is done. {summary(result)}".strip())
    return False


def _unreadable(stage: Stage, pod: PodFact) -> str:
    return (
        f"stage {stage} ended well, but pod {pod.name} left no answer in its termination message, and neither when asked again: "
        "is spec.image a trainer image of this release?"
    )


def suspend(draft: Draft, stage: Stage) -> bool:
    """The attempt's Job is deleted, not suspended: a queue would un-suspend it. What was saved is found again at the next start."""
    hear(draft, stage)
    stands_still(draft)
    if draft.live_jobs or draft.alive_pods or any(job.deleting for job in draft.observed.jobs):
        if draft.reason_was(ConditionType.SUSPENDED) != Reason.SUSPENDING:
            record_stopped(draft, Reason.SUSPENDED)
        for job in draft.live_jobs:
            draft.stop(job)
        draft.set(ConditionType.SUSPENDED, "False", Reason.SUSPENDING, "pods are saving their work")
        draft.set(CONDITION[stage], "False", Reason.SUSPENDING, f"stage {stage} is being stopped for spec.suspend and saves its work")
        obstacles.mind_pods_that_stay(draft)
        return True
    if not draft.is_true(ConditionType.SUSPENDED):
        draft.status.active_seconds = active_seconds(draft.status, draft.now)
        draft.status.active_since = None
        draft.event(Reason.SUSPENDED, f"stage {stage} is suspended; its work so far is on storage")
    draft.set(ConditionType.SUSPENDED, "True", Reason.SUSPENDED, "spec.suspend is true; set it to false to go on")
    draft.set(CONDITION[stage], "False", Reason.SUSPENDED, f"stage {stage} goes on when spec.suspend is false")
    draft.reconciling = ""
    return True


def record_stopped(draft: Draft, reason: Reason) -> None:
    """Attempts that are about to be stopped, which they are not to blame for."""
    for job in draft.live_jobs:
        _record(draft, job, retry.ended(reason, ""))


def _resume(draft: Draft) -> None:
    if draft.is_true(ConditionType.SUSPENDED):
        draft.status.active_since = draft.now
        draft.event(Reason.RESUMED, "spec.suspend is false; the run goes on")
    draft.set(ConditionType.SUSPENDED, "False", Reason.NOT_SUSPENDED)


def _failed(draft: Draft, spec: FineTuneJobSpec, attempt: CurrentAttempt, fact: JobFact) -> bool | Failure:
    stage, outcome = attempt.stage, retry.outcome(fact)
    if attempt.report and outcome.reason == Reason.STAGE_MISSING:
        return _make_anew(draft, attempt, fact, outcome)
    if outcome.result:
        absorb(draft, outcome.result)
    failures = attempt.failures + (1 if outcome.counted else 0)
    interrupted = retry.interruptions(attempt.interruptions or 0, outcome, fact, draft.now)
    _record(draft, fact, outcome)
    stands_still(draft)
    if outcome.final:
        return Failure(stage, outcome.reason, outcome.message)
    if failures >= spec.recovery.max_attempts:
        return Failure(stage, outcome.reason, f"{outcome.message}{_LAST_CURES.get(outcome.reason, '')} ({_counted(spec, failures)})")
    if outcome.reason == Reason.STAGE_MISSING and stage.upstream:
        _tell_retry(draft, attempt, outcome, "stages before it are looked for there, and run again where they are gone")
        look_again(draft, before=stage)
        return True
    wait = retry.backoff(failures if outcome.counted else 0, interrupted)
    following = CurrentAttempt(
        stage=stage,
        number=attempt.number + 1,
        failures=failures,
        interruptions=interrupted or None,
        not_before=draft.now + wait if wait else None,
        report=attempt.report,
    )
    _set_attempt(draft, following)
    _tell_retry(draft, attempt, outcome, "another attempt follows" + (f" ({_counted(spec, failures)} failed)" if outcome.counted else ""))
    return True


_LAST_CURES: dict[str, str] = {
    Reason.STAGE_MISSING: "; does the storage keep what pods write to it, and show it to the next pod? Another job runs all stages",
}
"""What a person does who reads that no attempt follows, where the stage itself cannot say it."""


def _counted(spec: FineTuneJobSpec, failures: int) -> str:
    return f"attempt {failures} of {spec.recovery.max_attempts}"


def _tell_retry(draft: Draft, attempt: CurrentAttempt, outcome: retry.Outcome, what_follows: str) -> None:
    """What follows is said here: a stage does not know whether it was the last attempt."""
    words = f"{outcome.reason}: {outcome.message}; {what_follows}"
    draft.set(CONDITION[attempt.stage], "False", Reason.RETRYING, words)
    draft.event(Reason.RETRYING, f"stage {attempt.stage}, attempt {attempt.number} ended: {words}", warning=True)


def look_again(draft: Draft, *, before: Stage) -> None:
    """The storage is not what it was when stages were done, so each one before `before` has to say that its result is still there.

    That takes no GPU. One that is gone is made anew, as those after it then are.
    """
    stages = list(Stage)
    for stage in stages[: stages.index(before)]:
        draft.set(CONDITION[stage], "False", Reason.RESULT_SOUGHT, f"what stage {stage} left is looked for on the storage")
    draft.status.checkpoint = draft.status.progress = None
    begin(draft, Stage.PREPARE)


def _make_anew(draft: Draft, attempt: CurrentAttempt, fact: JobFact, outcome: retry.Outcome) -> bool | Failure:
    """A finished stage of which nothing is left, once: storage that loses it again would lose it for ever."""
    stage, lost_before = attempt.stage, retry.was_made_anew(attempt.stage, draft.status.attempts)
    outcome = replace(outcome, retry=Retry.UNCOUNTED)
    _record(draft, fact, outcome)
    if lost_before:
        return Failure(stage, outcome.reason, f"{outcome.message}, for the second time{_LAST_CURES[Reason.STAGE_MISSING]}")
    for later in list(Stage)[list(Stage).index(stage) + 1 :]:
        if draft.is_true(CONDITION[later]):
            draft.set(CONDITION[later], "False", Reason.RESULT_SOUGHT, f"stage {stage}, which it stands on, is made anew")
    _set_attempt(draft, CurrentAttempt(stage=stage, number=attempt.number + 1, failures=attempt.failures))
    _tell_retry(draft, attempt, outcome, "the stage is run again")
    return True


def _record(draft: Draft, fact: JobFact, outcome: retry.Outcome) -> None:
    record = AttemptRecord(
        stage=fact.stage,
        number=fact.attempt,
        reason=str(outcome.reason),
        counted=outcome.counted,
        start=timestamp(fact.created_at),
        end=timestamp(fact.finished_at or draft.now),
        node=outcome.node,
        exit_code=outcome.exit_code,
        resumed_from_step=outcome.result.resumed_from_step if outcome.result else None,
        message=outcome.message,
    )
    draft.status.attempts = [*draft.status.attempts, record][-ATTEMPTS_KEPT:]


def _create(draft: Draft, spec: FineTuneJobSpec, attempt: CurrentAttempt) -> bool:
    if attempt.not_before and attempt.not_before > draft.now:
        draft.recheck(attempt.not_before)
        obstacles.mind_interruptions(draft, attempt)
        return True
    if obstacles.another_goes_first(draft, attempt):
        return True
    if obstacles.lacks_its_template(draft, spec, attempt.stage) or obstacles.lacks_its_claim(draft, spec, CONDITION[attempt.stage]):
        return True
    if draft.reason_was(CONDITION[attempt.stage]) == Reason.CLAIM_LOST and attempt.stage.upstream:
        look_again(draft, before=attempt.stage)  # it is back, with or without its files
        return True
    _drop_oldest(draft, attempt)
    images = draft.before.images or images_of(spec, draft.settings)
    request = StageRequest(attempt.stage, attempt.number, images.trainer, report=bool(attempt.report))
    body = make_stage_job(spec, draft.job, request, draft.observed, draft.settings)
    draft.actions.append(Create(body, None if _was_asked_just_now(draft, attempt) else make_dry_run_pod(body)))
    _tell_refusal(draft, attempt.stage, body["metadata"]["name"])
    if attempt.progress_seen:  # of a pod that was suspended
        draft.status.attempt = attempt.model_copy(update={"progress_seen": None})
    return True


def _was_asked_just_now(draft: Draft, attempt: CurrentAttempt) -> bool:
    """The pods of all stages were, before the start."""
    since = draft.now - draft.status.start_time if draft.status.start_time else _ASKED_LONG_AGO
    return attempt.stage is Stage.PREPARE and attempt.number == 1 and since < _ASKED_LONG_AGO and not draft.observed.problems


def _tell_refusal(draft: Draft, stage: Stage, name: str) -> None:
    """The stage is not under way while the API server refuses its Job or pod, or the claim that it would use."""
    its = {("Job", name), ("PersistentVolumeClaim", names.claim_name(draft.job["metadata"]["name"], draft.job["metadata"]["uid"]))}
    refused = next((problem for problem in draft.observed.problems if (problem.kind, problem.name) in its), None)
    if refused:
        draft.set(CONDITION[stage], "False", refused.reason, f"stage {stage} cannot start: {refused.message}")


def _drop_oldest(draft: Draft, attempt: CurrentAttempt) -> None:
    """A stage that is interrupted for days leaves no more Jobs than status tells of."""
    for job in draft.observed.jobs:
        if job.stage == attempt.stage and job.attempt <= attempt.number - ATTEMPTS_KEPT:
            draft.stop(job)


# --------------------------------------------------------------------------------------------------------------- while it runs


def _wait(draft: Draft, attempt: CurrentAttempt, fact: JobFact) -> None:
    stage = attempt.stage
    trouble = trouble_of(fact, draft.observed, draft.now)
    if trouble:
        obstacles.tell(draft, CONDITION[stage], trouble)
        return
    if draft.status_of(CONDITION[stage]) != "False" or draft.reason_was(CONDITION[stage]) != Reason.RUNNING:
        draft.set(CONDITION[stage], "False", Reason.RUNNING, f"stage {stage} is under way")
    _take_progress(draft, attempt)


def _take_progress(draft: Draft, attempt: CurrentAttempt) -> None:
    report, old = draft.observed.progress, draft.status.progress
    if report is None:
        return
    if not attempt.progress_seen:
        draft.status.attempt = attempt.model_copy(update={"progress_seen": True})
    due = progress_policy.next_write_at(old, draft.settings.progress_write_s)
    if due and due > draft.now:
        draft.recheck(due)
        return
    fresh = progress_policy.to_status(attempt.stage.value, report, old, draft.now)
    if not progress_policy.same_but_for_time(old, fresh):
        draft.status.progress = fresh
