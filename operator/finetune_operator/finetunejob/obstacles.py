"""What keeps a run's next Job from being made, and how that is told. Pure."""

from __future__ import annotations

from datetime import timedelta

from finetune_api.finetunejob import ConditionType, CurrentAttempt, FineTuneJobSpec
from finetune_api.outcome import Reason
from finetune_api.run import Stage

from finetune_operator.core import names
from finetune_operator.core.facts import ClaimFact
from finetune_operator.finetunejob.draft import Draft
from finetune_operator.finetunejob.evidence import hear, stands_still
from finetune_operator.finetunejob.policies.digest import template_text
from finetune_operator.finetunejob.policies.trouble import Trouble, lingering
from finetune_operator.finetunejob.resources.run_spec import storage_claim
from finetune_operator.finetunejob.status import CONDITION

_MANY_INTERRUPTIONS = 5


def tell(draft: Draft, about: ConditionType, trouble: Trouble) -> None:
    """The condition says at once what it waits for, in the words it was first seen with; Stalled says it when it lasts."""
    if trouble.lasts_at and trouble.lasts_at > draft.now:
        if draft.reason_was(about) != trouble.reason:
            draft.set(about, "False", trouble.reason, trouble.message)
        draft.recheck(trouble.lasts_at)
        return
    before = draft.was(ConditionType.STALLED)
    is_known = before is not None and before.reason == trouble.reason
    if not is_known:
        draft.event(trouble.reason, trouble.message, warning=True)
    message = before.message if before and is_known and trouble.is_echo else trouble.message
    draft.stalled = (trouble.reason, message)
    draft.set(about, "False", trouble.reason, message)


def another_goes_first(draft: Draft, attempt: CurrentAttempt) -> bool:
    """At most one live attempt, judged by pods: one may outlive its Job, by its grace or for good."""
    hear(draft, attempt.stage)
    stands_still(draft)
    for job in draft.live_jobs:
        draft.stop(job)
    if draft.alive_pods:
        tell(draft, CONDITION[attempt.stage], lingering(draft.alive_pods[0], draft.now))
    return bool(draft.live_jobs or draft.alive_pods)


def lacks_its_template(draft: Draft, spec: FineTuneJobSpec, stage: Stage) -> bool:
    reference = spec.model.chat_template.config_map
    if reference is None or stage is not Stage.PREPARE or template_text(spec, draft.observed.config_maps) is not None:
        return False
    message = (
        f"spec.model.chatTemplate.configMap: ConfigMap {reference.name} no longer holds the template under key {reference.key} that the run "
        "was started with; put it back, or create another job for another template"
    )
    tell(draft, CONDITION[stage], Trouble(Reason.TEMPLATE_LOST, message))
    draft.recheck(draft.now + timedelta(seconds=draft.settings.missing_recheck_s))
    return True


def lacks_its_claim(draft: Draft, spec: FineTuneJobSpec, about: ConditionType) -> bool:
    """An empty claim in place of the lost one would fail the stage, or be taken for the result."""
    name = storage_claim(spec, draft.job)
    claim = draft.observed.claims.get(name)
    is_gone = name in draft.observed.claims and claim is None and draft.has_been_prepared
    if not is_gone and not (claim and (claim.phase == "Lost" or claim.deleting)):
        return False
    message = f"PersistentVolumeClaim {name} with the run's files {_lost(claim, draft.job['metadata']['name'])}, else create another job"
    tell(draft, about, Trouble(Reason.CLAIM_LOST, message))
    draft.recheck(draft.now + timedelta(seconds=draft.settings.missing_recheck_s))
    return True


def _lost(claim: ClaimFact | None, job: str) -> str:
    """What became of it, and how the run goes on."""
    again = "restore it under this name with the volume that it had and the run goes on"
    if claim is None:
        return f"is gone; {again}"
    if claim.deleting:
        pods = f"kubectl delete pod -l {names.JOB_LABEL}={job}"
        return f"is being deleted and goes with the last pod that uses it, those that have ended included ({pods}); then {again}"
    return f"has lost its volume; {again}"


def mind_pods_that_stay(draft: Draft) -> None:
    """A pod on a lost node is a person's, and so is one whose Job was deleted without it: pods are never deleted from here."""
    orphans = [pod for pod in draft.observed.orphans if pod.alive]
    for pod in [*(pod for pod in draft.alive_pods if pod.deleting), *orphans]:
        trouble = lingering(pod, draft.now)
        if trouble.lasts_at and trouble.reason != Reason.FORMER_POD_ALIVE:
            draft.recheck(trouble.lasts_at)
        else:
            draft.stalled = (trouble.reason, trouble.message)


def mind_interruptions(draft: Draft, attempt: CurrentAttempt) -> None:
    """They use up no attempt, so that only a person can see that they lead nowhere."""
    if draft.status.attempts and (attempt.interruptions or 0) >= _MANY_INTERRUPTIONS:
        last = draft.status.attempts[-1]
        draft.stalled = (last.reason, f"{attempt.interruptions} attempts in a row were interrupted soon after their start: {last.message}")
