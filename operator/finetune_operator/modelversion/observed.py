"""What exists for one model now: each fact is read once from an API object (plain JSON data), at the door. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from finetune_operator.core.conditions import moment
from finetune_operator.core.containment import DESIRED_ANNOTATION, owners_of
from finetune_operator.core.facts import ClaimFact, claim_fact, conditions_of, unschedulable
from finetune_operator.core.names import MANAGED_BY, MANAGED_BY_VALUE, MODEL_LABEL, VERSION_LABEL, Object
from finetune_operator.core.plan import ActionProblem

PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
"""Reason of a Deployment's Progressing=False. Source: kubernetes/pkg/controller/deployment/util."""


TEMPLATE_ANNOTATION = "finetune-operator.io/template"
"""On a Deployment: the pod template as it was made, and for what. Taking it away has the template made anew."""


SERVER = "server"
"""Name of the container that serves: others may put some beside it."""


@dataclass(frozen=True)
class NotedTemplate:
    """`asked`: digest of what the spec asked of the pods when the template was made."""

    asked: str
    template: Mapping[str, Any]


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
    available_since: datetime | None = None
    """Since when as many pods as wanted are available; None while fewer are."""
    unavailable_since: datetime | None = None
    """Since when fewer are; None where that is not so, or not told."""
    noted: NotedTemplate | None = None
    owners: frozenset[str] = frozenset()
    """Uids."""
    paused: bool = False
    held_back: bool = False
    """Paused while not every pod is of the present template."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    applied: str = ""
    """Digest of what this operator applied last."""

    @property
    def serving(self) -> bool:
        return self.available > 0


@dataclass(frozen=True)
class ChildFact:
    """A child of which little matters but that it is there."""

    name: str
    uid: str
    selector: Mapping[str, Any] = field(default_factory=dict)
    owners: frozenset[str] = frozenset()
    spec: Mapping[str, Any] = field(default_factory=dict)
    applied: str = ""
    """Digest of what this operator applied last."""


@dataclass(frozen=True)
class PodFact:
    """A server pod. `waiting` and `unschedulable` are sentences, empty where there is nothing to say."""

    name: str
    version: str
    """Name of the ModelVersion it serves."""
    ready: bool
    ready_since: datetime | None = None
    restarts: int = 0
    last_exit_code: int | None = None
    last_reason: str = ""
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
    accepted_since: datetime | None = None
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class RivalRoute:
    """The route of another model. `age` orders routes as a Gateway does: the smaller one wins what both match."""

    name: str
    gateways: frozenset[tuple[str, str]]
    """(namespace, name) each."""
    hostnames: frozenset[str]
    """In lower case; empty: any."""
    age: tuple[str, str]

    def competes(self, gateway: tuple[str, str], hostnames: Iterable[str]) -> bool:
        """Whether it claims a host name that is asked for. A more specific name is no rival of a wider one: the Gateway prefers it."""
        asked = {name.lower() for name in hostnames}
        return gateway in self.gateways and (bool(asked & self.hostnames) or asked == self.hostnames == set())


@dataclass(frozen=True)
class RouteFact:
    name: str
    uid: str
    generation: int
    weights: Mapping[str, int]
    """Weight by Service name."""
    steps: Mapping[str, int] = field(default_factory=dict)
    """Step index by version name, as this operator wrote it into the route's annotation; empty where it is missing."""
    contents: Mapping[str, str] = field(default_factory=dict)
    """Digest of what each of those versions serves, likewise."""
    parents: tuple[ParentFact, ...] = ()
    ours: Mapping[str, Any] = field(default_factory=dict)
    """Of its spec what belongs to the operator, without what the API server adds."""
    theirs: Mapping[str, Any] = field(default_factory=dict)
    """Members of our rule that belong to people: all but its matches and backendRefs."""
    applied: str = ""
    """Digest of `ours` as this operator applied it last."""
    rival: RivalRoute | None = None
    """The same route as another model's sees it."""

    def parent(self, gateway: str, namespace: str) -> ParentFact | None:
        return next((parent for parent in self.parents if (parent.gateway, parent.namespace) == (gateway, namespace)), None)


