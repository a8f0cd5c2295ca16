"""How much of a step has counted? Only time in which the Gateway had accepted the version's weight and a pod answered. Pure.

status keeps what counted before the last interruption, and since when it counts again. Of time that nobody watched, because the
operator was away, only what the Deployment, its pods and the Gateway prove by their own times counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from finetune_api.modelversion import Stage

from finetune_operator.modelversion.observed import DeploymentFact, Observed
from finetune_operator.modelversion.policies.traffic import answers
from finetune_operator.modelversion.versions import Hold, Version


def counted(version: Version, observed: Observed, *, gets_its_weight: bool, now: datetime) -> Hold:
    """The hold as it is now. `gets_its_weight`: the route as the Gateway accepted it sends the version what its step says."""
    hold = version.place.hold
    if not version.live or version.place.stage == Stage.PRODUCTION:
        return Hold()
    deployment = observed.deployments.get(version.name)
    watched = hold.since is not None and (observed.watched_since is None or hold.since >= observed.watched_since)
    if gets_its_weight and deployment is not None and answers(version, observed):
        if hold.since is None:
            return Hold(hold.counted, now)
        ready = _ready_since(version, observed)
        return (
            _unbroken(hold, deployment, ready)
            if watched
            else _proven(hold, observed, answering=(ready, deployment.available_since), now=now)
        )
    if hold.since is None:
        return hold
    return Hold(hold.at(_ended(hold.since, deployment, now)) if watched else hold.counted)


def _unbroken(hold: Hold, deployment: DeploymentFact, ready: datetime | None) -> Hold:
    """One that goes on, cut where nobody is known to have answered in between."""
    if hold.since is None or ready is None:
        return hold
    lacking = deployment.unavailable_since
    if lacking and lacking > hold.since and ready <= lacking:
        # some pods are gone, and one that was there before answers: what counted up to here must not hang on that one's age
        return Hold(hold.at(lacking), lacking)
    came_back = deployment.available_since and deployment.available_since > hold.since
    return Hold(hold.counted, ready) if came_back and ready > hold.since else hold


def _proven(hold: Hold, observed: Observed, *, answering: Sequence[datetime | None], now: datetime) -> Hold:
    """What of a time without a watcher counts; it is taken down at once, so that it need not be proven again.

    `answering`: moments each of which proves that somebody answered ever since.
    """
    proofs = [since for since in answering if since]
    accepted = [parent.accepted_since for parent in (observed.route.parents if observed.route else ()) if parent.accepted_since]
    if hold.since is None or not proofs or not accepted:
        return Hold(hold.counted, now)
    since = max(hold.since, min(proofs), max(accepted))
    return Hold(hold.counted + (now - since), now)


def _ended(since: datetime, deployment: DeploymentFact | None, now: datetime) -> datetime:
    """Until when it counted at least."""
    if deployment is None:
        return since
    if deployment.serving or deployment.unavailable_since is None:
        return now
    return min(now, max(since, deployment.unavailable_since))


def _ready_since(version: Version, observed: Observed) -> datetime | None:
    """Since when the pod that answers longest does; None where no pod tells."""
    times = [pod.ready_since for pod in observed.pods if pod.version == version.name and pod.ready and pod.ready_since]
    return min(times, default=None)
