"""What exists for one model now: each fact is read once from an API object (plain JSON data), at the door. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from finetune_operator.core.conditions import moment
from finetune_operator.core.facts import ClaimFact, claim_fact, conditions_of, unschedulable
from finetune_operator.core.names import MANAGED_BY, MANAGED_BY_VALUE, MODEL_LABEL, VERSION_LABEL, Object
from finetune_operator.core.plan import ActionProblem

PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
"""Reason of a Deployment's Progressing=False. Source: kubernetes/pkg/controller/deployment/util."""


@dataclass(frozen=True)
class DeploymentFact:
    """`ready`: every replica is of this generation and available. `serving`: at least one pod answers, of whichever generation."""

    name: str
    uid: str
    image: str
    replicas: int
    available: int
    ready: bool
    deadline_exceeded: str = ""
    """The Deployment controller's words once a rollout is past its deadline, else empty."""
    refused: str = ""
    """Why pods cannot be created (quota, Pod Security), in the API's words, else empty."""
    refused_since: datetime | None = None

    @property
    def serving(self) -> bool:
        return self.available > 0


@dataclass(frozen=True)
class ServiceFact:
    name: str
    uid: str


@dataclass(frozen=True)
class PodFact:
    """A server pod. `waiting` and `unschedulable` are sentences, empty where there is nothing to say."""

    name: str
    version: str
    """Name of the ModelVersion it serves."""
    ready: bool
    restarts: int = 0
    last_exit_code: int | None = None
    last_message: str = ""
    waiting: str = ""
    unschedulable: str = ""
    unschedulable_since: datetime | None = None


@dataclass(frozen=True)
class ParentFact:
    """What one Gateway says of the route; `generation` is the route's generation that it speaks of."""

    gateway: str
    namespace: str
    generation: int
    accepted: bool
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class RouteFact:
    name: str
    uid: str
    generation: int
    weights: Mapping[str, int]
    """Weight by Service name."""
    steps: Mapping[str, int] = field(default_factory=dict)
    """Step index by version name, as this operator wrote it into the route's annotation; empty where it is missing."""
    parents: tuple[ParentFact, ...] = ()

    def parent(self, gateway: str, namespace: str) -> ParentFact | None:
        return next((parent for parent in self.parents if (parent.gateway, parent.namespace) == (gateway, namespace)), None)


@dataclass(frozen=True)
class Observed:
    """Everything that plan_model may know beside the versions themselves. Deployments and Services are keyed by name."""

    deployments: Mapping[str, DeploymentFact] = field(default_factory=dict)
    services: Mapping[str, ServiceFact] = field(default_factory=dict)
    pods: tuple[PodFact, ...] = ()
    route: RouteFact | None = None
    gateway_api: bool = True
    """Whether the API server serves HTTPRoutes."""
    claims: Mapping[str, ClaimFact] = field(default_factory=dict)
    problems: tuple[ActionProblem, ...] = ()


def observed_of(
    *,
    deployments: Iterable[Object] = (),
    services: Iterable[Object] = (),
    pods: Iterable[Object] = (),
    routes: Iterable[Object] = (),
    claims: Iterable[Object] = (),
    gateway_api: bool = True,
    problems: Iterable[ActionProblem] = (),
) -> Observed:
    """Facts of a model's objects. Children are those with this model's label; `claims` those that its artifacts name."""
    own_routes = [route_fact(route) for route in routes if _is_ours(route)]
    return Observed(
        deployments={fact.name: fact for fact in map(deployment_fact, filter(_is_ours, deployments))},
        services={item["metadata"]["name"]: _service_fact(item) for item in services if _is_ours(item)},
        pods=tuple(sorted(map(pod_fact, pods), key=lambda pod: pod.name)),
        route=own_routes[0] if own_routes else None,
        gateway_api=gateway_api,
        claims={fact.name: fact for fact in map(claim_fact, claims)},
        problems=tuple(problems),
    )


