"""What is true of a version after a pass: one function per condition. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.modelversion import ConditionType, Stage
from finetune_api.outcome import Reason
from finetune_api.sections.rollout import GatewayAPI

from finetune_operator.core.conditions import Condition, Status, find
from finetune_operator.core.facts import SCHEDULING_GRACE, ClaimFact
from finetune_operator.core.names import Object
from finetune_operator.core.plan import PASSING_PROBLEMS, ActionProblem
from finetune_operator.modelversion.checks import Finding
from finetune_operator.modelversion.observed import Observed, PodFact, RouteFact
from finetune_operator.modelversion.policies.steps import Gate, Obstacle, describe
from finetune_operator.modelversion.policies.succession import abort_is_refused, refusal_of
from finetune_operator.modelversion.policies.traffic import answers, differs, followed_version
from finetune_operator.modelversion.versions import Version

GATEWAY_SILENCE = timedelta(seconds=60)
"""How long nobody answers for a Gateway until a person is called: it may not exist, and then nobody ever will."""

ROUTE_GRACE = timedelta(seconds=10)
"""How long after a step the Gateway's silence or refusal is no news: it needs well under a second, may not have seen a new Service
yet, and two status writes per version and step are saved."""

CANNOT_START = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError"})
"""Waiting reasons that do not pass by themselves. Source: kubernetes/pkg/kubelet/images/types.go, kuberuntime."""

CRASHES = 3
"""Ends of a server in one pod after which it is not expected to start by itself."""


@dataclass(frozen=True)
class Outlook:
    """What the plan worked out for all versions of the model, and this version's part of it."""

    versions: Sequence[Version]
    gate: Gate
    finding: Finding | None
    obstacle: Obstacle | None
    pods_wanted: bool
    weight: int
    put_right: tuple[tuple[Reason, str], ...] = ()
    """What others changed that is put right, to be told under this version: (reason, sentence) each."""
    added: tuple[str, ...] = ()
    """What others set in its Deployment and Service beside that, which is kept."""
    lingering: tuple[str, ...] = ()
    """Deleted versions whose servers still get traffic."""

    @property
    def observed(self) -> Observed:
        return self.gate.observed

    @property
    def meanwhile(self) -> str:
        """Who answers until this version does, where nobody would expect it; empty where that is not so."""
        return f"; until then {', '.join(self.lingering)} answers, though deleted" if self.lingering else ""


def conditions_of(version: Version, outlook: Outlook) -> list[Condition]:
    """All conditions, in the order of the status. Ready and TrafficAccepted are left out while the version is out of service."""
    verified, reachable = _verified(version, outlook.observed), _artifacts_reachable(version, outlook)
    applied = _resources_applied(version, outlook.observed)
    serving = [_ready(version, outlook), _traffic_accepted(version, outlook)] if version.in_service else []
    stalled = _stalled(version, outlook, [verified, reachable, applied, *serving])
    progressing = _progressing(version, outlook, serving)
    reconciling = _reconciling(version, outlook, serving, applied=applied, progressing=progressing) if stalled is None else None
    if stalled is not None and version.in_service:
        progressing = Condition(ConditionType.PROGRESSING, "False", stalled.reason, stalled.message)
    every = [
        *serving,
        verified,
        reachable,
        progressing,
        applied,
        reconciling or Condition(ConditionType.RECONCILING, "False", Reason.SETTLED if stalled is None else stalled.reason),
        stalled or Condition(ConditionType.STALLED, "False", Reason.NOT_STALLED),
    ]
    return [Condition(str(one.type), one.status, str(one.reason), one.message) for one in every]


def _ready(version: Version, outlook: Outlook) -> Condition:
    deployment = outlook.observed.deployments.get(version.name)
    if deployment and answers(version, outlook.observed):
        words = f"{deployment.available} of {deployment.replicas} pods answer"
        scaler = outlook.observed.autoscalers.get(version.name)
        scaled = f"; HorizontalPodAutoscaler {scaler} says how many, not spec.serving.replicas" if scaler else ""
        return Condition(ConditionType.READY, "True", Reason.SERVING, words + scaled + _by_others(version, outlook))
    trouble, beside = _pod_trouble(version, outlook.observed), outlook.meanwhile + _by_others(version, outlook)
    if _was(version, ConditionType.READY, Reason.SERVING) or _was(version, ConditionType.READY, Reason.PODS_NOT_READY):
        words = trouble or "no pod answers any more"
        return Condition(ConditionType.READY, "False", Reason.PODS_NOT_READY, words + beside)
    return Condition(ConditionType.READY, "False", Reason.PODS_STARTING, (trouble or "no pod answers yet") + beside)


