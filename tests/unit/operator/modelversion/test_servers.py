"""The servers of a version: what restarts them, who says how many there are, and which field is to blame."""

from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_api.outcome import Reason
from finetune_operator.core.names import Object
from finetune_operator.core.plan import ActionProblem
from finetune_operator.modelversion.observed import TEMPLATE_ANNOTATION
from finetune_operator.modelversion.resources import deployment

from tests.unit.operator.modelversion.world import World, claim, in_production, model_version, server_pod


def serving(world: World, name: str, **changes: Any) -> None:
    """Sets members of spec.serving; None takes one away."""
    members = world.versions[name]["spec"]["serving"]
    members.update(changes)
    for key in [key for key, value in members.items() if value is None]:
        del members[key]
    world.versions[name]["metadata"]["generation"] += 1


def without_image(number: int = 1) -> World:
    world = World()
    version = model_version(number)
    del version["spec"]["serving"]["image"]
    world.add(version)
    world.thrive()
    return world


def template(world: World, name: str = "bot-v1") -> Object:
    made: Object = world.children["Deployment", name]["spec"]["template"]
    return made


def image(world: World) -> str:
    return str(template(world)["spec"]["containers"][0]["image"])


# ------------------------------------------------------------------------------------------------------------------- image


def test_an_image_that_is_taken_out_of_the_spec_is_taken_off_the_servers() -> None:
    world = without_image()
    before = image(world)
    serving(world, "bot-v1", image="finetune-operator/server:not-there")
    world.settle()
    assert image(world) == "finetune-operator/server:not-there"
    serving(world, "bot-v1", image=None)
    world.settle()
    assert image(world) == before == world.status("bot-v1")["image"]


def test_it_goes_back_to_the_charts_image_of_its_registration_after_an_upgrade_too() -> None:
    world = without_image()
    serving(world, "bot-v1", image="finetune-operator/server:other")
    world.settle()
    world.settings = world.settings.model_copy(update={"server_image": "finetune-operator/server:next"})
    serving(world, "bot-v1", image=None)
    world.settle()
    assert image(world) == "finetune-operator/server:dev"


# ----------------------------------------------------------------------------------------------------------------- template


