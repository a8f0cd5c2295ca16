"""Every condition and every reason of a ModelVersion, and what kstatus makes of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from finetune_api.status import timestamp
from finetune_operator.core.plan import ActionProblem

from tests.reasons import OPERATOR, reasons_named
from tests.unit.operator.modelversion.world import GATEWAY, World, in_production, model_version, refused_pod, server_pod
from tests.unit.operator.modelversion.world import canary as canary_world

Setup = Callable[[], tuple[World, str]]


def new() -> tuple[World, str]:
    world = World()
    world.add(model_version(1))
    return world, "bot-v1"


def production() -> tuple[World, str]:
    return in_production(1), "bot-v1"


def canary() -> tuple[World, str]:
    return canary_world(), "bot-v2"


def archived() -> tuple[World, str]:
    return in_production(1, 2), "bot-v1"


def then(start: Setup, change: Callable[[World, str], Any]) -> Setup:
    def setup() -> tuple[World, str]:
        world, name = start()
        change(world, name)
        return world, name

    return setup


def claim_is(**changes: Any) -> Callable[[World, str], Any]:
    def change(world: World, name: str) -> None:
        claim = world.claims["files-1"]
        claim["spec"]["accessModes"] = changes.get("access_modes", claim["spec"]["accessModes"])
        claim["status"]["phase"] = changes.get("phase", "Bound")
        claim["metadata"].update(changes.get("metadata", {}))

    return change


def pod(**status: Any) -> Callable[[World, str], Any]:
    return lambda world, name: (
        world.settle(),
        world.set_available(name, 0),
        world.pods.__setitem__(name, server_pod(name, ready=False, **status)),
    )


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"containerStatuses": [{"state": {"waiting": {"reason": reason, "message": message}}}]}


def problem(reason: Any, kind: str = "Deployment", name: str = "bot-v1") -> Callable[[World, str], Any]:
    return lambda world, _: world.problems.append(ActionProblem(kind, name, reason, "the API's words"))


def unschedulable(words: str) -> dict[str, Any]:
    return {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}]}


def hand_over_late(world: World, name: str) -> None:
    """The former version returns after its pods are gone."""
    world.tick(hours=1)
    world.settle()
    world.tick(seconds=30)
    world.settle()
    world.edit("bot-v2", abort=True)


def spec(**changes: Any) -> Callable[[World, str], Any]:
    return lambda world, name: world.versions[name]["spec"].update(changes)


def serving(**changes: Any) -> Callable[[World, str], Any]:
    return lambda world, name: world.versions[name]["spec"]["serving"].update(changes)


def artifact(**changes: Any) -> Callable[[World, str], Any]:
    return lambda world, name: world.versions[name]["spec"]["artifacts"][1].update(changes)


def rename(world: World, name: str) -> None:
    world.versions[name]["spec"]["version"] = 9


def reject(world: World, name: str) -> None:
    world.settle()
    world.pods[name] = refused_pod(name)


HEAVY = [{"name": "half", "stage": "Canary", "weight": 60, "hold": "1h"}, {"name": "production", "stage": "Production", "hold": "0s"}]


def crowded() -> tuple[World, str]:
    world, name = canary()
    world.edit(name, steps=HEAVY)
    world.add(model_version(3, steps=HEAVY))
    world.thrive()
    return world, "bot-v3"


def rival() -> dict[str, Any]:
    labels = {"app.kubernetes.io/managed-by": "finetune-operator", "finetune-operator.io/model": "chat"}
    return {
        "metadata": {"name": "chat", "namespace": "other", "labels": labels, "creationTimestamp": "2020-01-01T00:00:00Z"},
        "spec": {"parentRefs": [{"name": "gw", "namespace": "infra"}], "rules": []},
    }


UNSCHEDULABLE = unschedulable("0/3 nodes are available")

ROWS: list[tuple[Setup, str, str, str, str]] = [
    # state, condition, status, reason, words that its message has
    (production, "Ready", "True", "Serving", "1 of 1 pods answer"),
    (new, "Ready", "False", "PodsStarting", "no pod answers yet"),
    (then(production, lambda w, n: w.set_available(n, 0)), "Ready", "False", "PodsNotReady", "no pod answers any more"),
    (production, "Verified", "True", "DigestMatches", "Q8_0 was read with SHA-256 abab"),
    (new, "Verified", "Unknown", "NotReadYet", ""),
    (then(new, reject), "Verified", "False", "ArtifactRefused", "not served"),
    (then(canary, lambda w, n: w.pods.__setitem__(n, refused_pod(n))), "Stalled", "True", "ArtifactRefused", "not served"),
    (then(archived, hand_over_late), "Verified", "True", "DigestMatches", "Q8_0"),
    (production, "ArtifactsReachable", "True", "ClaimBound", "files-1"),
    (then(production, lambda w, n: w.claims.clear()), "ArtifactsReachable", "False", "ClaimMissing", "files-1 is not there"),
    (then(production, claim_is(phase="Lost")), "ArtifactsReachable", "False", "ClaimNotBound", "is Lost"),
    (then(production, claim_is(metadata={"deletionTimestamp": "x"})), "ArtifactsReachable", "False", "ClaimNotBound", "being deleted"),
    (then(new, claim_is(access_modes=["ReadWriteOncePod"])), "ArtifactsReachable", "False", "ClaimNotShareable", "ReadWriteMany"),
    (
        then(new, pod(**unschedulable("0/3 nodes are available: 3 node(s) didn't match pod affinity rules"))),
        "ArtifactsReachable",
        "False",
        "ClaimNotShareable",
        "one node, which takes no more (0/3 nodes",
    ),
    (
        then(then(new, claim_is(access_modes=["ReadWriteMany"])), pod(**UNSCHEDULABLE)),
        "Stalled",
        "True",
        "PodsCannotStart",
        "has no node: 0/3 nodes are available",
    ),
    (production, "TrafficAccepted", "True", "Accepted", "Gateway infra/gw"),
    (
        then(new, lambda w, n: w.edit(n, traffic={"type": "None"}, steps=[])),
        "TrafficAccepted",
        "True",
        "NotRouted",
        "through its Service",
    ),
    (new, "TrafficAccepted", "Unknown", "NoTrafficYet", "when its pods are ready"),
    (
        then(new, lambda w, n: (w.settle(), w.all_ready(), w.settle(), w.tick(seconds=11))),
        "TrafficAccepted",
        "Unknown",
        "WaitingForGateway",
        "infra/gw has not answered",
    ),
    (
        then(production, lambda w, n: (w.tick(minutes=1), w.accept_route("False", "NotAllowedByListeners"))),
        "TrafficAccepted",
        "False",
        "RouteNotAccepted",
        "infra/gw refuses HTTPRoute bot: NotAllowedByListeners",
    ),
    (then(new, lambda w, n: setattr(w, "gateway_api", False)), "TrafficAccepted", "False", "GatewayAPIMissing", "install"),
    (
        then(canary, lambda w, n: w.edit(n, traffic=GATEWAY | {"gatewayAPI": {"gateway": {"name": "x", "namespace": "y"}}})),
        "TrafficAccepted",
        "False",
        "DiffersFromProduction",
        "bot-v1",
    ),
    (
        then(new, lambda w, n: (w.settle(), w.all_ready(), w.settle(), w.tick(seconds=11), w.settle(), w.tick(seconds=60))),
        "TrafficAccepted",
        "False",
        "GatewaySilent",
        "nobody has answered for Gateway infra/gw",
    ),
    (
        then(new, lambda w, n: w.other_routes.append(rival())),
        "TrafficAccepted",
        "False",
        "HostnamesTaken",
        "other/chat of another model has every host name of Gateway infra/gw",
    ),
    (
        crowded,
        "Progressing",
        "True",
        "WeightTaken",
        "nothing would be left for production",
    ),
    (
        then(production, lambda w, n: w.children["HTTPRoute", "bot"]["spec"].update(hostnames=["x.example"])),
        "Reconciling",
        "True",
        "RoutePutRight",
        "spec.hostnames changed by others",
    ),
    (
        then(production, lambda w, n: w.children["Deployment", n]["spec"].update(replicas=5)),
        "Reconciling",
        "True",
        "ServerPutRight",
        "Deployment bot-v1: spec.replicas changed by others",
    ),
    (
        then(production, lambda w, n: (w.children["Deployment", n]["spec"].update(paused=True), w.children["Deployment", n].pop("status"))),
        "Stalled",
        "True",
        "DeploymentPaused",
        "kubectl rollout resume deployment/bot-v1",
    ),
    (new, "Progressing", "True", "Starting", "before the first step"),
    (canary, "Progressing", "True", "Holding", "step canary (1 of 3), held until 2026-01-01T00:"),
    (then(canary, lambda w, n: (w.tick(minutes=10), w.set_available(n, 0))), "Progressing", "True", "Waiting", "pods are not all ready"),
    (
        then(canary, lambda w, n: (w.tick(minutes=10), w.edit(n, approval="Manual"))),
        "Progressing",
        "False",
        "AwaitingApproval",
        "set spec.rollout.approvedStep to 0",
    ),
    (then(canary, lambda w, n: w.edit(n, paused=True)), "Progressing", "False", "Paused", "spec.rollout.paused"),
    (production, "Progressing", "False", "Completed", "in production"),
    (archived, "Progressing", "False", "OutOfService", "Archived"),
    (then(production, lambda w, n: w.edit(n, abort=True)), "Stalled", "True", "NobodyReturns", "no former version of bot can return"),
    (production, "ResourcesApplied", "True", "Applied", ""),
    (then(production, problem("NotOwned")), "ResourcesApplied", "False", "NotOwned", "Deployment bot-v1: the API's words"),
    (then(production, problem("Forbidden", "HTTPRoute", "bot")), "ResourcesApplied", "False", "Forbidden", "HTTPRoute bot"),
    (then(production, problem("Forbidden", "HTTPRoute", "bot")), "TrafficAccepted", "False", "Forbidden", "HTTPRoute bot: the API's words"),
    (then(production, problem("NotOwned", "HTTPRoute", "bot")), "Progressing", "False", "NotOwned", "the API's words"),
    (then(production, problem("Invalid")), "Stalled", "True", "Invalid", "the API's words"),
    (then(production, problem("QuotaExceeded")), "Stalled", "True", "QuotaExceeded", "the API's words"),
    (then(production, problem("ApiError")), "Reconciling", "True", "ApiError", "the API's words"),
    (then(production, problem("WaitingForPreviousOwner")), "Reconciling", "True", "WaitingForPreviousOwner", "the API's words"),
    (then(production, problem("NotOwned", name="bot-v7")), "ResourcesApplied", "True", "Applied", ""),
    (production, "Reconciling", "False", "Settled", ""),
    (then(archived, lambda w, n: w.set_available("bot-v2", 0)), "Reconciling", "True", "MovingTraffic", "answers until"),
    (
        then(production, lambda w, n: (serving(replicas=2)(w, n), w.settle(), w.set_available(n, 1))),
        "Reconciling",
        "True",
        "RollingOut",
        "not every pod",
    ),
    (then(canary, lambda w, n: (w.edit(n, abort=True), w.settle(), w.accept_route())), "Reconciling", "True", "Retiring", "pods stop"),
    (production, "Stalled", "False", "NotStalled", ""),
    (
        then(new, spec(rollout={"approval": "Perhaps"})),
        "Stalled",
        "True",
        "InvalidSpec",
        "spec.rollout.approval: Input should be 'Automatic' or 'Manual'",
    ),
    (
        then(production, lambda world, name: world.status(name).update(weight="all")),
        "Stalled",
        "True",
        "InvalidStatus",
        "status.weight: Input should be a valid integer",
    ),
    (
        then(new, serving(image="elsewhere/server:1")),
        "Stalled",
        "True",
        "ForbiddenByPolicy",
        "elsewhere/server:1 is not allowed in namespace team",
    ),
    (then(new, serving(artifact="F16")), "Stalled", "True", "ArtifactMissing", "F16 is not among the published GGUF files (Q8_0)"),
    (then(new, artifact(uri="pvc://files-1/a/../../etc/x")), "Stalled", "True", "UnsafePath", "spec.artifacts[Q8_0].uri"),
    (then(new, rename), "Stalled", "True", "DuplicateVersion", "metadata.name must be bot-v9"),
    (
        then(new, pod(**waiting("ImagePullBackOff", "no such image"))),
        "Stalled",
        "True",
        "PodsCannotStart",
        "pod bot-v1-pod: ImagePullBackOff: no such image",
    ),
    (
        then(new, pod(containerStatuses=[{"restartCount": 3, "lastState": {"terminated": {"exitCode": 137}}}])),
        "Stalled",
        "True",
        "PodsCannotStart",
        "ended 3 times, the last time with code 137",
    ),
    (then(new, pod(**waiting("ContainerCreating"))), "Stalled", "False", "NotStalled", ""),
]


@pytest.mark.parametrize(("setup", "type", "status", "reason", "words"), ROWS, ids=[f"{i}-{row[3]}" for i, row in enumerate(ROWS)])
def test_condition(setup: Setup, type: str, status: str, reason: str, words: str) -> None:
    world, name = setup()
    conditions = {condition["type"]: condition for condition in world.plan().statuses[name]["conditions"]}
    assert (conditions[type]["status"], conditions[type]["reason"]) == (status, reason)
    assert words in conditions[type]["message"]


def test_every_reason_has_a_row() -> None:
    assert {row[3] for row in ROWS} == reasons_named(
        OPERATOR / "modelversion", OPERATOR / "engine" / "actions.py", OPERATOR / "core" / "unreadable.py"
    )


@pytest.mark.parametrize("access_mode", ["ReadWriteOnce", "ReadWriteMany"])
def test_a_server_pod_that_just_waits_for_a_node_stalls_only_when_it_lasts(access_mode: str) -> None:
    world, name = then(new, claim_is(access_modes=[access_mode]))()
    condition = UNSCHEDULABLE["conditions"][0] | {"lastTransitionTime": timestamp(world.now)}
    pod(conditions=[condition])(world, name)
    world.settle()
    assert kstatus(world.status(name)["conditions"]) == "InProgress"
    assert any("0/3 nodes" in c["message"] for c in world.status(name)["conditions"])
    recheck_at = world.plan().recheck_at
    assert recheck_at is not None
    world.now = recheck_at
    world.settle()
    assert kstatus(world.status(name)["conditions"]) == "Failed"


def test_a_quota_that_another_pod_is_about_to_free_stalls_no_version() -> None:
    world, name = new()
    world.settle()
    words = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota: team"}
    world.children["Deployment", name]["status"] = {"conditions": [words | {"lastTransitionTime": timestamp(world.now)}]}
    world.settle()
    assert kstatus(world.status(name)["conditions"]) == "InProgress"
    assert any("exceeded quota" in c["message"] for c in world.status(name)["conditions"])
    recheck_at = world.plan().recheck_at
    assert recheck_at is not None
    world.now = recheck_at
    world.settle()
    assert kstatus(world.status(name)["conditions"]) == "Failed"


@pytest.mark.parametrize("gone", [claim_is(phase="Pending"), lambda world, name: world.claims.clear()])
def test_a_claim_that_is_not_bound_is_looked_at_again_without_an_event(gone: Callable[[World, str], Any]) -> None:
    """No watch tells of a user's claim, and its lookup is cached: what heals by itself must not be believed broken for ever."""
    world, _ = then(production, gone)()
    world.settle()
    recheck_at = world.plan().recheck_at
    assert recheck_at is not None
    assert recheck_at - world.now <= timedelta(seconds=world.settings.missing_recheck_s)