_TOLD = 5


def _by_others(version: Version, outlook: Outlook) -> str:
    """What of its Deployment and Service is not the operator's, for whoever wonders at the pods."""
    deployment, added = outlook.observed.deployments.get(version.name), outlook.added
    more = f" and {len(added) - _TOLD} more" if len(added) > _TOLD else ""
    kept = f"; set by others and kept: {', '.join(added[:_TOLD])}{more}" if added else ""
    return kept + (f"; {_paused(version)}" if deployment and deployment.paused else "")


def _paused(version: Version) -> str:
    return (
        f"Deployment {version.name} is paused by others, so that no change of spec.serving reaches its pods: "
        f"kubectl rollout resume deployment/{version.name} -n {version.namespace}"
    )


def _verified(version: Version, observed: Observed) -> Condition:
    """Keeps its word while no pod runs: the files are immutable."""
    refusal = refusal_of(version, observed)
    if refusal:
        return Condition(ConditionType.VERIFIED, "False", Reason.ARTIFACT_REFUSED, refusal)
    artifact = version.artifact
    if artifact and any(pod.version == version.name and pod.ready for pod in observed.pods):
        return Condition(ConditionType.VERIFIED, "True", Reason.DIGEST_MATCHES, f"{artifact.name} was read with SHA-256 {artifact.sha256}")
    before = find(version.status.conditions, ConditionType.VERIFIED)
    if before:
        return Condition(ConditionType.VERIFIED, before.status, before.reason, before.message)
    return Condition(ConditionType.VERIFIED, "Unknown", Reason.NOT_READ_YET, "no server has read the artifact yet")


def _artifacts_reachable(version: Version, outlook: Outlook) -> Condition:
    artifact = version.artifact or version.spec.artifacts[0]
    name = artifact.location.claim
    claim = outlook.observed.claims.get(name)

    def no(reason: Reason, message: str) -> Condition:
        return Condition(ConditionType.ARTIFACTS_REACHABLE, "False", reason, message)

    if claim is None:
        return no(Reason.CLAIM_MISSING, f"PersistentVolumeClaim {name} is not there: restore it, its volume holds the artifact")
    if claim.deleting or claim.phase != "Bound":
        state = "being deleted" if claim.deleting else claim.phase
        return no(Reason.CLAIM_NOT_BOUND, f"PersistentVolumeClaim {name} is {state}: it must be bound to the volume of the artifact")
    barrier = _sharing_barrier(version, claim, outlook)
    if barrier:
        return no(Reason.CLAIM_NOT_SHAREABLE, barrier)
    return Condition(ConditionType.ARTIFACTS_REACHABLE, "True", Reason.CLAIM_BOUND, f"{artifact.name} lies on PersistentVolumeClaim {name}")


def is_one_node(claim: ClaimFact | None) -> bool:
    """Whether a claim can be mounted on one node at a time."""
    return claim is not None and "ReadWriteOnce" in claim.access_modes and not {"ReadWriteMany", "ReadOnlyMany"} & set(claim.access_modes)


def _sharing_barrier(version: Version, claim: ClaimFact, outlook: Outlook) -> str:
    """Why the claim's access mode keeps pods out, with the cure; empty where it does not.

    The scheduler names for each node the first thing that keeps the pod out, and asks for room before it looks at volumes: where no
    node is named for its volume or for the pods on it, the claim is not the cause.
    """
    cure = "publish to a claim with ReadWriteMany or ReadOnlyMany"
    if set(claim.access_modes) == {"ReadWriteOncePod"}:
        return f"PersistentVolumeClaim {claim.name} is ReadWriteOncePod: no second pod may read it, so none can replace another; {cure}"
    words = bound_to_a_node(version, claim, outlook.observed, outlook.gate.now)
    if words:
        return f"PersistentVolumeClaim {claim.name} is ReadWriteOnce: its pods must run on one node, which takes no more ({words}); {cure}"
    return ""