def upgrade(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """A release whose servers drain longer, pulled always, with another image."""
    monkeypatch.setattr(deployment, "PRE_STOP_S", 99)
    settings = {"image_pull_policy": "Always", "server_image": "finetune-operator/server:next"}
    world.settings = world.settings.model_copy(update=settings)


def test_an_upgrade_restarts_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    world = in_production(1)
    before = template(world.copy())
    upgrade(monkeypatch, world)
    assert world.settle() == 0
    world.children["Deployment", "bot-v1"]["spec"]["template"]["spec"]["containers"][0]["image"] = "by-hand"
    world.settle()
    assert template(world) == before, "an edit by hand is still put right, to what it was"
    world.add(model_version(2))
    world.settle()
    assert template(world, "bot-v2")["spec"]["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"] == 99


@pytest.mark.parametrize("change", [{"replicas": 3}, {"keepPrevious": "5m"}])
def test_what_is_not_of_the_pods_restarts_none(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    world = in_production(1)
    before = template(world.copy())
    upgrade(monkeypatch, world)
    serving(world, "bot-v1", **change)
    world.settle()
    assert template(world) == before


def test_an_edit_of_serving_has_the_template_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    world = in_production(1)
    upgrade(monkeypatch, world)
    serving(world, "bot-v1", resources={"memory": "2Gi"})
    world.settle()
    container = template(world)["spec"]["containers"][0]
    assert container["resources"]["limits"]["memory"] == "2Gi"
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] == 99


@pytest.mark.parametrize("note", [None, "nonsense", "{}", '{"asked": "x", "template": []}'])
def test_without_a_note_the_template_is_made_anew(monkeypatch: pytest.MonkeyPatch, note: str | None) -> None:
    world = in_production(1)
    upgrade(monkeypatch, world)
    annotations = world.children["Deployment", "bot-v1"]["metadata"]["annotations"]
    annotations.pop(TEMPLATE_ANNOTATION)
    if note:
        annotations[TEMPLATE_ANNOTATION] = note
    world.settle()
    assert template(world)["spec"]["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"] == 99
    assert json.loads(world.children["Deployment", "bot-v1"]["metadata"]["annotations"][TEMPLATE_ANNOTATION])["template"] == template(world)


def test_a_claim_that_cannot_be_read_for_a_moment_restarts_no_server() -> None:
    world = in_production(1)
    before = template(world.copy())
    world.claims.clear()
    world.settle()
    assert template(world) == before


# ----------------------------------------------------------------------------------------------------------------- replicas


def autoscaler(name: str = "scale") -> Object:
    return {"metadata": {"name": name, "namespace": "team"}, "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "bot-v1"}}}


def test_replicas_yield_to_an_autoscaler_and_status_says_who_sets_them() -> None:
    world = in_production(1)
    world.autoscalers.append(autoscaler())
    world.settle()
    for replicas in (2, 3, 2):
        world.children["Deployment", "bot-v1"]["spec"]["replicas"] = replicas
        world.all_ready()
        world.settle()
        assert world.children["Deployment", "bot-v1"]["spec"]["replicas"] == replicas
    ready = next(c for c in world.status("bot-v1")["conditions"] if c["type"] == "Ready")
    assert ready["message"].startswith("2 of 2 pods answer; HorizontalPodAutoscaler scale says how many")
    serving(world, "bot-v1", resources={"memory": "2Gi"}, replicas=7)
    world.settle()
    assert world.children["Deployment", "bot-v1"]["spec"]["replicas"] == 2
    world.autoscalers.clear()
    world.settle()
    assert world.children["Deployment", "bot-v1"]["spec"]["replicas"] == 7


def test_a_label_that_somebody_put_into_the_services_selector_is_taken_out() -> None:
    world = in_production(1)
    selector = world.children["Service", "bot-v1"]["spec"]["selector"]
    before = dict(selector)
    selector["another"] = "label"
    world.settle()
    assert world.children["Service", "bot-v1"]["spec"]["selector"] == before


def test_a_drain_takes_pods_one_by_one_where_there_are_several() -> None:
    world = in_production(1)
    assert ("PodDisruptionBudget", "bot-v1") not in world.children
    serving(world, "bot-v1", replicas=2)
    world.thrive()
    budget = world.children["PodDisruptionBudget", "bot-v1"]
    assert budget["spec"]["maxUnavailable"] == 1
    assert budget["spec"]["selector"] == world.children["Deployment", "bot-v1"]["spec"]["selector"]
    world.versions["bot-v1"]["spec"]["lifecycle"] = "Retired"
    world.thrive()
    world.tick(seconds=30)
    world.thrive()
    assert world.children == {}


def test_the_drain_of_the_one_node_that_a_claim_allows_comes_to_an_end() -> None:
    """A pod that was evicted cannot run elsewhere while the other is here: a budget would keep that one here for ever."""
    world = in_production(1)
    serving(world, "bot-v1", replicas=2)
    world.thrive()
    words = "0/2 nodes are available: 1 node(s) were unschedulable, 1 node(s) didn't match pod affinity rules."
    pod = {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}]}
    world.pods["evicted"] = server_pod("bot-v1", ready=False, **pod)
    world.settle()
    assert ("PodDisruptionBudget", "bot-v1") not in world.children
    del world.pods["evicted"]
    world.settle()
    assert ("PodDisruptionBudget", "bot-v1") in world.children


def test_servers_that_something_scales_have_a_budget_too() -> None:
    world = in_production(1)
    world.autoscalers.append(autoscaler())
    world.settle()
    assert ("PodDisruptionBudget", "bot-v1") in world.children


# ------------------------------------------------------------------------------------------------------- the field that is to blame