@pytest.mark.parametrize(
    "deployment_status",
    [
        {"conditions": [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "violates PodSecurity"}]},
        {
            "conditions": [
                {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "violates PodSecurity"}
            ]
        },
    ],
)
def test_words_of_the_deployment_controller_reach_the_version(deployment_status: dict[str, Any]) -> None:
    world, name = new()
    world.settle()
    world.children["Deployment", name]["status"] = deployment_status
    world.settle()
    assert world.condition(name, "Stalled") == ("True", "PodsCannotStart")
    assert any("violates PodSecurity" in condition["message"] for condition in world.status(name)["conditions"])


def kstatus(conditions: list[dict[str, Any]]) -> str:
    """Source: sigs.k8s.io/cli-utils/pkg/kstatus/status, checkGenericProperties and GetStatusForCustomResource."""
    state = {condition["type"]: condition["status"] for condition in conditions}
    if state.get("Reconciling") == "True":
        return "InProgress"
    if state.get("Stalled") == "True":
        return "Failed"
    return "Current" if state.get("Ready", "True") == "True" else "InProgress"


@pytest.mark.parametrize(
    ("setup", "verdict"),
    [
        (new, "InProgress"),
        (canary, "InProgress"),
        (production, "Current"),
        (archived, "Current"),
        (then(canary, lambda w, n: w.edit(n, paused=True)), "Current"),
        (then(canary, lambda w, n: (w.tick(minutes=10), w.edit(n, approval="Manual"))), "Current"),
        (then(new, reject), "Failed"),
        (then(production, lambda w, n: w.set_available(n, 0)), "InProgress"),
        (then(production, problem("Forbidden")), "Failed"),
        (then(new, lambda w, n: setattr(w, "gateway_api", False)), "Failed"),
        (then(canary, lambda w, n: (w.edit(n, abort=True), w.thrive(), w.tick(seconds=30), w.thrive())), "Current"),
    ],
)
def test_kstatus_verdict(setup: Setup, verdict: str) -> None:
    world, name = setup()
    world.settle()
    assert kstatus(world.status(name)["conditions"]) == verdict


