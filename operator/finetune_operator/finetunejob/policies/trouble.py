"""What keeps a pod from running, and does it need a person? Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.outcome import Reason

from finetune_operator.core.facts import SCHEDULING_GRACE
from finetune_operator.core.refusal import is_quota, never_fits
from finetune_operator.finetunejob.observed import JobFact, PodFact

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


def trouble_of(fact: JobFact, now: datetime) -> Trouble | None:
    """What keeps a pod from running, in kubelet's, scheduler's or admission's words."""
    if fact.refused and not fact.pods:
        passes = is_quota(fact.refused) and not never_fits(fact.refused)
        return Trouble(Reason.POD_REFUSED, fact.refused, fact.created_at + _QUOTA_GRACE if passes else None)
    return next((found for pod in fact.pods if (found := _pod_trouble(pod, now))), None)


def _pod_trouble(pod: PodFact, now: datetime) -> Trouble | None:
    if pod.deleting:
        return stopping(pod, now)
    if pod.waiting and pod.waiting[0] not in _STARTING:
        reason, message = pod.waiting
        return Trouble(reason, f"pod {pod.name}: {message or reason}; it goes on by itself once this is mended")
    if pod.unschedulable:
        lasts_at = pod.unschedulable_since + SCHEDULING_GRACE if pod.unschedulable_since else None
        return Trouble(Reason.UNSCHEDULABLE, f"pod {pod.name}: {pod.unschedulable}; it goes on by itself once a node has room", lasts_at)
    return None


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
