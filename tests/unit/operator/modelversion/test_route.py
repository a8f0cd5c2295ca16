"""What of the HTTPRoute belongs to people and what to the operator, and who gets a host name that two models want."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from finetune_operator.core.names import Object
from finetune_operator.core.plan import ActionProblem, Apply

from tests.unit.operator.modelversion.world import GATEWAY, STEPS, World, canary, in_production, model_version

FILTER = {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x", "value": "y"}]}}


def route(world: World) -> Object:
    return world.children["HTTPRoute", "bot"]


def edited(world: World, change: Callable[[Object], Any]) -> None:
    change(route(world)["spec"])
    route(world)["metadata"]["generation"] += 1


def rule(world: World) -> Object:
    rules: list[Object] = route(world)["spec"]["rules"]
    assert len(rules) == 1
    return rules[0]


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("filters", [FILTER]),
        ("timeouts", {"request": "30s"}),
        ("retry", {"attempts": 2}),
        ("sessionPersistence", {"sessionName": "s"}),
        ("name", "mine"),
    ],
)
def test_what_people_set_in_the_rule_is_kept_over_every_step(member: str, value: Any) -> None:
    world = canary()
    edited(world, lambda spec: spec["rules"][0].update({member: value}))
    world.thrive()
    world.tick(minutes=11)
    world.thrive()
    assert world.routed() == {"bot-v1": 90, "bot-v2": 10}
    assert rule(world)[member] == value
    told = next(c for c in world.status("bot-v2")["conditions"] if c["type"] == "TrafficAccepted")
    assert f"({member} set by others are kept)" in told["message"]
    edited(world, lambda spec: spec["rules"][0].pop(member))
    world.thrive()
    assert member not in rule(world)


HAND: dict[str, Callable[[Object], Any]] = {
    "spec.hostnames": lambda spec: spec.update(hostnames=["elsewhere.example"]),
    "spec.parentRefs": lambda spec: spec["parentRefs"][0].update(sectionName="https"),
    "another gateway": lambda spec: spec["parentRefs"].append({"name": "other", "namespace": "infra"}),
    "headers": lambda spec: spec["rules"][0]["matches"][0].update(headers=[{"name": "x", "value": "y"}]),
    "another match": lambda spec: spec["rules"][0]["matches"].append({"path": {"type": "PathPrefix", "value": "/slots"}}),
    "no match": lambda spec: spec["rules"][0].pop("matches"),
    "backend's filters": lambda spec: spec["rules"][0]["backendRefs"][0].update(filters=[FILTER]),
    "another backend": lambda spec: spec["rules"][0]["backendRefs"].append({"name": "x", "port": 80, "weight": 1}),
    "weight": lambda spec: spec["rules"][0]["backendRefs"][0].update(weight=50),
    "a header rule before": lambda spec: spec["rules"].insert(
        0, {"matches": [{"headers": [{"name": "x", "value": "y"}]}], "backendRefs": [{"name": "bot-v2", "port": 80, "weight": 1}]}
    ),
    "a rule behind": lambda spec: spec["rules"].append({"backendRefs": [{"name": "bot-v2", "port": 80, "weight": 1}]}),
    "no rules": lambda spec: spec.update(rules=[]),
}


@pytest.mark.parametrize("hand", HAND)
def test_what_is_the_operators_is_put_right_at_once_and_told_once(hand: str) -> None:
    world = canary()
    before = world.copy()
    edited(world, HAND[hand])
    plan = world.plan()
    assert [(name, event.reason) for name, event in plan.events] == [("bot-v1", "RoutePutRight")]
    assert "changed by others, put right" in plan.events[0][1].message
    world.run_pass()
    assert route(world)["spec"] == route(before)["spec"]
    assert world.condition("bot-v1", "Reconciling") == ("True", "RoutePutRight")
    world.thrive()
    assert world.plan().events == ()
    assert world.condition("bot-v1", "Reconciling") == ("False", "Settled")


def test_what_the_api_server_fills_in_is_nobodys_edit() -> None:
    world = canary()
    spec = route(world)["spec"]
    spec["parentRefs"][0].update(group="gateway.networking.k8s.io", kind="Gateway")
    for backend in spec["rules"][0]["backendRefs"]:
        backend.update(group="", kind="Service")
    assert list(world.effects(world.plan())) == []
    assert world.plan().events == ()


def test_an_edit_of_the_spec_is_no_edit_by_others() -> None:
    world = in_production(1)
    world.edit("bot-v1", traffic=GATEWAY | {"gatewayAPI": GATEWAY["gatewayAPI"] | {"hostnames": ["x.example"]}})
    assert world.plan().events == ()
    world.thrive()
    assert route(world)["spec"]["hostnames"] == ["x.example"]


def test_only_the_api_of_the_model_is_let_through() -> None:
    assert rule(in_production(1))["matches"] == [{"path": {"type": "PathPrefix", "value": "/v1"}}]


def test_a_labelled_copy_is_nobodys_business() -> None:
    world = canary()
    copied = world.copy().children["HTTPRoute", "bot"]
    copied["metadata"] |= {"name": "a-copy", "uid": "copy"}
    world.children["HTTPRoute", "a-copy"] = copied
    for _ in range(3):
        world.tick(minutes=11)
        world.thrive()
    assert world.stages() == {"bot-v1": "Archived", "bot-v2": "Production"}
    world.versions["bot-v2"]["spec"]["lifecycle"] = "Retired"
    world.thrive()
    assert ("HTTPRoute", "bot") not in world.children
    assert ("HTTPRoute", "a-copy") in world.children


# --------------------------------------------------------------------------------------------------- a Gateway that is silent


@pytest.mark.parametrize("steps", [STEPS, []])
def test_a_gateway_that_does_not_exist_calls_a_person(steps: list[Object]) -> None:
    world = World()
    world.add(model_version(1, steps=steps))
    world.settle()
    world.all_ready()
    world.settle()
    for _ in range(20):
        world.now = world.plan().recheck_at or world.now
        world.settle()
    assert world.condition("bot-v1", "TrafficAccepted") == ("False", "GatewaySilent")
    assert world.condition("bot-v1", "Stalled") == ("True", "GatewaySilent")
    assert world.condition("bot-v1", "Progressing")[1] != "Completed"
    assert world.stages()["bot-v1"] == (steps[0]["stage"] if steps else "Production")
    told = next(c["message"] for c in world.status("bot-v1")["conditions"] if c["type"] == "Stalled")
    assert "Gateway infra/gw" in told
    world.thrive()
    assert world.condition("bot-v1", "Stalled") == ("False", "NotStalled")


def test_a_gateway_that_falls_silent_later_is_told_as_well() -> None:
    world = in_production(1)
    world.tick(hours=1)
    world.edit("bot-v1", traffic={"type": "GatewayAPI", "gatewayAPI": {"gateway": {"name": "gatway", "namespace": "infra"}}})
    world.settle()
    assert world.condition("bot-v1", "Stalled") == ("False", "NotStalled")
    world.tick(seconds=60)
    world.settle()
    assert world.condition("bot-v1", "Stalled") == ("True", "GatewaySilent")


# -------------------------------------------------------------------------------------------------------- two models, one name


def other(hostnames: list[str], *, created: str = "2020-01-01T00:00:00Z", **gateway: str) -> Object:
    return {
        "metadata": {
            "name": "chat",
            "namespace": "other",
            "creationTimestamp": created,
            "labels": {"app.kubernetes.io/managed-by": "finetune-operator", "finetune-operator.io/model": "chat"},
        },
        "spec": {"parentRefs": [{"name": "gw", "namespace": "infra"} | gateway], "hostnames": hostnames, "rules": []},
    }


def asking(*hostnames: str) -> Object:
    return GATEWAY | {"gatewayAPI": GATEWAY["gatewayAPI"] | {"hostnames": list(hostnames)}}


@pytest.mark.parametrize(
    ("theirs", "mine"), [([], []), (["a.example"], ["a.example"]), (["A.example", "b.example"], ["c.example", "a.example"])]
)
def test_a_host_name_of_another_model_is_not_taken_over(theirs: list[str], mine: list[str]) -> None:
    world = World(other_routes=[other(theirs)])
    world.add(model_version(1, traffic=asking(*mine)))
    world.thrive()
    assert ("HTTPRoute", "bot") not in world.children
    assert world.stages() == {"bot-v1": "Registered"}
    assert world.condition("bot-v1", "Stalled") == ("True", "HostnamesTaken")
    told = next(c["message"] for c in world.status("bot-v1")["conditions"] if c["type"] == "TrafficAccepted")
    assert "other/chat" in told
    assert world.plan().recheck_at is not None
    world.edit("bot-v1", traffic=asking("mine.example"))
    world.thrive()
    assert world.stages() == {"bot-v1": "Canary"}


@pytest.mark.parametrize(
    ("route", "mine"),
    [
        (other(["a.example"]), []),
        (other([]), ["a.example"]),
        (other(["*.example"]), ["a.example"]),
        (other([], name="other"), []),
        (other([], namespace="elsewhere"), []),
    ],
)
def test_models_that_a_gateway_can_tell_apart_share_it(route: Object, mine: list[str]) -> None:
    world = World(other_routes=[route])
    world.add(model_version(1, traffic=asking(*mine)))
    world.thrive()
    assert world.stages() == {"bot-v1": "Canary"}


def test_an_edit_onto_anothers_host_name_leaves_the_route_where_it_is_and_weights_move_on() -> None:
    world = in_production(1)
    world.other_routes.append(other(["chat.example"]))
    world.add(model_version(2))
    world.thrive()
    for name in ("bot-v1", "bot-v2"):
        world.edit(name, traffic=asking("chat.example"))
    world.edit("bot-v2", abort=True)
    world.thrive()
    assert route(world)["spec"].get("hostnames", []) == []
    assert world.routed() == {"bot-v1": 100}
    assert world.condition("bot-v1", "Stalled") == ("True", "HostnamesTaken")


def test_where_no_route_of_ours_is_no_weight_is_claimed() -> None:
    world = in_production(1)
    world.other_routes.append(other(["chat.example"]))
    world.edit("bot-v1", traffic=asking("chat.example"))
    world.thrive()
    assert world.status("bot-v1")["display"]["weight"] == "100%", "the route is as it was"
    del world.children["HTTPRoute", "bot"]
    world.thrive()
    assert world.status("bot-v1")["weight"] == 0
    assert world.status("bot-v1")["display"]["weight"] == "0%"


@pytest.mark.parametrize(("created", "reason"), [("2020-01-01T00:00:00Z", "HostnamesTaken"), ("2030-01-01T00:00:00Z", "NotStalled")])
def test_of_two_that_both_have_a_name_the_younger_is_told(created: str, reason: str) -> None:
    world = in_production(1)
    route(world)["metadata"]["creationTimestamp"] = "2025-01-01T00:00:00Z"
    world.other_routes.append(other([], created=created))
    world.thrive()
    assert world.condition("bot-v1", "Stalled") == (("False" if reason == "NotStalled" else "True"), reason)
    assert world.routed() == {"bot-v1": 100}


def test_the_models_own_route_is_no_rival() -> None:
    world = in_production(1)
    world.other_routes.append(world.copy().children["HTTPRoute", "bot"])
    world.thrive()
    assert world.condition("bot-v1", "Stalled") == ("False", "NotStalled")


# ------------------------------------------------------------------------------------------------------- refused children


def test_a_refused_server_of_one_version_does_not_stand_before_the_route() -> None:
    world = canary()
    world.edit("bot-v2", abort=True)
    world.run_pass()
    world.problems = [ActionProblem("Deployment", "bot-v3", "QuotaExceeded", "no room")]  # type: ignore[arg-type]
    world.add(model_version(3))
    concerns = [action.concern for action in world.plan().actions if isinstance(action, Apply)]
    assert concerns.count("route") == 1
    assert {"bot-v1", "bot-v3"} <= set(concerns)


def test_a_route_that_cannot_be_written_is_not_told_as_if_it_were() -> None:
    world = canary()
    world.problems = [ActionProblem("HTTPRoute", "bot", "Forbidden", "no right")]  # type: ignore[arg-type]
    world.edit("bot-v2", abort=True)
    plan = world.plan()
    assert {name: status["weight"] for name, status in plan.statuses.items()} == {"bot-v1": 95, "bot-v2": 5}
    applied = next(c for c in plan.statuses["bot-v2"]["conditions"] if c["type"] == "ResourcesApplied")
    assert (applied["status"], applied["reason"]) == ("False", "Forbidden")
