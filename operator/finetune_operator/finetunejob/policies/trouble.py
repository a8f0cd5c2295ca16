"""What keeps a pod from running, and does it need a person? Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.outcome import Reason

from finetune_operator.core.facts import SCHEDULING_GRACE
from finetune_operator.core.refusal import is_quota, never_fits
from finetune_operator.finetunejob.observed import JobFact, Observed, PodFact

_PULL_FAILED = "ErrImagePull"
_PULL = "it goes on by itself once the image can be pulled (registry, spec.imagePullSecrets); another spec.image takes another job"
_WAITING_CURES = {
    _PULL_FAILED: _PULL,
    "ImagePullBackOff": _PULL,
    "InvalidImageName": "create another job with the image's right name as spec.image",
    "CreateContainerConfigError": "it goes on by itself once that is there; another name in the spec takes another job",
}
_STARTING = frozenset({"ContainerCreating", "PodInitializing"})
_KUBELET_GRACE = timedelta(seconds=30)
"""From the end of a pod's own grace until its kubelet is believed to be gone."""
_LOOK_AGAIN = timedelta(minutes=1)
_QUOTA_GRACE = timedelta(minutes=1)
"""How long a quota race is no news: another pod's share is given back after its end, and the Job controller tries again ever later."""


@dataclass(frozen=True)
class Trouble:
    """What keeps a pod from running; `reason` may be Kubernetes' own word.

    Before `lasts_at` it may pass by itself; from then on, or where it is None, a person is needed.
    """

    reason: str
    message: str
    lasts_at: datetime | None = None
    is_echo: bool = False
    """Says less than what was told of the same reason before."""


def trouble_of(fact: JobFact, observed: Observed, now: datetime) -> Trouble | None:
    """What keeps a pod from running, in kubelet's, scheduler's or admission's words."""
    if fact.refused and not fact.pods:
        passes = is_quota(fact.refused) and not never_fits(fact.refused)
        return Trouble(Reason.POD_REFUSED, fact.refused, fact.created_at + _QUOTA_GRACE if passes else None)
    return next((found for pod in fact.pods if (found := _pod_trouble(pod, observed, now))), None)


def _pod_trouble(pod: PodFact, observed: Observed, now: datetime) -> Trouble | None:
    if pod.deleting:
        return stopping(pod, now)
    if pod.waiting and pod.waiting[0] not in _STARTING:
        reason, message = pod.waiting
        cure = _WAITING_CURES.get(reason, "it goes on by itself once this is mended; what the spec names wrongly takes another job")
        told = f"pod {pod.name}: {message or reason}; {cure}"
        # kubelet says by turns why it failed and that it waits to try again
        return Trouble(_PULL_FAILED, told, is_echo=True) if reason == "ImagePullBackOff" else Trouble(reason, told)
    if pod.unschedulable:
        lasts_at = pod.unschedulable_since + SCHEDULING_GRACE if pod.unschedulable_since else None
        reason, cure = _unschedulable(pod.unschedulable, observed)
        return Trouble(reason, f"pod {pod.name}: {pod.unschedulable.rstrip('.')}; {cure}", lasts_at)
    return None


def waits_for_a_volume(pod: PodFact) -> bool:
    return bool(pod.unschedulable) and any(sign in (pod.unschedulable or "") for sign in _NO_VOLUME)


_NO_VOLUME = ("unbound immediate PersistentVolumeClaims", "find available persistent volumes to bind", "provisioning failed")
_MISSING_CLAIM = re.compile(r'persistentvolumeclaim "[^"]+" (not found|is being deleted)')
_VOLUME_ELSEWHERE = ("volume node affinity conflict", "PersistentVolume's node affinity")


def _unschedulable(words: str, observed: Observed) -> tuple[Reason, str]:
    """The reason, and what is to be done, by the scheduler's words."""
    if any(sign in words for sign in _NO_VOLUME):
        return Reason.CLAIM_NOT_BOUND, f"{_pending_claims(observed)}; it goes on by itself once the claim is bound"
    if _MISSING_CLAIM.search(words):
        return Reason.CLAIM_NOT_FOUND, "restore the claim that is named, or create another job with one that is there"
    if any(sign in words for sign in _VOLUME_ELSEWHERE):
        if "Insufficient" in words:  # where the volumes lie a node may only be full
            return Reason.UNSCHEDULABLE, f"{_TIED} once one of them has; where they never have it: {_MEET}"
        return Reason.VOLUME_ELSEWHERE, f"a volume of the run lies on another node than this pod may run on: {_MEET}"
    return Reason.UNSCHEDULABLE, "it goes on by itself once a node has room"


_TIED = "its volumes tie it to nodes of which none has room now; it goes on by itself"
_MEET = (
    "create another job with all stages on the same nodes (leave spec.stages.<name>.nodeSelector, tolerations and affinity "
    "out), or with storage that all nodes reach (accessModes ReadWriteMany)"
)


def _pending_claims(observed: Observed) -> str:
    told = [
        f"PersistentVolumeClaim {claim.name} (storageClassName {claim.storage_class or 'not set'}) is Pending"
        + (f": {observed.claim_words[claim.name]}" if claim.name in observed.claim_words else "; kubectl describe it to see why")
        for claim in observed.claims.values()
        if claim and claim.phase == "Pending"
    ]
    return "; ".join(told) or "a PersistentVolumeClaim of it has no volume"


def lingering(pod: PodFact, now: datetime) -> Trouble:
    """What the next attempt waits for: a pod of one before it."""
    if pod.deleting:
        return stopping(pod, now)
    words = f"pod {pod.name} of an attempt before still runs; the next one starts when it has ended, or with: kubectl delete pod {pod.name}"
    return Trouble(Reason.FORMER_POD_ALIVE, words, now + _LOOK_AGAIN)


def stopping(pod: PodFact, now: datetime) -> Trouble:
    """Preempted, evicted or deleted: its kubelet ends it within its grace, unless the node is lost."""
    lost_at = pod.gone_by + _KUBELET_GRACE if pod.gone_by else now
    if now < lost_at:
        return Trouble(Reason.STOPPING, f"pod {pod.name} is being stopped ({pod.disruption or 'deleted'}) and saves its work", lost_at)
    return Trouble(
        Reason.NODE_LOST,
        f"pod {pod.name} is on a lost node and its volume cannot move; bring node {pod.node} back or free it with: "
        f"kubectl delete pod {pod.name} --grace-period=0 --force",
    )