@pytest.mark.parametrize("setup", [row[0] for row in ROWS])
def test_conditions_are_one_consistent_set(setup: Setup) -> None:
    world, _ = setup()
    for name, status in world.plan().statuses.items():
        conditions = status["conditions"]
        state = {condition["type"]: condition["status"] for condition in conditions}
        generation = world.versions[name]["metadata"]["generation"]
        assert len(state) == len(conditions)
        assert {condition["observedGeneration"] for condition in conditions} == {generation}
        assert status["observedGeneration"] == generation
        assert "True" not in (state["Reconciling"], state["Stalled"]) or state["Reconciling"] != state["Stalled"]
        if state.get("Ready") == "False":
            assert "True" in (state["Reconciling"], state["Stalled"])


def test_transition_time_moves_with_status_only() -> None:
    world, name = production()
    before = {c["type"]: c["lastTransitionTime"] for c in world.status(name)["conditions"]}
    world.tick(hours=1)
    world.edit(name, paused=True)
    world.settle()
    after = {c["type"]: c["lastTransitionTime"] for c in world.status(name)["conditions"]}
    assert after == before
    world.set_available(name, 0)
    world.settle()
    changed = {c["type"] for c in world.status(name)["conditions"] if c["lastTransitionTime"] != before[c["type"]]}
    assert changed == {"Ready", "Reconciling"}
