"""The life of a model's versions, pass by pass."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from finetune_operator.core.plan import Apply, Delete, SetOwners
from finetune_operator.modelversion.policies.succession import UNDER_WAY

from tests.unit.operator.modelversion.world import GATEWAY, STEPS, World, canary, in_production, model_version, refused_pod

NONE = {"type": "None"}


# ------------------------------------------------------------------------------------------------------------------- the way up


def test_servers_come_before_the_first_step_and_the_route_after_it() -> None:
    world = World()
    world.add(model_version(1))
    world.settle()
    assert set(world.children) == {("Deployment", "bot-v1"), ("Service", "bot-v1")}
    assert (world.stages(), world.weights()) == ({"bot-v1": "Registered"}, {"bot-v1": 0})
    world.all_ready()
    world.settle()
    assert (world.stages(), world.routed()) == ({"bot-v1": "Canary"}, {"bot-v1": 100})


def test_first_version_walks_its_steps_at_weight_100() -> None:
    world = World()
    world.add(model_version(1))
    seen = []
    for _ in range(3):
        world.thrive()
        seen.append((world.stages()["bot-v1"], world.weights()["bot-v1"], world.routed()["bot-v1"]))
        world.tick(minutes=10)
    assert seen == [("Canary", 100, 100), ("Staging", 100, 100), ("Production", 100, 100)]
    assert [(e["from"], e["to"], e["by"]) for e in world.status("bot-v1")["history"]] == [
        ("Registered", "Canary", "Rollout"),
        ("Canary", "Staging", "Rollout"),
        ("Staging", "Production", "Rollout"),
    ]
    assert "held 10m, weight 100 accepted at route generation 1" in world.status("bot-v1")["history"][-1]["evidence"]


def test_second_version_takes_over_step_by_step() -> None:
    world = in_production(1)
    world.add(model_version(2))
    seen = []
    for _ in range(3):
        world.thrive()
        seen.append((world.stages(), world.routed()))
        world.tick(minutes=10)
    assert seen == [
        ({"bot-v1": "Production", "bot-v2": "Canary"}, {"bot-v1": 95, "bot-v2": 5}),
        ({"bot-v1": "Production", "bot-v2": "Staging"}, {"bot-v1": 90, "bot-v2": 10}),
        ({"bot-v1": "Archived", "bot-v2": "Production"}, {"bot-v2": 100}),
    ]
    assert world.status("bot-v1")["replacedBy"] == "bot-v2"
    assert ("Deployment", "bot-v1") in world.children


def test_three_versions_share_traffic() -> None:
    world = in_production(1)
    world.add(model_version(2))
    world.thrive()
    world.tick(minutes=10)
    world.thrive()
    world.add(model_version(3))
    world.thrive()
    assert world.routed() == {"bot-v1": 85, "bot-v2": 10, "bot-v3": 5}
    assert world.weights() == {"bot-v1": 85, "bot-v2": 10, "bot-v3": 5}


def test_a_candidate_waits_where_production_would_be_left_with_nothing() -> None:
    heavy = [{"name": "half", "stage": "Canary", "weight": 60, "hold": "1h"}, STEPS[2]]
    world = in_production(1)
    world.add(model_version(2, steps=heavy), model_version(3, steps=heavy))
    world.thrive()
    assert (world.weights(), world.stages()["bot-v3"]) == ({"bot-v1": 40, "bot-v2": 60, "bot-v3": 0}, "Registered")
    assert world.condition("bot-v3", "Progressing") == ("True", "WeightTaken")
    world.edit("bot-v2", abort=True)
    world.thrive()
    assert world.weights() == {"bot-v1": 40, "bot-v2": 0, "bot-v3": 60}


def test_step_of_a_pass_is_written_before_anything_is_done() -> None:
    world = World()
    world.add(model_version(1))
    world.settle()
    world.all_ready()
    plan = world.plan()
    assert plan.statuses["bot-v1"]["stage"] == "Canary"
    assert plan.actions == ()


def test_straight_to_production_without_a_route() -> None:
    world = World()
    world.add(model_version(1, steps=[], traffic=NONE))
    world.thrive()
    assert (world.stages(), world.weights()) == ({"bot-v1": "Production"}, {"bot-v1": 100})
    assert ("HTTPRoute", "bot") not in world.children
    assert world.condition("bot-v1", "TrafficAccepted") == ("True", "NotRouted")


def test_older_candidate_gives_way_to_a_newer_production_version() -> None:
    world = in_production(1)
    world.add(model_version(2, paused=True))
    world.thrive()
    assert world.stages()["bot-v2"] == "Registered"
    world.add(model_version(3))
    for _ in range(3):
        world.thrive()
        world.tick(minutes=10)
    world.thrive()
    assert world.stages() == {"bot-v1": "Archived", "bot-v2": "Archived", "bot-v3": "Production"}
    assert "replacedBy" not in world.status("bot-v2")


# ------------------------------------------------------------------------------------------------------------- what holds a step


def test_hold_is_kept_to_the_second() -> None:
    world = canary()
    world.tick(minutes=9, seconds=59)
    world.settle()
    assert world.stages()["bot-v2"] == "Canary"
    assert world.plan().recheck_at == world.now + timedelta(seconds=1)
    world.tick(seconds=1)
    world.settle()
    assert world.stages()["bot-v2"] == "Staging"


def test_pods_that_are_not_all_ready_hold_the_step() -> None:
    world = canary()
    world.versions["bot-v2"]["spec"]["serving"]["replicas"] = 2
    world.settle()
    world.set_available("bot-v2", 1)
    world.tick(minutes=10)
    world.settle()
    assert world.condition("bot-v2", "Progressing") == ("True", "Waiting")
    assert world.weights()["bot-v2"] == 5
    world.set_available("bot-v2", 2)
    world.settle()
    assert world.stages()["bot-v2"] == "Staging"


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_route_that_is_not_accepted_holds_the_step(status: str) -> None:
    world = canary()
    world.accept_route(status, "BackendNotFound")
    world.tick(minutes=10)
    world.settle()
    assert world.stages()["bot-v2"] == "Canary"
    world.accept_route()
    world.settle()
    assert world.stages()["bot-v2"] == "Staging"


def test_route_accepted_at_an_older_generation_holds_the_step() -> None:
    world = canary()
    world.children["HTTPRoute", "bot"]["metadata"]["generation"] += 1
    world.tick(minutes=10)
    world.settle()
    assert world.stages()["bot-v2"] == "Canary"


def test_route_with_other_weights_is_mended_before_the_next_step() -> None:
    world = canary()
    world.children["HTTPRoute", "bot"]["spec"]["rules"][0]["backendRefs"][0]["weight"] = 50
    world.tick(minutes=10)
    world.run_pass()
    assert (world.stages()["bot-v2"], world.routed()) == ("Canary", {"bot-v1": 95, "bot-v2": 5})


def test_paused_holds_and_goes_on() -> None:
    world = canary()
    world.edit("bot-v2", paused=True)
    world.tick(hours=5)
    world.thrive()
    assert world.stages()["bot-v2"] == "Canary"
    assert world.condition("bot-v2", "Progressing") == ("False", "Paused")
    assert world.condition("bot-v2", "Reconciling") == ("False", "Settled")
    world.edit("bot-v2", paused=False)
    world.run_pass()
    assert world.stages()["bot-v2"] == "Staging"


def test_manual_approval_lets_go_step_by_step() -> None:
    world = canary()
    world.edit("bot-v2", approval="Manual")
    world.tick(minutes=10)
    world.thrive()
    assert world.condition("bot-v2", "Progressing") == ("False", "AwaitingApproval")
    world.edit("bot-v2", approvedStep=0)
    world.thrive()
    assert world.stages()["bot-v2"] == "Staging"
    world.tick(hours=1)
    world.thrive()
    assert world.stages()["bot-v2"] == "Staging"
    world.edit("bot-v2", approvedStep=1)
    world.thrive()
    assert world.stages()["bot-v2"] == "Production"


def test_without_gateway_api_no_step_is_taken() -> None:
    world = World(gateway_api=False)
    world.add(model_version(1))
    world.settle()
    world.all_ready()
    world.settle()
    assert (world.stages(), world.weights()) == ({"bot-v1": "Registered"}, {"bot-v1": 0})
    assert world.condition("bot-v1", "Stalled") == ("True", "GatewayAPIMissing")
    world.gateway_api = True
    world.thrive()
    assert world.stages() == {"bot-v1": "Canary"}


def test_version_with_other_traffic_settings_gets_none() -> None:
    other = {"type": "GatewayAPI", "gatewayAPI": {"gateway": {"name": "other", "namespace": "infra"}}}
    world = in_production(1)
    world.add(model_version(2, traffic=other))
    world.thrive()
    world.tick(hours=1)
    world.thrive()
    assert (world.stages()["bot-v2"], world.routed()) == ("Registered", {"bot-v1": 100})
    assert world.condition("bot-v2", "TrafficAccepted") == ("False", "DiffersFromProduction")
    world.edit("bot-v2", traffic=GATEWAY)
    world.thrive()
    assert world.stages()["bot-v2"] == "Canary"


def test_live_version_whose_traffic_is_edited_gets_weight_0() -> None:
    world = canary()
    world.edit("bot-v2", traffic=GATEWAY | {"gatewayAPI": GATEWAY["gatewayAPI"] | {"hostnames": ["x.example"]}})
    world.thrive()
    assert (world.weights(), world.routed()) == ({"bot-v1": 100, "bot-v2": 0}, {"bot-v1": 100})


def test_route_follows_an_edit_of_the_production_version() -> None:
    world = in_production(1)
    world.edit("bot-v1", traffic=GATEWAY | {"gatewayAPI": GATEWAY["gatewayAPI"] | {"hostnames": ["x.example"]}})
    world.thrive()
    assert world.children["HTTPRoute", "bot"]["spec"]["hostnames"] == ["x.example"]
    world.edit("bot-v1", traffic=NONE)
    world.settle()
    assert ("HTTPRoute", "bot") not in world.children


def test_edit_that_takes_the_present_step_away_goes_on_to_the_next() -> None:
    world = canary()
    world.edit("bot-v2", steps=STEPS[1:])
    world.thrive()
    assert (world.stages()["bot-v2"], world.weights()["bot-v2"]) == ("Staging", 10)


# --------------------------------------------------------------------------------------------------------------------- the way down


def test_abort_before_production_takes_the_weight_at_once_and_the_pods_after_a_drain() -> None:
    world = canary()
    world.edit("bot-v2", abort=True)
    world.run_pass()
    world.run_pass()
    assert (world.stages()["bot-v2"], world.routed()) == ("RolledBack", {"bot-v1": 100})
    assert ("Deployment", "bot-v2") in world.children
    world.settle()
    world.tick(minutes=5)
    world.settle()
    assert ("Deployment", "bot-v2") in world.children, "the Gateway has not accepted the route without it"
    world.accept_route()
    world.settle()
    world.tick(seconds=29)
    world.settle()
    assert ("Deployment", "bot-v2") in world.children
    world.tick(seconds=1)
    world.settle()
    assert [name for _, name in world.children] == ["bot-v1", "bot-v1", "bot"]
    assert world.status("bot-v2")["history"][-1]["by"] == "Spec"
    assert world.condition("bot-v2", "Ready") is None


def test_abort_within_keep_previous_only_moves_weights() -> None:
    world = in_production(1, 2)
    deployment = world.children["Deployment", "bot-v1"]["metadata"]["uid"]
    world.edit("bot-v2", abort=True)
    world.run_pass()
    assert world.stages() == {"bot-v1": "Production", "bot-v2": "RolledBack"}
    assert world.run_pass() == 1
    assert world.routed() == {"bot-v1": 100}
    assert world.children["Deployment", "bot-v1"]["metadata"]["uid"] == deployment


def test_former_pods_go_after_keep_previous_and_come_back_on_abort() -> None:
    world = in_production(1, 2)
    world.tick(minutes=60)
    world.settle()
    world.tick(seconds=30)
    world.settle()
    assert ("Deployment", "bot-v1") not in world.children
    world.edit("bot-v2", abort=True)
    world.settle()
    assert world.stages() == {"bot-v1": "Production", "bot-v2": "RolledBack"}
    assert world.weights() == {"bot-v1": 0, "bot-v2": 100}, "the aborted version answers until the former one can"
    assert world.routed() == {"bot-v1": 0, "bot-v2": 100}
    assert world.condition("bot-v2", "Reconciling") == ("True", "MovingTraffic")
    world.set_available("bot-v1", 1)
    world.settle()
    assert (world.weights(), world.routed()) == ({"bot-v1": 100, "bot-v2": 0}, {"bot-v1": 100})


def test_keep_previous_can_be_shortened_afterwards() -> None:
    world = in_production(1, 2)
    world.versions["bot-v2"]["spec"]["serving"]["keepPrevious"] = "0s"
    world.settle()
    world.tick(seconds=30)
    world.settle()
    assert ("Deployment", "bot-v1") not in world.children


def test_aborts_in_a_row_go_back_one_by_one() -> None:
    world = in_production(1, 2, 3)
    world.edit("bot-v3", abort=True)
    world.thrive()
    assert world.stages() == {"bot-v1": "Archived", "bot-v2": "Production", "bot-v3": "RolledBack"}
    world.edit("bot-v2", abort=True)
    world.thrive()
    assert world.stages() == {"bot-v1": "Production", "bot-v2": "RolledBack", "bot-v3": "RolledBack"}
    assert world.routed() == {"bot-v1": 100}


def test_aborted_former_version_is_passed_over() -> None:
    world = in_production(1, 2, 3)
    world.edit("bot-v2", abort=True)
    world.edit("bot-v3", abort=True)
    world.thrive()
    assert world.stages() == {"bot-v1": "Production", "bot-v2": "Archived", "bot-v3": "RolledBack"}


def test_abort_of_the_only_version_in_production_waits_for_another() -> None:
    world = in_production(1)
    world.edit("bot-v1", abort=True)
    world.thrive()
    assert (world.stages(), world.routed()) == ({"bot-v1": "Production"}, {"bot-v1": 100})
    assert world.condition("bot-v1", "Stalled") == ("True", "NobodyReturns")
    world.add(model_version(2))
    for _ in range(4):
        world.thrive()
        world.tick(minutes=10)
    assert (world.stages(), world.routed()) == ({"bot-v1": "RolledBack", "bot-v2": "Production"}, {"bot-v2": 100})
    assert world.condition("bot-v2", "Stalled") == ("False", "NotStalled")


def test_an_abort_that_was_refused_can_be_taken_back() -> None:
    world = in_production(1)
    world.edit("bot-v1", abort=True)
    world.thrive()
    world.edit("bot-v1", abort=False)
    world.thrive()
    assert world.condition("bot-v1", "Stalled") == ("False", "NotStalled")
    assert world.condition("bot-v1", "Ready") == ("True", "Serving")


def test_abort_of_every_version_leaves_the_one_in_production() -> None:
    world = in_production(1, 2)
    world.edit("bot-v1", abort=True)
    world.edit("bot-v2", abort=True)
    world.thrive()
    assert (world.stages(), world.routed()) == ({"bot-v1": "Archived", "bot-v2": "Production"}, {"bot-v2": 100})


def test_abort_before_anybody_was_in_production_takes_the_route_away() -> None:
    world = World()
    world.add(model_version(1))
    world.thrive()
    world.edit("bot-v1", abort=True)
    world.settle()
    assert (world.stages(), world.weights()) == ({"bot-v1": "RolledBack"}, {"bot-v1": 0})
    assert ("HTTPRoute", "bot") not in world.children


def test_a_model_whose_only_version_was_aborted_can_be_retired() -> None:
    world = in_production(1)
    world.edit("bot-v1", abort=True)
    world.thrive()
    retire(world, "bot-v1")
    world.thrive()
    assert world.stages() == {"bot-v1": "Archived"}
    assert ("HTTPRoute", "bot") not in world.children


# ----------------------------------------------------------------------------------------------------------------- retired and back


def retire(world: World, name: str, lifecycle: str = "Retired") -> None:
    world.versions[name]["spec"]["lifecycle"] = lifecycle
    world.versions[name]["metadata"]["generation"] += 1


def test_a_production_version_that_is_active_again_serves_again() -> None:
    world = in_production(1)
    retire(world, "bot-v1")
    world.thrive()
    world.tick(minutes=5)
    world.thrive()
    assert (world.stages(), set(world.children)) == ({"bot-v1": "Archived"}, set())
    retire(world, "bot-v1", "Active")
    world.thrive()
    assert (world.stages(), world.routed()) == ({"bot-v1": "Production"}, {"bot-v1": 100})
    assert world.status("bot-v1")["history"][-1]["by"] == "Spec"


def test_a_candidate_that_is_active_again_begins_with_its_first_step() -> None:
    world = canary()
    world.tick(minutes=10)
    world.thrive()
    retire(world, "bot-v2")
    world.thrive()
    assert (world.stages()["bot-v2"], world.routed()) == ("Archived", {"bot-v1": 100})
    retire(world, "bot-v2", "Active")
    world.run_pass()
    assert world.stages()["bot-v2"] == "Registered"
    world.thrive()
    assert world.stages()["bot-v2"] == "Canary"


def test_one_that_was_overtaken_meanwhile_stays_archived_and_says_so() -> None:
    world = in_production(1)
    retire(world, "bot-v1")
    world.thrive()
    world.add(model_version(2, steps=[]))
    world.thrive()
    retire(world, "bot-v1", "Active")
    world.thrive()
    assert world.stages() == {"bot-v1": "Archived", "bot-v2": "Production"}
    assert "the newer bot-v2 is in production" in world.status("bot-v1")["history"][-1]["why"]
    world.edit("bot-v2", abort=True)
    world.thrive()
    assert world.stages() == {"bot-v1": "Production", "bot-v2": "RolledBack"}, "it held production, so it can return"


def test_one_that_held_production_does_not_take_it_from_an_older_one_that_has_it_now() -> None:
    world = in_production(1)
    retire(world, "bot-v1")
    world.thrive()
    world.add(model_version(2, steps=[]))
    world.thrive()
    retire(world, "bot-v2")
    retire(world, "bot-v1", "Active")
    world.run_pass()
    world.status("bot-v1").update(stage="Production", stepIndex=2)
    retire(world, "bot-v2", "Active")
    world.run_pass()
    assert world.stages() == {"bot-v1": "Production", "bot-v2": "Registered"}


def test_an_archived_version_says_when_it_returns() -> None:
    world = in_production(1, 2)
    progressing = next(c for c in world.status("bot-v1")["conditions"] if c["type"] == "Progressing")
    assert "returns if bot-v2 is aborted or deleted" in progressing["message"]


def test_retired_production_version_does_not_bring_the_former_one_back() -> None:
    world = in_production(1, 2)
    world.versions["bot-v2"]["spec"]["lifecycle"] = "Retired"
    world.thrive()
    assert world.stages() == {"bot-v1": "Archived", "bot-v2": "Archived"}


def test_deleted_production_version_brings_the_former_one_back() -> None:
    world = in_production(1, 2)
    world.versions["bot-v2"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    plan = world.plan()
    assert set(plan.statuses) == {"bot-v1"}
    assert plan.statuses["bot-v1"]["stage"] == "Production"
    assert "bot-v2, which had taken over, is gone" in plan.statuses["bot-v1"]["history"][-1]["why"]


def test_a_deleted_production_version_answers_until_the_former_one_does() -> None:
    world = in_production(1, 2)
    for _ in range(2):
        world.tick(hours=2)
        world.thrive()
    assert ("Deployment", "bot-v1") not in world.children, "its pods are long gone"
    world.delete("bot-v2")
    world.thrive_without_pods()
    assert world.stages() == {"bot-v1": "Production"}
    assert (world.routed(), world.weights()) == ({"bot-v1": 0, "bot-v2": 100}, {"bot-v1": 0})
    assert "bot-v2 answers, though deleted" in world.message("bot-v1", "Ready")
    world.set_available("bot-v1", 1)
    world.settle()
    assert world.routed() == {"bot-v1": 100}
    assert ("Deployment", "bot-v2") in world.children, "until the Gateway has taken the route over"
    world.thrive()
    assert [name for _, name in world.children if name == "bot-v2"] == []


def test_a_deleted_candidate_loses_its_share_before_its_server_goes() -> None:
    world = canary()
    world.delete("bot-v2")
    assert ("Deployment", "bot-v2") in world.children
    world.settle()
    assert world.routed() == {"bot-v1": 100}
    assert ("Service", "bot-v2") in world.children
    world.thrive()
    assert [name for _, name in world.children if name == "bot-v2"] == []


def test_one_that_takes_a_deleted_ones_place_in_one_apply_starts_while_that_answers() -> None:
    world = in_production(1)
    world.add(model_version(2))
    world.settle()
    world.delete("bot-v1")
    world.thrive_without_pods()
    assert (world.stages(), world.routed()) == ({"bot-v2": "Registered"}, {"bot-v1": 100})
    world.thrive()
    assert world.routed() == {"bot-v2": 100}
    assert [name for _, name in world.children if name == "bot-v1"] == []


def test_a_version_made_again_takes_over_the_server_of_its_name() -> None:
    world = in_production(1, 2)
    deployment = world.children["Deployment", "bot-v2"]["metadata"]["uid"]
    world.delete("bot-v2")
    again = model_version(2)
    again["metadata"]["uid"] = "uid-again"
    world.add(again)
    world.thrive_without_pods()
    assert world.routed()["bot-v2"] == 100
    mine = world.children["Deployment", "bot-v2"]["metadata"]
    assert mine["uid"] == deployment
    assert "uid-again" in {owner["uid"] for owner in mine["ownerReferences"]}


def test_the_last_version_takes_everything_with_it() -> None:
    world = in_production(1)
    world.delete("bot-v1")
    assert world.children == {}


def test_a_server_that_people_copied_is_theirs() -> None:
    world = in_production(1, 2)
    copy = json.loads(json.dumps(world.children["Deployment", "bot-v2"]))
    copy["metadata"] |= {"name": "bot-v2-debug", "uid": "copy", "ownerReferences": []}
    world.children["Deployment", "bot-v2-debug"] = copy
    world.delete("bot-v2")
    world.thrive()
    assert ("Deployment", "bot-v2-debug") in world.children


def test_refused_artifact_is_rejected_before_it_takes_traffic() -> None:
    world = in_production(1)
    world.add(model_version(2))
    world.settle()
    world.pods["bot-v2"] = refused_pod("bot-v2", restarts=1)
    world.settle()
    assert world.stages()["bot-v2"] == "Registered", "one failed read may be the volume's"
    world.pods["bot-v2"] = refused_pod("bot-v2")
    world.settle()
    assert (world.stages()["bot-v2"], world.routed()) == ("Rejected", {"bot-v1": 100})
    assert world.condition("bot-v2", "Verified") == ("False", "ArtifactRefused")
    world.tick(seconds=30)
    world.settle()
    assert ("Deployment", "bot-v2") not in world.children
    assert world.condition("bot-v2", "Stalled") == ("True", "ArtifactRefused")


def test_terminal_stages_stay_though_the_spec_changes_back() -> None:
    world = in_production(1, 2)
    world.edit("bot-v2", abort=True)
    world.thrive()
    world.edit("bot-v2", abort=False)
    world.tick(hours=3)
    world.thrive()
    assert world.stages() == {"bot-v1": "Production", "bot-v2": "RolledBack"}


# ------------------------------------------------------------------------------------------------------------- traffic and readiness


@pytest.mark.parametrize(
    ("available", "weights"),
    [
        ({"bot-v1": 1, "bot-v2": 1}, {"bot-v1": 95, "bot-v2": 5}),
        ({"bot-v1": 1, "bot-v2": 0}, {"bot-v1": 100, "bot-v2": 0}),
        ({"bot-v1": 0, "bot-v2": 1}, {"bot-v1": 95, "bot-v2": 5}),
        ({"bot-v1": 0, "bot-v2": 0}, {"bot-v1": 100, "bot-v2": 0}),
    ],
)
def test_a_share_goes_where_a_pod_answers_but_never_more_to_a_canary_than_its_step_says(
    available: dict[str, int], weights: dict[str, int]
) -> None:
    world = canary()
    for name, pods in available.items():
        world.set_available(name, pods)
    world.settle()
    assert (world.weights(), world.routed()) == (weights, weights)


def test_a_canary_does_not_get_the_share_of_a_production_version_whose_service_is_gone() -> None:
    world = canary()
    del world.children["Service", "bot-v1"]
    (route,) = [action for action in world.plan().actions if isinstance(action, Apply) and action.body["kind"] == "HTTPRoute"]
    assert {ref["name"]: ref["weight"] for ref in route.body["spec"]["rules"][0]["backendRefs"]} == {"bot-v1": 95, "bot-v2": 5}


def test_kept_former_version_stands_in_for_production() -> None:
    world = in_production(1, 2)
    world.add(model_version(3))
    world.thrive()
    world.set_available("bot-v2", 0)
    world.settle()
    assert world.routed() == {"bot-v1": 95, "bot-v2": 0, "bot-v3": 5}
    world.set_available("bot-v2", 1)
    world.settle()
    assert world.routed() == {"bot-v2": 95, "bot-v3": 5}


def test_deployment_edited_by_hand_or_deleted_is_mended() -> None:
    world = in_production(1)
    world.children["Deployment", "bot-v1"]["spec"]["replicas"] = 7
    del world.children["Service", "bot-v1"]
    world.settle()
    assert world.children["Deployment", "bot-v1"]["spec"]["replicas"] == 1
    assert ("Service", "bot-v1") in world.children


def test_image_of_a_running_version_outlives_the_chart() -> None:
    world = World()
    version = model_version(1)
    del version["spec"]["serving"]["image"]
    world.add(version)
    world.thrive()
    world.settings = world.settings.model_copy(update={"server_image": "finetune-operator/server:next"})
    assert world.settle() == 0


def test_a_bad_edit_takes_nothing_down() -> None:
    world = in_production(1)
    before = world.children["Deployment", "bot-v1"]["spec"]
    world.versions["bot-v1"]["spec"]["serving"]["image"] = "elsewhere/server:1"
    world.settle()
    assert world.children["Deployment", "bot-v1"]["spec"] == before
    assert (world.weights(), world.condition("bot-v1", "Stalled")) == ({"bot-v1": 100}, ("True", "ForbiddenByPolicy"))


# ------------------------------------------------------------------------------------------------------------- status lost, passes killed


def lose_status(world: World) -> None:
    for version in world.versions.values():
        version.pop("status", None)


def test_versions_without_status_take_their_places_from_the_route() -> None:
    world = in_production(1, 2)
    world.add(model_version(3))
    world.thrive()
    stages, weights, routed = world.stages(), world.weights(), world.routed()
    lose_status(world)
    world.run_pass()
    assert (world.stages(), world.weights()) == (stages, weights)
    world.settle()
    assert world.routed() == routed
    assert "place taken from the HTTPRoute" in world.status("bot-v2")["history"][-1]["why"]


def test_route_without_our_annotation_is_read_by_its_weights() -> None:
    world = in_production(1)
    world.add(model_version(2))
    world.thrive()
    world.tick(minutes=10)
    world.thrive()
    del world.children["HTTPRoute", "bot"]["metadata"]["annotations"]
    lose_status(world)
    world.run_pass()
    assert world.stages() == {"bot-v1": "Production", "bot-v2": "Staging"}


def test_a_single_version_without_status_and_route_is_a_new_one() -> None:
    world = World()
    world.add(model_version(1))
    world.run_pass()
    assert world.stages() == {"bot-v1": "Registered"}
    assert world.status("bot-v1")["history"] == []


def test_new_version_beside_others_with_status_is_registered() -> None:
    world = in_production(1)
    world.add(model_version(2))
    world.run_pass()
    assert world.stages() == {"bot-v1": "Production", "bot-v2": "Registered"}


def killed_in_a_promotion() -> World:
    """Version 2 has stood its steps, and the operator ended after the first of the two writes by which it takes production over."""
    world = canary()
    world.tick(minutes=10)
    world.thrive()
    world.tick(minutes=10)
    world.run_pass(writes=1)
    assert world.stages() == {"bot-v1": "Archived", "bot-v2": "Staging"}
    return world


def test_promotion_killed_between_its_two_writes_is_made_up_for() -> None:
    world = killed_in_a_promotion()
    world.thrive()
    assert (world.stages(), world.routed()) == ({"bot-v1": "Archived", "bot-v2": "Production"}, {"bot-v2": 100})


def test_one_that_gave_production_up_has_it_back_only_when_no_write_can_be_under_way() -> None:
    """Another operator, that lost its Lease, may have sent the successor's promotion: two would be in production."""
    world = killed_in_a_promotion()
    world.edit("bot-v2", paused=True)
    world.thrive()
    assert world.stages() == {"bot-v1": "Archived", "bot-v2": "Staging"}
    assert world.routed() == {"bot-v1": 90, "bot-v2": 10}, "nobody gets more meanwhile"
    assert world.plan().recheck_at == world.now + UNDER_WAY
    world.tick(seconds=UNDER_WAY.total_seconds())
    world.thrive()
    assert world.stages() == {"bot-v1": "Production", "bot-v2": "Staging"}