def bound_to_a_node(version: Version, claim: ClaimFact | None, observed: Observed, now: datetime) -> str:
    """The scheduler's words on why a pod has no node while its claim ties it to one; empty where that is not so."""
    kept_out = (pod.unschedulable for pod in observed.pods if pod.version == version.name and not _is_fresh(pod.unschedulable_since, now))
    words = next(filter(None, kept_out), "")
    return words if is_one_node(claim) and any(of_claim in words for of_claim in _OF_CLAIM) else ""


_OF_CLAIM = ("pod affinity rules", "volume node affinity", "PersistentVolume", "volume zone", "volume count")
"""Of the scheduler's words those that tell of volumes, or of the pods that use the same one.

Source: kubernetes/pkg/scheduler/framework/plugins, ErrReason… of interpodaffinity, volumebinding, volumerestrictions, volumezone.
"""


def _traffic_accepted(version: Version, outlook: Outlook) -> Condition:
    followed = followed_version(outlook.versions)
    settings = followed.spec.rollout.traffic.gateway_api if followed else None

    def condition(status: Status, reason: Reason, message: str) -> Condition:
        return Condition(ConditionType.TRAFFIC_ACCEPTED, status, reason, message)

    if followed and differs(version, outlook.versions):
        return condition(
            "False",
            Reason.DIFFERS_FROM_PRODUCTION,
            f"spec.rollout.traffic differs from that of {followed.name}, which the route follows: make them equal, or leave it without traffic",
        )
    if settings is None:
        return condition("True", Reason.NOT_ROUTED, "traffic is of type None: reached through its Service")
    if not outlook.observed.gateway_api:
        return condition("False", Reason.GATEWAY_API_MISSING, "the cluster serves no HTTPRoutes: install the Gateway API and a Gateway")
    if outlook.gate.taken_by:
        where = f"{settings.gateway.namespace}/{settings.gateway.name}"
        hosts = ", ".join(settings.hostnames) or "every host name"
        return condition(
            "False",
            Reason.HOSTNAMES_TAKEN,
            f"HTTPRoute {outlook.gate.taken_by} of another model has {hosts} of Gateway {where}: "
            "name others in spec.rollout.traffic.gatewayAPI.hostnames",
        )
    if version.place.stage == Stage.REGISTERED:
        return condition("Unknown", Reason.NO_TRAFFIC_YET, "it joins the route when its pods are ready" + outlook.meanwhile)
    return _gateway_answer(version, outlook, settings)


def _gateway_answer(version: Version, outlook: Outlook, settings: GatewayAPI) -> Condition:
    gate, route = outlook.gate, outlook.observed.route
    refused = _refused_route(version, outlook.observed)
    if refused:
        return Condition(ConditionType.TRAFFIC_ACCEPTED, "False", refused.reason, _said(refused, version))
    name = f"{settings.gateway.namespace}/{settings.gateway.name}"
    kept = f" ({', '.join(sorted(route.theirs))} set by others are kept)" if route and route.theirs else ""
    accepted = Condition(ConditionType.TRAFFIC_ACCEPTED, "True", Reason.ACCEPTED, f"Gateway {name} accepted the route{kept}")
    if gate.route_settled:
        return accepted
    settling = gate.now < grace_ends(outlook.versions, gate.now)
    if settling and _was(version, ConditionType.TRAFFIC_ACCEPTED, Reason.ACCEPTED):
        return accepted
    refusal = _refusal(route, settings)
    if refusal and not settling:
        return Condition(ConditionType.TRAFFIC_ACCEPTED, "False", Reason.ROUTE_NOT_ACCEPTED, refusal)
    if gate.now >= _silent_from(version, outlook.versions, gate.now):
        words = (
            f"nobody has answered for Gateway {name} and HTTPRoute {version.spec.model} as it is now: look whether the Gateway exists, "
            f"its listeners allow routes from namespace {version.namespace}, and its controller runs"
        )
        return Condition(ConditionType.TRAFFIC_ACCEPTED, "False", Reason.GATEWAY_SILENT, words)
    return Condition(
        ConditionType.TRAFFIC_ACCEPTED, "Unknown", Reason.WAITING_FOR_GATEWAY, f"Gateway {name} has not answered for the route as it is now"
    )


