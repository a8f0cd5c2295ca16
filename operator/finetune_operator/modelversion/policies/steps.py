"""May a version take its next step, and if not, what keeps it? Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.modelversion import Stage
from finetune_api.outcome import Reason
from finetune_api.status import timestamp

from finetune_operator.modelversion.checks import Finding
from finetune_operator.modelversion.observed import Observed
from finetune_operator.modelversion.policies.traffic import differs, followed_traffic, grants
from finetune_operator.modelversion.versions import Move, Place, Version, duration_of, production_of


@dataclass(frozen=True)
class Obstacle:
    """What keeps a version from its next step; `until` is set where time alone takes it away."""

    reason: Reason
    message: str
    until: datetime | None = None


@dataclass(frozen=True)
class Gate:
    """What every version of the model looks at. `route_settled`: accepted at its generation, and as it is wanted."""

    observed: Observed
    route_settled: bool
    now: datetime
    taken_by: str = ""
    """The route of another model that has the host names which this one asks for."""

    def pods_ready(self, version: Version) -> bool:
        deployment = self.observed.deployments.get(version.name)
        return deployment is not None and deployment.ready and version.name in self.observed.services


def obstacle(version: Version, versions: Sequence[Version], finding: Finding | None, gate: Gate) -> Obstacle | None:
    """None: it may take the next step now."""
    rollout, ready = version.spec.rollout, gate.pods_ready(version)
    starting = version.place.stage == Stage.REGISTERED
    unread = next((other.name for other in versions if other.is_unread), "")
    if finding or unread:
        words = f"{describe(version)}; {unread} cannot be read: no version takes a step until it is mended or deleted"
        return Obstacle(Reason.WAITING, finding.message if finding else words)
    if starting and not ready:
        return Obstacle(Reason.STARTING, "its pods must be ready before the first step")
    if rollout.paused:
        return Obstacle(Reason.PAUSED, f"{describe(version)}; spec.rollout.paused is set")
    barrier = _of_traffic(version, versions, gate)
    if barrier or starting:
        return barrier
    return _in_step(version, ready, gate)


def _of_traffic(version: Version, versions: Sequence[Version], gate: Gate) -> Obstacle | None:
    """Why it gets no share of the route, or not the one that its next step asks for."""
    if differs(version, versions):
        return Obstacle(Reason.WAITING, "its traffic settings differ from those that the route follows")
    if version.place.stage == Stage.REGISTERED and followed_traffic(versions).type == "GatewayAPI":
        if not gate.observed.gateway_api:
            return Obstacle(Reason.WAITING, "the cluster serves no HTTPRoutes")
        if gate.taken_by:
            return Obstacle(Reason.WAITING, f"its host names belong to HTTPRoute {gate.taken_by} of another model")
        if production_of(versions) and not gate.route_settled:
            return Obstacle(Reason.WAITING, "the Gateway has not accepted the route as it is now")
    if version in overcommitted(versions):
        return Obstacle(Reason.WEIGHT_TAKEN, f"{describe(version)}; its {version.weight_asked} % would leave nothing for production")
    crowd = too_much(version, versions)
    return Obstacle(Reason.WEIGHT_TAKEN, f"{describe(version)}; {crowd}") if crowd else None


def _in_step(version: Version, ready: bool, gate: Gate) -> Obstacle | None:
    held = _held(version, gate)
    if held:
        return held
    if not is_approved(version):
        return Obstacle(
            Reason.AWAITING_APPROVAL, f"{describe(version)}; set spec.rollout.approvedStep to {version.step_index or 0} to let it go on"
        )
    if not ready:
        return Obstacle(Reason.WAITING, f"{describe(version)}; its pods are not all ready")
    if not gate.route_settled:
        return Obstacle(Reason.WAITING, f"{describe(version)}; the Gateway has not accepted the route with the step's weights")
    return None


def _held(version: Version, gate: Gate) -> Obstacle | None:
    step, hold = version.step, version.place.hold
    left = duration_of(step.hold) - hold.at(gate.now) if step else timedelta(0)
    if step is None or left <= timedelta(0):
        return None
    if hold.since:
        ends = gate.now + left
        return Obstacle(Reason.HOLDING, f"{describe(version)}, held until {timestamp(ends)}", ends)
    counts = f"{hold.counted.total_seconds():.0f} s of {step.hold} counted: time counts while the route sends its weight and a pod answers"
    return Obstacle(Reason.HOLDING, f"{describe(version)}, {counts}")


def overcommitted(versions: Sequence[Version]) -> list[Version]:
    """Live versions whose step's weight does not fit beside those of older ones: they get none."""
    granted = grants(versions)
    return [version for version in versions if version.name in granted and granted[version.name] < version.weight_asked]


def too_much(version: Version, versions: Sequence[Version]) -> str:
    """Why the next step's weight does not fit beside those of the other candidates; empty where it does."""
    index = version.next_index
    if index is None or version.steps[index].stage == Stage.PRODUCTION.value:
        return ""
    step = version.steps[index]
    there = version.at(Place(Stage(step.stage), index))
    after = [there if other.name == version.name else other for other in versions]
    others = [other for other in after if other.name != version.name and other.name in grants(after) and other.weight_asked]
    if not overcommitted(after) or not others:
        return ""
    names = ", ".join(f"{other.name} has {other.weight_asked} %" for other in others)
    return f"step {step.name} asks for {step.weight} % while {names}: nothing would be left for production"


def is_approved(version: Version) -> bool:
    """Leaving step i needs approvedStep ≥ i; the first step is entered without."""
    rollout = version.spec.rollout
    approved = -1 if rollout.approved_step is None else rollout.approved_step
    return rollout.approval == "Automatic" or approved >= (version.step_index or 0)


def next_step(version: Version, gate: Gate) -> Move | None:
    """The move to the next step; only for a version without an obstacle."""
    index = version.next_index
    if index is None:
        return None
    step = version.steps[index]
    done = "its pods are ready" if version.place.stage == Stage.REGISTERED else f"{describe(version)} is done"
    why = f"{done}; on to step {step.name} ({index + 1} of {len(version.steps)})"
    return Move(version.name, Place(Stage(step.stage), index, gate.now), "Rollout", why, _evidence(version, gate))


def describe(version: Version) -> str:
    """Where it stands, in words: `step canary (1 of 3)`."""
    step, index = version.step, version.step_index
    if step is None or index is None:
        return "before the first step" if version.place.stage == Stage.REGISTERED else "its present step is no longer in rollout.steps"
    return f"step {step.name} ({index + 1} of {len(version.steps)})"


def _evidence(version: Version, gate: Gate) -> str:
    deployment, route = gate.observed.deployments[version.name], gate.observed.route
    parts = [f"{deployment.available} of {deployment.replicas} pods ready"]
    if version.step and version.live:
        parts.append(f"held {version.step.hold}")
    if version.live and route:
        parts.append(f"weight {route.weights.get(version.name, 0)} accepted at route generation {route.generation}")
    return ", ".join(parts)