def test_long_words_of_a_server_fit_the_history() -> None:
    """A pod may say 4,096 bytes as it ends; a status over its own schema would be refused for ever."""
    world = World()
    world.add(model_version(1))
    world.settle()
    pod = refused_pod("bot-v1")
    pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["message"] = "x" * 4096
    world.pods["bot-v1"] = pod
    world.settle()
    assert world.stages() == {"bot-v1": "Rejected"}
    assert len(world.status("bot-v1")["history"][-1]["evidence"]) == 1024


def test_history_keeps_the_last_50() -> None:
    world = in_production(1)
    entry = world.status("bot-v1")["history"][0]
    world.status("bot-v1")["history"] = [entry] * 50
    retire(world, "bot-v1")
    world.run_pass()
    history = world.status("bot-v1")["history"]
    assert (len(history), history[-1]["to"]) == (50, "Archived")


def stalled_message(world: World, name: str) -> str:
    return next(str(condition["message"]) for condition in world.status(name)["conditions"] if condition["type"] == "Stalled")


def test_unreadable_live_version_holds_up_the_steps_of_the_model() -> None:
    world = canary()
    world.versions["bot-v2"]["spec"]["rollout"]["approval"] = "Perhaps"
    world.tick(hours=1)
    world.settle()
    assert world.condition("bot-v2", "Stalled") == ("True", "InvalidSpec")
    assert world.condition("bot-v1", "Stalled") == ("False", "NotStalled")
    assert stalled_message(world, "bot-v2").endswith("kubectl edit modelversion/bot-v2 -n team")
    assert world.stages() == {"bot-v1": "Production", "bot-v2": "Canary"}