def _silent_from(version: Version, versions: Sequence[Version], now: datetime) -> datetime:
    """When the present silence of the Gateway is worth a person's time; a silence that was told of lasts until it ends."""
    before = find(version.status.conditions, ConditionType.TRAFFIC_ACCEPTED)
    if before and before.reason == Reason.GATEWAY_SILENT:
        return now
    waiting = before is not None and before.reason == Reason.WAITING_FOR_GATEWAY
    began = (before.last_transition_time or now) if before and waiting else now
    return max(began, grace_ends(versions, now) - ROUTE_GRACE) + GATEWAY_SILENCE


def silent_from(versions: Sequence[Version], now: datetime) -> datetime | None:
    """The next such moment of any version."""
    moments = [_silent_from(version, versions, now) for version in versions if version.live]
    return min((moment for moment in moments if moment > now), default=None)


def _refusal(route: RouteFact | None, settings: GatewayAPI) -> str:
    parent = route.parent(settings.gateway.name, settings.gateway.namespace) if route else None
    if route is None or parent is None or parent.accepted or parent.generation != route.generation:
        return ""
    return f"Gateway {parent.namespace}/{parent.gateway} refuses HTTPRoute {route.name}: {parent.reason} {parent.message}".rstrip()


def grace_ends(versions: Sequence[Version], now: datetime) -> datetime:
    """Until when a Gateway's silence is no news: some seconds after the last step of any version."""
    return max((version.place.since for version in versions if version.place.since), default=now - ROUTE_GRACE) + ROUTE_GRACE


def _progressing(version: Version, outlook: Outlook, serving: Sequence[Condition]) -> Condition:
    """`serving`: Ready and TrafficAccepted, none while it is out of service. In production nothing is completed before traffic can come."""
    if not version.in_service:
        return Condition(ConditionType.PROGRESSING, "False", Reason.OUT_OF_SERVICE, _out_of_service(version))
    if version.place.stage == Stage.PRODUCTION:
        accepted = serving[-1]
        if accepted.status != "True":
            return Condition(
                ConditionType.PROGRESSING, "True" if accepted.status == "Unknown" else "False", accepted.reason, accepted.message
            )
        return Condition(ConditionType.PROGRESSING, "False", Reason.COMPLETED, "in production")
    obstacle = outlook.obstacle
    if obstacle is None:
        return Condition(
            ConditionType.PROGRESSING, "True", Reason.WAITING, f"{describe(version)}; the next one is due{_more(version, outlook)}"
        )
    held = obstacle.reason in (Reason.PAUSED, Reason.AWAITING_APPROVAL)
    return Condition(ConditionType.PROGRESSING, "False" if held else "True", obstacle.reason, obstacle.message + _more(version, outlook))


def _more(version: Version, outlook: Outlook) -> str:
    """That it gets more than its step asks for; empty where it does not."""
    asked = version.weight_asked
    if not version.live or outlook.weight <= asked:
        return ""
    return f"; nothing is in production, so that it gets {outlook.weight} % instead of {asked}"


def _out_of_service(version: Version) -> str:
    place, words = version.place, f"{version.place.stage}: gets no traffic"
    if place.stage == Stage.ARCHIVED and version.spec.lifecycle == "Retired":
        return f"{words}; it goes on when spec.lifecycle is Active again"
    if version.may_return and place.successor:
        return f"{words}; returns if {place.successor.name} is aborted or deleted"
    return f"{words} any more; publish another version to serve it again"


def _resources_applied(version: Version, observed: Observed) -> Condition:
    problem = _problem_of(version, observed)
    if problem is None:
        return Condition(ConditionType.RESOURCES_APPLIED, "True", Reason.APPLIED)
    return Condition(ConditionType.RESOURCES_APPLIED, "False", problem.reason, _said(problem, version))