def unschedulable(words: str, access_mode: str = "ReadWriteOnce", **spec: Any) -> World:
    world = World()
    world.add(model_version(1))
    world.versions["bot-v1"]["spec"]["serving"].update(spec)
    world.claims["files-1"] = claim("files-1", access_modes=[access_mode])
    world.settle()
    pod = {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}]}
    world.pods["bot-v1"] = server_pod("bot-v1", ready=False, **pod)
    world.settle()
    return world


@pytest.mark.parametrize("access_mode", ["ReadWriteOnce", "ReadWriteMany"])
@pytest.mark.parametrize(
    ("words", "field", "spec"),
    [
        ("1 node(s) had untolerated taint {a: b}, 2 Insufficient cpu", "spec.serving.resources.cpu (64)", {"resources": {"cpu": "64"}}),
        ("3 Insufficient memory", "spec.serving.resources.memory (900Gi)", {"resources": {"memory": "900Gi"}}),
        ("3 Insufficient nvidia.com/gpu", "spec.serving.resources.gpus (8)", {"resources": {"gpus": 8}}),
        ("3 Insufficient amd.com/gpu", "spec.serving.resources.gpus (1)", {"resources": {"gpus": 1, "gpuResourceName": "amd.com/gpu"}}),
        ("3 node(s) had untolerated taint {team: ml}", "spec.serving.tolerations", {}),
        ("3 node(s) didn't match Pod's node affinity/selector", "spec.serving.nodeSelector", {}),
    ],
)
def test_a_server_too_large_for_every_node_is_told_by_its_field(words: str, field: str, spec: dict[str, Any], access_mode: str) -> None:
    world = unschedulable(f"0/3 nodes are available: {words}. preemption: 0/3 nodes are available", access_mode, **spec)
    assert world.condition("bot-v1", "ArtifactsReachable") == ("True", "ClaimBound")
    assert world.condition("bot-v1", "Stalled") == ("True", "PodsCannotStart")
    told = next(c["message"] for c in world.status("bot-v1")["conditions"] if c["type"] == "Stalled")
    assert words in told
    assert field in told


@pytest.mark.parametrize(
    "words",
    [
        "1 Insufficient cpu, 2 node(s) didn't match pod affinity rules",
        "3 node(s) had volume node affinity conflict",
        "1 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod",
    ],
)
def test_a_volume_that_keeps_pods_on_one_node_is_told_as_that(words: str) -> None:
    world = unschedulable(f"0/3 nodes are available: {words}.")
    assert world.condition("bot-v1", "Stalled") == ("True", "ClaimNotShareable")


@pytest.mark.parametrize(("restarts", "stalled"), [(1, "False"), (3, "True")])
def test_a_kill_for_memory_names_the_field(restarts: int, stalled: str) -> None:
    world = World()
    world.add(model_version(1))
    world.settle()
    ended = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    status = {"containerStatuses": [{"restartCount": restarts, "state": {}, "lastState": ended}]}
    world.pods["bot-v1"] = server_pod("bot-v1", ready=False, **status)
    world.settle()
    told = {c["type"]: c for c in world.status("bot-v1")["conditions"]}
    assert "raise spec.serving.resources.memory (1Gi now)" in told["Ready"]["message"]
    assert told["Stalled"]["status"] == stalled


@pytest.mark.parametrize(
    ("kind", "words", "field"),
    [
        (
            "Deployment",
            'requests: Invalid value: "2": must be less than or equal to cpu limit of 1',
            "spec.serving.resources.cpu and cpuLimit",
        ),
        ("HTTPRoute", "spec.hostnames[0]: Invalid value", "spec.rollout.traffic.gatewayAPI.hostnames"),
    ],
)
def test_what_the_api_server_refuses_names_the_field_of_the_version(kind: str, words: str, field: str) -> None:
    world = in_production(1)
    world.problems = [ActionProblem(kind, "bot-v1" if kind == "Deployment" else "bot", Reason.INVALID, words)]
    world.settle()
    told = next(c["message"] for c in world.status("bot-v1")["conditions"] if c["type"] == "ResourcesApplied")
    assert words in told
    assert field in told