@dataclass(frozen=True)
class Observed:
    """Everything that plan_model may know beside the versions themselves. Deployments and Services are keyed by name."""

    deployments: Mapping[str, DeploymentFact] = field(default_factory=dict)
    services: Mapping[str, ChildFact] = field(default_factory=dict)
    disruption_budgets: Mapping[str, ChildFact] = field(default_factory=dict)
    pods: tuple[PodFact, ...] = ()
    autoscalers: Mapping[str, str] = field(default_factory=dict)
    """Name of the HorizontalPodAutoscaler by that of the Deployment that it scales."""
    route: RouteFact | None = None
    rivals: tuple[RivalRoute, ...] = ()
    gateway_api: bool = True
    """Whether the API server serves HTTPRoutes."""
    claims: Mapping[str, ClaimFact] = field(default_factory=dict)
    watched_since: datetime | None = None
    """Since when nothing that happens to the model has escaped a pass; None: always."""
    problems: tuple[ActionProblem, ...] = ()

    def left_behind(self, versions: Collection[str]) -> tuple[str, ...]:
        """Names of servers whose version is none of these: it was deleted, and the route, which owns them as well, keeps them."""
        if self.route is None:
            return ()
        children: list[DeploymentFact | ChildFact] = [*self.deployments.values(), *self.services.values()]
        return tuple(sorted({child.name for child in children if self.route.uid in child.owners} - set(versions)))