def _said(problem: ActionProblem, version: Version) -> str:
    """Its own words, with the object's name where they lack it, and the fields that they are about."""
    name = f"{problem.kind} {problem.name}"
    words = problem.message if problem.message.startswith(name) else f"{name}: {problem.message}"
    return words + _fields_of(problem.message, version)


def _problem_of(version: Version, observed: Observed) -> ActionProblem | None:
    """Children carry the version's name; the route the model's: the concern of every version in service, and of one that it sends to."""
    routed = version.in_service or bool(observed.route and observed.route.weights.get(version.name))
    mine = {version.name} | {artifact.location.claim for artifact in version.spec.artifacts}
    return next(
        (p for p in observed.problems if p.name in mine or (p.name == version.spec.model and p.kind == "HTTPRoute" and routed)),
        None,
    )


def _refused_route(version: Version, observed: Observed) -> ActionProblem | None:
    """Why the model's route could not be written as it is wanted."""
    return next((p for p in observed.problems if (p.kind, p.name) == ("HTTPRoute", version.spec.model)), None)


def _stalled(version: Version, outlook: Outlook, so_far: Sequence[Condition]) -> Condition | None:
    """What needs a person. None while things go on by themselves."""
    if not version.in_service:
        rejected = version.place.stage == Stage.REJECTED
        words = next(condition.message for condition in so_far if condition.type == ConditionType.VERIFIED)
        return Condition(ConditionType.STALLED, "True", Reason.ARTIFACT_REFUSED, words) if rejected else None
    if outlook.finding:
        return Condition(ConditionType.STALLED, "True", outlook.finding.reason, outlook.finding.message)
    if abort_is_refused(version, outlook.versions, outlook.gate.now):
        return Condition(ConditionType.STALLED, "True", Reason.NOBODY_RETURNS, _nobody_returns(version))
    for condition in so_far:
        passing = condition.type == ConditionType.READY or condition.reason in PASSING_PROBLEMS
        if condition.status == "False" and not passing:
            return Condition(ConditionType.STALLED, "True", condition.reason, condition.message)
    deployment = outlook.observed.deployments.get(version.name)
    if deployment and deployment.held_back:
        return Condition(ConditionType.STALLED, "True", Reason.DEPLOYMENT_PAUSED, _paused(version))
    trouble = _pod_trouble(version, outlook.observed, outlook.gate.now)
    if trouble and not outlook.gate.pods_ready(version):
        return Condition(ConditionType.STALLED, "True", Reason.PODS_CANNOT_START, trouble)
    return None


def _nobody_returns(version: Version) -> str:
    return (
        f"spec.rollout.abort: no former version of {version.spec.model} can return, so {version.name} stays in production until another "
        "version takes over; unset it, or publish another version; spec.lifecycle Retired takes the model out of service"
    )


def _pod_trouble(version: Version, observed: Observed, now: datetime | None = None) -> str:
    """Why the pods cannot start, in the cluster's words; empty where nothing keeps them. With `now`: what will not pass by itself."""
    deployment = observed.deployments.get(version.name)
    if deployment and deployment.refused and (now is None or not _is_fresh(deployment.refused_since, now)):
        return f"{deployment.refused}{_fields_of(deployment.refused, version)}"
    pods = (pod for pod in observed.pods if pod.version == version.name and not pod.ready)
    words = (_words(pod, version, told_at_once=now is None) for pod in pods if now is None or not _is_fresh(pod.unschedulable_since, now))
    return next(filter(None, words), deployment.deadline_exceeded if deployment else "")


def _is_fresh(since: datetime | None, now: datetime) -> bool:
    """Whether what keeps a pod out began so lately that it may pass by itself."""
    return since is not None and now < since + SCHEDULING_GRACE


def _words(pod: PodFact, version: Version, *, told_at_once: bool) -> str:
    if pod.unschedulable:
        return f"pod {pod.name} has no node: {pod.unschedulable}{_fields_of(pod.unschedulable, version)}"
    if pod.waiting.partition(":")[0] in CANNOT_START:
        return f"pod {pod.name}: {pod.waiting}"
    if pod.last_reason == "OOMKilled" and pod.restarts >= (1 if told_at_once else CRASHES):
        memory = version.spec.serving.effective_resources.memory
        return f"pod {pod.name} was killed {pod.restarts} times for more memory than it may have: raise spec.serving.resources.memory ({memory} now)"
    if pod.restarts >= CRASHES:
        return f"pod {pod.name} ended {pod.restarts} times, the last time with code {pod.last_exit_code} {pod.last_message}".rstrip()
    return ""


