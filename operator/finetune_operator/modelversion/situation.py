"""A model's versions at their places, and everything that follows from them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from finetune_operator.core.settings import Settings
from finetune_operator.modelversion.checks import Finding, first_finding
from finetune_operator.modelversion.observed import Observed
from finetune_operator.modelversion.policies import keep
from finetune_operator.modelversion.policies.steps import Gate, Obstacle, obstacle
from finetune_operator.modelversion.policies.traffic import followed_traffic, shares, wanted_backends
from finetune_operator.modelversion.versions import Version


@dataclass(frozen=True)
class Situation:
    """The versions at their places, and everything that follows from them."""

    versions: Sequence[Version]
    observed: Observed
    settings: Settings
    now: datetime
    weights: Mapping[str, int] = field(init=False)
    findings: Mapping[str, Finding | None] = field(init=False)
    gate: Gate = field(init=False)

    def __post_init__(self) -> None:
        weights = shares(self.versions, self.observed)
        findings = {version.name: first_finding(version, self.observed, self.settings) for version in self.versions}
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "findings", findings)
        object.__setattr__(self, "gate", Gate(self.observed, self._route_settled(), self.now))

    def _route_settled(self) -> bool:
        if followed_traffic(self.versions).type == "None":
            return True
        route = self.observed.route
        return route is not None and self.route_accepted and dict(route.weights) == self.backends

    @property
    def backends(self) -> dict[str, int]:
        return wanted_backends(self.versions, self.weights, self.observed)

    @property
    def route_accepted(self) -> bool:
        """Whether the route as it is, whatever its weights, is what the Gateway does; true where there is none."""
        route, settings = self.observed.route, followed_traffic(self.versions).gateway_api
        if route is None:
            return True
        parents = [route.parent(settings.gateway.name, settings.gateway.namespace)] if settings else list(route.parents)
        return all(parent is not None and parent.accepted and parent.generation == route.generation for parent in parents)

    def obstacle_of(self, version: Version) -> Obstacle | None:
        return obstacle(version, self.versions, self.findings[version.name], self.gate)

    def pods_wanted(self, version: Version) -> bool:
        return keep.pods_are_wanted(version, self.versions, self.weights, self.now)

    def idle_since(self, version: Version) -> datetime | None:
        return None if self.pods_wanted(version) else keep.idle_since(version, self.observed, self.route_accepted, self.now)