def observed_of(
    children: Mapping[str, Iterable[Object]],
    *,
    rivals: Iterable[RivalRoute | None] = (),
    claims: Iterable[Object] = (),
    gateway_api: bool = True,
    watched_since: datetime | None = None,
    problems: Iterable[ActionProblem] = (),
) -> Observed:
    """Facts of a model's objects. `children`, by kind: those with this model's label, and the autoscalers of its Deployments; `claims`:
    those that its artifacts name; `rivals`: `rival_route` of every route, what is this model's own among them is left out.
    """
    routes = list(children.get("HTTPRoute", ()))
    own_routes = [route_fact(route) for route in routes if _is_ours(route) and _is_the_route(route)]
    own = {_where(route) for route in routes}
    return Observed(
        deployments={fact.name: fact for fact in map(deployment_fact, filter(_is_ours, children.get("Deployment", ())))},
        services=_named(children.get("Service", ())),
        disruption_budgets=_named(children.get("PodDisruptionBudget", ())),
        pods=tuple(sorted(map(pod_fact, children.get("Pod", ())), key=lambda pod: pod.name)),
        autoscalers=dict(sorted(map(_scaled, children.get("HorizontalPodAutoscaler", ())))),
        route=own_routes[0] if own_routes else None,
        rivals=tuple(rival for rival in rivals if rival is not None and rival.name not in own),
        gateway_api=gateway_api,
        claims={fact.name: fact for fact in map(claim_fact, claims)},
        watched_since=watched_since,
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
    available_is = conditions.get("Available", {})
    since = moment(available_is.get("lastTransitionTime"))
    failure = conditions.get("ReplicaFailure", {})
    refused = failure.get("status") == "True"
    return DeploymentFact(
        name=metadata["name"],
        uid=metadata["uid"],
        image=_server(spec["template"]["spec"]["containers"]).get("image", ""),
        replicas=replicas,
        available=available,
        ready=seen and complete and available > 0,
        deadline_exceeded=progressing.get("message", "") if progressing.get("reason") == PROGRESS_DEADLINE_EXCEEDED else "",
        refused=failure.get("message", "") if refused else "",
        refused_since=moment(failure.get("lastTransitionTime")) if refused else None,
        available_since=since if available_is.get("status") == "True" else None,
        unavailable_since=since if available_is.get("status") == "False" else None,
        noted=_noted((metadata.get("annotations") or {}).get(TEMPLATE_ANNOTATION, "")),
        owners=frozenset(owners_of(deployment)),
        paused=bool(spec.get("paused")),
        held_back=bool(spec.get("paused")) and status.get("updatedReplicas", 0) < replicas,
        spec=spec,
        applied=_applied(metadata),
    )


def _noted(text: str) -> NotedTemplate | None:
    """None where there is no note, or a hand made it unreadable."""
    try:
        note = json.loads(text)
        return NotedTemplate(str(note["asked"]), {"metadata": note["template"]["metadata"], "spec": note["template"]["spec"]})
    except (ValueError, TypeError, KeyError):
        return None


def pod_fact(pod: Mapping[str, Any]) -> PodFact:
    labels, status = pod["metadata"].get("labels", {}), pod.get("status", {})
    conditions = conditions_of(status)
    container = _server(status.get("containerStatuses", []))
    state, last = container.get("state", {}), container.get("lastState", {})
    ended = state.get("terminated") or last.get("terminated") or {}
    waiting = state.get("waiting", {})
    words, since = unschedulable(conditions)
    is_ready = conditions.get("Ready", {})
    ready = is_ready.get("status") == "True" and "deletionTimestamp" not in pod["metadata"]
    return PodFact(
        name=pod["metadata"]["name"],
        version=f"{labels.get(MODEL_LABEL, '')}-v{labels.get(VERSION_LABEL, '')}",
        ready=ready,
        ready_since=moment(is_ready.get("lastTransitionTime")) if ready else None,
        restarts=container.get("restartCount", 0),
        last_exit_code=ended.get("exitCode"),
        last_reason=ended.get("reason", ""),
        last_message=ended.get("message", ""),
        waiting=": ".join(filter(None, (waiting.get("reason", ""), waiting.get("message", "")))),
        unschedulable=words,
        unschedulable_since=since,
    )


def route_fact(route: Mapping[str, Any]) -> RouteFact:
    """Of the rules only ours is read; a person may have put others beside it."""
    metadata, spec = route["metadata"], route["spec"]
    annotations = metadata.get("annotations") or {}
    rule = our_rule(spec)
    references = rule.get("backendRefs") or []
    return RouteFact(
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        weights={reference["name"]: reference.get("weight", 1) for reference in references},
        steps=parse_steps(annotations.get(STEPS_ANNOTATION, "")),
        contents=parse_notes(annotations.get(CONTENTS_ANNOTATION, "")),
        parents=tuple(_parent_fact(parent, metadata["namespace"]) for parent in route.get("status", {}).get("parents", [])),
        ours=our_part(spec),
        theirs={key: value for key, value in rule.items() if key not in _OUR_MEMBERS},
        applied=annotations.get(ROUTE_ANNOTATION, ""),
        rival=rival_route(route),
    )


ROUTE_ANNOTATION = "finetune-operator.io/route"
"""On the route: digest of our part of its spec as it was applied. Where it is the present one, whatever differs was changed by others."""

_OUR_MEMBERS = ("matches", "backendRefs")
_PARENT = ("namespace", "name", "sectionName", "port")
_MATCH = ("path", "headers", "queryParams", "method")
_BACKEND = ("namespace", "name", "port", "weight", "filters")
"""Members of list items by which a part of ours is compared: those of Gateway API v1 that have no default which we leave out."""


def our_rule(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rule that sends to the versions: the first that asks for nothing but a path; empty where there is none."""
    rules = spec.get("rules") or []
    plain = [rule for rule in rules if not any(set(match) - {"path"} for match in rule.get("matches") or [])]
    return _first([*plain, *rules])


def our_part(spec: Mapping[str, Any]) -> Object:
    """What of a route's spec belongs to the operator: its Gateways, its host names, and of each rule the matches and the backends."""
    return {
        "parentRefs": _only(spec.get("parentRefs"), _PARENT),
        "hostnames": list(spec.get("hostnames") or []),
        "rules": [
            {"matches": _only(rule.get("matches"), _MATCH), "backendRefs": _only(rule.get("backendRefs"), _BACKEND)}
            for rule in spec.get("rules") or []
        ],
    }


def _only(items: Sequence[Mapping[str, Any]] | None, members: Sequence[str]) -> list[Object]:
    return [{member: item[member] for member in members if item.get(member) not in (None, [], {})} for item in items or []]


def _is_the_route(route: Mapping[str, Any]) -> bool:
    """A copy that somebody made of it has its labels, but not its name."""
    metadata = route["metadata"]
    return bool(metadata["name"] == (metadata.get("labels") or {}).get(MODEL_LABEL))


def _where(route: Mapping[str, Any]) -> str:
    return f"{route['metadata']['namespace']}/{route['metadata']['name']}"


def rival_route(route: Mapping[str, Any]) -> RivalRoute | None:
    """A route as other models see it; None for one that no model follows."""
    if not (_is_ours(route) and _is_the_route(route)):
        return None
    metadata, spec = route["metadata"], route["spec"]
    return RivalRoute(
        name=_where(route),
        gateways=frozenset((ref.get("namespace", metadata["namespace"]), ref["name"]) for ref in spec.get("parentRefs") or []),
        hostnames=frozenset(name.lower() for name in spec.get("hostnames") or []),
        age=(metadata.get("creationTimestamp", ""), _where(route)),
    )


def _scaled(autoscaler: Mapping[str, Any]) -> tuple[str, str]:
    return autoscaler["spec"]["scaleTargetRef"]["name"], autoscaler["metadata"]["name"]


STEPS_ANNOTATION = "finetune-operator.io/steps"
"""On the route: `<version name>=<step index>` of each live version, so that versions restored without status find their place again."""


CONTENTS_ANNOTATION = "finetune-operator.io/contents"
"""On the route: `<version name>=<digest>` likewise, so that other files under a former name are not taken for it."""


def format_notes(notes: Mapping[str, object]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(notes.items()))


def parse_notes(text: str) -> dict[str, str]:
    """The inverse of format_notes; what cannot be read is left out (a person may have edited it)."""
    pairs = (part.partition("=") for part in text.split(","))
    return {name: value for name, _, value in pairs if name and value}


def parse_steps(text: str) -> dict[str, int]:
    return {name: int(index) for name, index in parse_notes(text).items() if index.isascii() and index.isdigit()}


def _parent_fact(parent: Mapping[str, Any], route_namespace: str) -> ParentFact:
    conditions = conditions_of(parent)
    both = [conditions.get(type, {}) for type in ("Accepted", "ResolvedRefs")]
    refused = _first([condition for condition in both if condition and condition["status"] != "True"])
    return ParentFact(
        gateway=parent["parentRef"]["name"],
        namespace=parent["parentRef"].get("namespace", route_namespace),
        generation=min(condition.get("observedGeneration", 0) for condition in both),
        accepted=all(condition.get("status") == "True" for condition in both),
        accepted_since=max((since for condition in both if (since := moment(condition.get("lastTransitionTime")))), default=None),
        reason=refused.get("reason", ""),
        message=refused.get("message", ""),
    )


def _server(containers: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return _first([*(container for container in containers if container.get("name") == SERVER), *containers])


def _applied(metadata: Mapping[str, Any]) -> str:
    return str((metadata.get("annotations") or {}).get(DESIRED_ANNOTATION, ""))


def _first(items: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return items[0] if items else {}


def _named(items: Iterable[Object]) -> dict[str, ChildFact]:
    return {fact.name: fact for fact in map(_child_fact, filter(_is_ours, items))}


def _child_fact(item: Object) -> ChildFact:
    metadata, spec = item["metadata"], item["spec"]
    return ChildFact(metadata["name"], metadata["uid"], spec.get("selector") or {}, frozenset(owners_of(item)), spec, _applied(metadata))


def _is_ours(item: Mapping[str, Any]) -> bool:
    """A child under deletion is as good as gone: it gets nothing and is waited for by the one that makes its successor."""
    metadata = item["metadata"]
    return metadata.get("labels", {}).get(MANAGED_BY) == MANAGED_BY_VALUE and "deletionTimestamp" not in metadata