def _fields_of(words: str, version: Version) -> str:
    """The fields that the cluster's words are about, for a person who did not write them."""
    resources = version.spec.serving.effective_resources
    fields = {
        "Insufficient cpu": f"spec.serving.resources.cpu ({resources.cpu})",
        "Insufficient memory": f"spec.serving.resources.memory ({resources.memory})",
        f"Insufficient {resources.gpu_resource_name}": f"spec.serving.resources.gpus ({resources.gpus})",
        "untolerated taint": "spec.serving.tolerations",
        "node affinity/selector": "spec.serving.nodeSelector and affinity",
        "RuntimeClass": "spec.serving.runtimeClassName",
        "PriorityClass": "spec.serving.priorityClassName",
        "cpu limit of": "spec.serving.resources.cpu and cpuLimit",
        "memory usage per": "spec.serving.resources.memory",
        "cpu usage per": "spec.serving.resources.cpu and cpuLimit",
        "spec.hostnames": "spec.rollout.traffic.gatewayAPI.hostnames",
        "spec.parentRefs": "spec.rollout.traffic.gatewayAPI.gateway",
    }
    named = [field for sign, field in fields.items() if sign in words]
    return f" (see {', '.join(named)})" if named else ""


def _reconciling(
    version: Version, outlook: Outlook, serving: Sequence[Condition], *, applied: Condition, progressing: Condition
) -> Condition | None:
    """What goes on by itself towards what is wanted; None where all is as wanted or waits for a person's word."""

    def yes(reason: Reason | str, message: str) -> Condition:
        return Condition(ConditionType.RECONCILING, "True", reason, message)

    if applied.status == "False":
        return yes(applied.reason, applied.message)
    if not version.in_service:
        return _leaving(version, outlook)
    if outlook.put_right:
        return yes(*outlook.put_right[0])
    for condition in serving:
        if condition.status != "True" and condition.reason != Reason.NO_TRAFFIC_YET:
            reason = Reason.MOVING_TRAFFIC if condition.type == ConditionType.TRAFFIC_ACCEPTED else condition.reason
            return yes(reason, condition.message)
    if not outlook.gate.pods_ready(version):
        return yes(Reason.ROLLING_OUT, "not every pod is of the present template and ready")
    return yes(progressing.reason, progressing.message) if progressing.status == "True" else None


def _leaving(version: Version, outlook: Outlook) -> Condition | None:
    if outlook.weight:
        return Condition(ConditionType.RECONCILING, "True", Reason.MOVING_TRAFFIC, "answers until the pods of the version in production do")
    if outlook.pods_wanted or version.place.idle_since is None:
        return None
    return Condition(ConditionType.RECONCILING, "True", Reason.RETIRING, "its pods stop once no request can be under way")


def put_right(version: Version, edited: Sequence[str]) -> str:
    """What a person reads who changed the route by hand."""
    return (
        f"HTTPRoute {version.spec.model}: {', '.join(edited)} changed by others, put right as spec.rollout says; of its rule filters, "
        "timeouts and the like may be set, and rules of your own belong into another HTTPRoute"
    )


def server_put_right(body: Object, edited: Sequence[str]) -> str:
    """The same of a version's own objects."""
    return (
        f"{body['kind']} {body['metadata']['name']}: {', '.join(edited[:_TOLD])} changed by others, put right as spec.serving says; "
        "change it there"
    )


def newly_stalled(version: Version, conditions: Sequence[Condition]) -> Condition | None:
    """The Stalled condition where it just became true or changed its reason: worth an Event."""
    stalled = next(condition for condition in conditions if condition.type == ConditionType.STALLED)
    return stalled if stalled.status == "True" and not _was(version, ConditionType.STALLED, stalled.reason) else None


def _was(version: Version, type: ConditionType, reason: Reason | str) -> bool:
    condition = find(version.status.conditions, type)
    return condition is not None and condition.reason == reason
