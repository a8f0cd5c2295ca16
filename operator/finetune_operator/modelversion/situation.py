"""A model's versions at their places, and everything that follows from them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property

from finetune_api.sections.rollout import GatewayAPI

from finetune_operator.core.names import Object
from finetune_operator.core.settings import Settings
from finetune_operator.modelversion.checks import Finding, first_finding
from finetune_operator.modelversion.observed import Observed, RivalRoute, our_part
from finetune_operator.modelversion.policies import keep
from finetune_operator.modelversion.policies.hold import counted
from finetune_operator.modelversion.policies.steps import Gate, Obstacle, obstacle
from finetune_operator.modelversion.policies.traffic import (
    followed_traffic,
    followed_version,
    grants,
    shares,
    wanted_backends,
    written_settings,
)
from finetune_operator.modelversion.resources.http_route import KIND as ROUTE_KIND
from finetune_operator.modelversion.resources.http_route import make_http_route, route_mark
from finetune_operator.modelversion.versions import Hold, Version, may_follow


@dataclass(frozen=True)
class Situation:
    """The versions at their places, and everything that follows from them. What has counted of their holds is brought up to now."""

    versions: Sequence[Version]
    observed: Observed
    settings: Settings
    now: datetime
    left_behind: Sequence[str] = ()
    """Servers of versions that were deleted, by name."""
    weights: Mapping[str, int] = field(init=False)
    findings: Mapping[str, Finding | None] = field(init=False)
    gate: Gate = field(init=False)

    def __post_init__(self) -> None:
        weights = shares(self.versions, self.observed, self.left_behind)
        findings = {version.name: first_finding(version, self.observed, self.settings) for version in self.versions}
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "findings", findings)
        taken_by = self.taken_by.name if self.taken_by else ""
        object.__setattr__(self, "gate", Gate(self.observed, self._route_settled(), self.now, taken_by))
        granted = grants(self.versions)
        held = [version.at(replace(version.place, hold=self._hold(version, granted))) for version in self.versions]
        object.__setattr__(self, "versions", held)

    def _hold(self, version: Version, granted: Mapping[str, int]) -> Hold:
        in_full = version.name not in granted or self.weights[version.name] == version.weight_asked
        return counted(version, self.observed, gets_its_weight=self.gate.route_settled and in_full, now=self.now)

    def _route_settled(self) -> bool:
        if followed_traffic(self.versions).type == "None":
            return True
        route = self.observed.route
        as_wanted = self.route_body is not None and not self.route_differs and self.taken_by is None
        return route is not None and as_wanted and self.route_accepted

    @property
    def backends(self) -> dict[str, int]:
        return wanted_backends(self.versions, self.weights, self.observed)

    @property
    def sent(self) -> Mapping[str, int]:
        """Percent that each version gets: what is wanted, but where the route cannot be written what it says."""
        refused = any(problem.kind == ROUTE_KIND for problem in self.observed.problems)
        if not refused and self.taken_by is None:
            return self.weights
        written = self.observed.route.weights if self.observed.route else {}
        return {name: written.get(name, 0) for name in self.weights}

    @cached_property
    def taken_by(self) -> RivalRoute | None:
        """The route of another model that has the host names which the followed version asks for.

        Of two routes that both have them the older one is in its right, as the Gateway sees it; else the one that is there.
        """
        wanted, route = followed_traffic(self.versions).gateway_api, self.observed.route
        if wanted is None:
            return None
        gateway = (wanted.gateway.namespace, wanted.gateway.name)
        rivals = [rival for rival in self.observed.rivals if rival.competes(gateway, wanted.hostnames)]
        own = route.rival if route else None
        if own and gateway in own.gateways and own.hostnames == {name.lower() for name in wanted.hostnames}:
            rivals = [rival for rival in rivals if rival.age < own.age]
        return min(rivals, key=lambda rival: rival.age, default=None)

    @cached_property
    def route_body(self) -> Object | None:
        """The HTTPRoute as it should be; None where there should be none, or cannot be one yet."""
        live, backends = [version for version in self.versions if version.live], self.backends
        settings = self._route_settings()
        if not live or not backends or settings is None or not self.observed.gateway_api:
            return None
        theirs = self.observed.route.theirs if self.observed.route else {}
        return make_http_route(live, backends, settings, theirs, [version for version in self.versions if may_follow(version)])

    @property
    def lingering(self) -> tuple[str, ...]:
        """Those of the servers left behind that still get traffic."""
        return tuple(name for name in self.left_behind if self.weights.get(name))

    def is_done_with(self, left_behind: str) -> bool:
        """Whether no request goes to a server whose version was deleted."""
        return keep.gets_nothing(left_behind, self.observed, self.route_accepted)

    def _route_settings(self) -> GatewayAPI | None:
        """What the followed version asks for; while its host names are another model's, those that the route has already."""
        wanted = followed_traffic(self.versions).gateway_api
        if wanted is None or self.taken_by is None:
            return wanted
        return written_settings(self.observed.route, self.versions[0].namespace)

    @cached_property
    def route_differs(self) -> tuple[str, ...]:
        """Members of the live route's spec that belong to the operator and are not as it wants them."""
        if self.route_body is None or self.observed.route is None:
            return ()
        wanted, live = our_part(self.route_body["spec"]), self.observed.route.ours
        return tuple(f"spec.{member}" for member in wanted if wanted[member] != live[member])

    @property
    def route_edited(self) -> tuple[str, ...]:
        """Those of them that were as wanted when the operator wrote them, so that somebody else changed them."""
        route = self.observed.route
        if route is None or self.route_body is None or route.applied != route_mark(self.route_body):
            return ()
        return self.route_differs

    def edited_under(self, version: Version) -> tuple[str, ...]:
        """The same for the one version that says so: the one that the route follows."""
        followed = followed_version(self.versions)
        return self.route_edited if followed and followed.name == version.name else ()

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

    def image_of(self, version: Version) -> str:
        """The server image where the spec names none: the one of the day when the version was registered."""
        running = self.observed.deployments.get(version.name)
        unnoted = running.image if running and version.spec.serving.image is None else None
        return version.status.image or unnoted or self.settings.server_image

    def pods_wanted(self, version: Version) -> bool:
        return keep.pods_are_wanted(version, self.versions, self.weights, self.now)

    def idle_since(self, version: Version) -> datetime | None:
        return None if self.pods_wanted(version) else keep.idle_since(version, self.observed, self.route_accepted, self.now)