def test_a_status_that_does_not_parse_is_kept_and_said_once() -> None:
    world = canary()
    world.status("bot-v2")["stepStartedTime"] = "yesterday"
    plan = world.plan()
    assert [(name, event.type, event.reason) for name, event in plan.events] == [("bot-v2", "Warning", "InvalidStatus")]
    world.settle()
    assert world.condition("bot-v2", "Stalled") == ("True", "InvalidStatus")
    assert stalled_message(world, "bot-v2").endswith("kubectl edit modelversion/bot-v2 -n team --subresource=status")
    assert world.status("bot-v2")["stage"] == "Canary"
    assert world.plan().events == ()


def test_members_of_a_newer_release_are_kept() -> None:
    world = canary()
    world.status("bot-v2").update(analysis={"runs": 3}, display=7)
    status = world.plan().statuses["bot-v2"]
    assert (status["analysis"], status["display"]["weight"]) == ({"runs": 3}, "5%")


def test_unreadable_version_out_of_service_stops_nobody() -> None:
    world = in_production(1, 2)
    world.versions["bot-v1"]["spec"]["rollout"]["approval"] = "Perhaps"
    world.add(model_version(3))
    world.thrive()
    assert world.stages()["bot-v3"] == "Canary"


# ------------------------------------------------------------------------------------------------------------- claims, writes, events


