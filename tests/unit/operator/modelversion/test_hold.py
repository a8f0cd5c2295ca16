"""Only time counts in which the Gateway had accepted a step's weight and a pod answered."""

from __future__ import annotations

from datetime import timedelta

import pytest
from finetune_operator.modelversion.observed import Observed, deployment_fact, pod_fact
from finetune_operator.modelversion.policies.hold import counted
from finetune_operator.modelversion.versions import Hold, Place, Version, read_versions

from tests.unit.operator.modelversion.world import START, World, in_production, model_version


def canary() -> World:
    world = in_production(1)
    world.add(model_version(2))
    world.thrive()
    assert world.stages()["bot-v2"] == "Canary"
    return world


def stage_after(world: World, **duration: float) -> str:
    world.tick(**duration)
    world.settle()
    return world.stages()["bot-v2"]


def test_a_canary_without_a_pod_does_not_move_on() -> None:
    world = canary()
    world.set_available("bot-v2", 0)
    world.settle()
    world.tick(minutes=60)
    world.set_available("bot-v2", 1)
    world.thrive()
    assert world.stages()["bot-v2"] == "Canary"
    assert stage_after(world, minutes=9) == "Canary"
    assert stage_after(world, minutes=1) == "Staging"


def test_what_counted_before_an_interruption_still_counts() -> None:
    world = canary()
    world.tick(minutes=4)
    world.set_available("bot-v2", 0)
    world.thrive_without_pods()
    assert world.status("bot-v2")["heldSeconds"] == 240
    assert "240 s of 10m counted" in next(c["message"] for c in world.status("bot-v2")["conditions"] if c["type"] == "Progressing")
    world.tick(minutes=30)
    world.set_available("bot-v2", 1)
    world.thrive()
    assert stage_after(world, minutes=5, seconds=59) == "Canary"
    assert stage_after(world, seconds=1) == "Staging"


def test_a_gateway_that_accepts_late_begins_the_hold_then() -> None:
    world = in_production(1)
    world.add(model_version(2))
    world.settle()
    world.all_ready()
    world.settle()
    assert world.stages()["bot-v2"] == "Canary"
    world.tick(minutes=20)
    world.settle()
    assert world.stages()["bot-v2"] == "Canary"
    world.accept_route()
    world.settle()
    assert stage_after(world, minutes=9, seconds=59) == "Canary"
    assert stage_after(world, seconds=1) == "Staging"


def test_a_route_that_a_person_turned_away_does_not_count() -> None:
    world = canary()
    route = world.children["HTTPRoute", "bot"]
    route["spec"]["rules"][0]["backendRefs"][1]["weight"] = 0
    route["metadata"]["generation"] += 1
    world.tick(minutes=5)
    world.thrive()
    assert stage_after(world, minutes=4) == "Canary"


def test_the_word_holding_says_until_when() -> None:
    world = canary()
    assert world.condition("bot-v2", "Progressing") == ("True", "Holding")
    assert world.plan().recheck_at == world.now + timedelta(minutes=10)


# ------------------------------------------------------------------------------------------------------- while the operator was away

MINUTE = timedelta(minutes=1)


def version(held: Hold) -> Version:
    body = model_version(2)
    body["status"] = {"stage": "Canary", "stepIndex": 0}
    read = read_versions([body])[0][0]
    return read.at(Place(read.place.stage, 0, START, hold=held))


def seen(*, ready_at: int | None, available: tuple[str, int], accepted_at: int = 0, watched_from: int | None = None) -> Observed:
    """Minutes after the start: since when the pod is ready, the Deployment's Available condition, the Gateway's acceptance."""

    def time(minutes: int) -> str:
        return (START + minutes * MINUTE).strftime("%Y-%m-%dT%H:%M:%SZ")

    world = canary()
    route = world.children["HTTPRoute", "bot"]
    for condition in route["status"]["parents"][0]["conditions"]:
        condition["lastTransitionTime"] = time(accepted_at)
    deployment = world.children["Deployment", "bot-v2"]
    status, since = available
    deployment["status"]["availableReplicas"] = int(ready_at is not None)
    deployment["status"]["conditions"] = [{"type": "Available", "status": status, "lastTransitionTime": time(since)}]
    pod = world.pods["bot-v2"]
    pod["status"]["conditions"] = [{"type": "Ready", "status": str(ready_at is not None), "lastTransitionTime": time(ready_at or 0)}]
    observed = world.observed()
    return Observed(
        deployments={"bot-v2": deployment_fact(deployment)},
        services=observed.services,
        pods=(pod_fact(pod),),
        route=observed.route,
        watched_since=None if watched_from is None else START + watched_from * MINUTE,
    )


CASES = {
    # since minute 10 it counted; it is minute 60 now
    "nothing happened": (seen(ready_at=5, available=("True", 5)), 50, 10),
    "came back in a gap between two passes": (seen(ready_at=40, available=("True", 40)), 20, 40),
    "gone since 30, seen only now": (seen(ready_at=None, available=("False", 30)), 20, None),
    "one of two gone since 30, the other older": (seen(ready_at=20, available=("False", 30)), 50, 30),
    "away, and nothing happened": (seen(ready_at=5, available=("True", 5), watched_from=60), 50, 60),
    "away, came back at 40": (seen(ready_at=40, available=("True", 40), watched_from=60), 20, 60),
    "away, gone now": (seen(ready_at=None, available=("False", 30), watched_from=60), 0, None),
    "away, refused and accepted at 50": (seen(ready_at=5, available=("True", 5), accepted_at=50, watched_from=60), 10, 60),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_proven_does_not_count(case: str) -> None:
    observed, minutes, since = CASES[case]
    now = START + 60 * MINUTE
    hold = counted(version(Hold(since=START + 10 * MINUTE)), observed, gets_its_weight=True, now=now)
    assert hold.at(now) == minutes * MINUTE
    assert hold.since == (None if since is None else START + since * MINUTE)
    assert counted(version(hold), observed, gets_its_weight=True, now=now) == hold, "a second look changes nothing"