def deployment_fact(deployment: Mapping[str, Any]) -> DeploymentFact:
    metadata, spec, status = deployment["metadata"], deployment["spec"], deployment.get("status", {})
    replicas = spec.get("replicas", 1)
    available = status.get("availableReplicas", 0)
    seen = status.get("observedGeneration", 0) >= metadata.get("generation", 0)
    complete = status.get("updatedReplicas", 0) == status.get("replicas", 0) == available == replicas
    conditions = conditions_of(status)
    progressing = conditions.get("Progressing", {})
    failure = conditions.get("ReplicaFailure", {})
    refused = failure.get("status") == "True"
    return DeploymentFact(
        name=metadata["name"],
        uid=metadata["uid"],
        image=spec["template"]["spec"]["containers"][0].get("image", ""),
        replicas=replicas,
        available=available,
        ready=seen and complete and available > 0,
        deadline_exceeded=progressing.get("message", "") if progressing.get("reason") == PROGRESS_DEADLINE_EXCEEDED else "",
        refused=failure.get("message", "") if refused else "",
        refused_since=moment(failure.get("lastTransitionTime")) if refused else None,
    )


def pod_fact(pod: Mapping[str, Any]) -> PodFact:
    labels, status = pod["metadata"].get("labels", {}), pod.get("status", {})
    conditions = conditions_of(status)
    container = _first(status.get("containerStatuses", []))
    state, last = container.get("state", {}), container.get("lastState", {})
    ended = state.get("terminated") or last.get("terminated") or {}
    waiting = state.get("waiting", {})
    words, since = unschedulable(conditions)
    return PodFact(
        name=pod["metadata"]["name"],
        version=f"{labels.get(MODEL_LABEL, '')}-v{labels.get(VERSION_LABEL, '')}",
        ready=conditions.get("Ready", {}).get("status") == "True" and "deletionTimestamp" not in pod["metadata"],
        restarts=container.get("restartCount", 0),
        last_exit_code=ended.get("exitCode"),
        last_message=ended.get("message", ""),
        waiting=": ".join(filter(None, (waiting.get("reason", ""), waiting.get("message", "")))),
        unschedulable=words,
        unschedulable_since=since,
    )


def route_fact(route: Mapping[str, Any]) -> RouteFact:
    """Only the first rule is read: the operator writes one."""
    metadata, spec = route["metadata"], route["spec"]
    references = _first(spec.get("rules", [])).get("backendRefs", [])
    return RouteFact(
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        weights={reference["name"]: reference.get("weight", 1) for reference in references},
        steps=parse_steps(metadata.get("annotations", {}).get(STEPS_ANNOTATION, "")),
        parents=tuple(_parent_fact(parent, metadata["namespace"]) for parent in route.get("status", {}).get("parents", [])),
    )


STEPS_ANNOTATION = "finetune-operator.io/steps"
"""On the route: `<version name>=<step index>` of each live version, so that versions restored without status find their place again."""


def format_steps(steps: Mapping[str, int]) -> str:
    return ",".join(f"{name}={index}" for name, index in sorted(steps.items()))


def parse_steps(text: str) -> dict[str, int]:
    """The inverse of format_steps; what cannot be read is left out (a person may have edited it)."""
    pairs = (part.partition("=") for part in text.split(","))
    return {name: int(index) for name, _, index in pairs if name and index.isascii() and index.isdigit()}


def _parent_fact(parent: Mapping[str, Any], route_namespace: str) -> ParentFact:
    conditions = conditions_of(parent)
    both = [conditions.get(type, {}) for type in ("Accepted", "ResolvedRefs")]
    refused = _first([condition for condition in both if condition and condition["status"] != "True"])
    return ParentFact(
        gateway=parent["parentRef"]["name"],
        namespace=parent["parentRef"].get("namespace", route_namespace),
        generation=min(condition.get("observedGeneration", 0) for condition in both),
        accepted=all(condition.get("status") == "True" for condition in both),
        reason=refused.get("reason", ""),
        message=refused.get("message", ""),
    )


def _first(items: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return items[0] if items else {}


def _service_fact(service: Mapping[str, Any]) -> ServiceFact:
    return ServiceFact(name=service["metadata"]["name"], uid=service["metadata"]["uid"])


def _is_ours(item: Mapping[str, Any]) -> bool:
    """A child under deletion is as good as gone: it gets nothing and is waited for by the one that makes its successor."""
    metadata = item["metadata"]
    return metadata.get("labels", {}).get(MANAGED_BY) == MANAGED_BY_VALUE and "deletionTimestamp" not in metadata