JOB_CLAIM = {"app.kubernetes.io/managed-by": "finetune-operator", "finetune-operator.io/finetunejob-uid": "u"}


@pytest.mark.parametrize(
    ("labels", "owned"),
    [
        (JOB_CLAIM, True),
        (JOB_CLAIM | {"finetune-operator.io/artifacts": "Delete"}, True),
        (JOB_CLAIM | {"finetune-operator.io/artifacts": "Keep"}, False),
        ({}, False),
    ],
)
def test_claim_of_a_job_gets_the_versions_on_it_as_owners(labels: dict[str, str], owned: bool) -> None:
    world = World()
    world.add(model_version(1))
    stranger = {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x"}
    world.claims["files-1"]["metadata"] |= {"labels": labels, "ownerReferences": [stranger]}
    actions = [action for action in world.plan().actions if isinstance(action, SetOwners)]
    assert bool(actions) is owned
    if owned:
        assert [owner["name"] for owner in actions[0].owners] == ["x", "bot-v1"]
        assert (actions[0].uid, actions[0].resource_version) == ("uid-files-1", "7")
    world.settle()
    assert not [action for action in world.plan().actions if isinstance(action, SetOwners)]


def test_writes_from_registration_to_production_stay_within_the_target() -> None:
    """At most 14. The second version is the dearer one: the first one's share changes with it, and the route learns that it may follow."""
    for world, number, most in ((World(), 1, 14), (in_production(1), 2, 15)):
        writes = 0
        world.add(model_version(number))
        for _ in range(4):
            for _ in range(6):
                writes += world.run_pass()
                world.all_ready()
                world.accept_route()
            world.tick(minutes=10)
        assert world.stages()[f"bot-v{number}"] == "Production"
        assert writes <= most, f"version {number} took {writes} writes"


def test_idle_world_is_left_alone() -> None:
    world = in_production(1, 2, 3)
    world.tick(days=2)
    world.thrive()
    world.tick(minutes=1)
    world.thrive()
    for _ in range(3):
        world.tick(days=1)
        assert world.run_pass() == 0
        assert world.plan().recheck_at is None


def test_moves_and_stalls_are_events_once() -> None:
    world = canary()
    world.edit("bot-v2", abort=True)
    plan = world.plan()
    assert [(name, event.type, event.reason) for name, event in plan.events] == [("bot-v2", "Warning", "RolledBack")]
    world.settle()
    assert world.plan().events == ()
    del world.claims["files-1"]
    assert [(name, event.reason) for name, event in world.plan().events] == [("bot-v1", "ClaimMissing")]
    world.settle()
    assert world.plan().events == ()


def test_deletes_name_the_object_that_was_seen() -> None:
    world = in_production(1)
    retire(world, "bot-v1")
    world.settle()
    world.tick(seconds=30)
    uids = {key: child["metadata"]["uid"] for key, child in world.children.items()}
    deletes = [action for action in world.plan().actions if isinstance(action, Delete)]
    assert {(action.kind, action.name): action.uid for action in deletes} == uids


def test_a_candidate_that_gets_more_than_its_step_asks_for_says_so() -> None:
    world = canary()
    assert "nothing is in production" not in world.message("bot-v2", "Progressing")
    world.delete("bot-v1")
    world.thrive()
    assert world.routed() == {"bot-v2": 100}
    assert "nothing is in production, so that it gets 100 % instead of 5" in world.message("bot-v2", "Progressing")
