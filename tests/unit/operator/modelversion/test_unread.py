"""A version in traffic of which something cannot be read: it stays as it is, and the others go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from finetune_operator.core.names import Object
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.operator.modelversion.world import World, canary, in_production, model_version

SPOILT: dict[str, Callable[[Object], Any]] = {
    "a member of a newer release": lambda version: version["spec"]["serving"].update(vllm={"dtype": "auto"}),
    "a rollout that is none": lambda version: version["spec"].update(rollout={"traffic": {"type": "Magic"}}),
    "steps that are none": lambda version: version["spec"]["rollout"].update(steps="soon"),
    "a status that a hand wrote": lambda version: version["status"].update(heldSince="yesterday"),
    "a lifecycle of a newer release": lambda version: version["spec"].update(lifecycle="Frozen"),
}


def spoil(world: World, name: str, how: str) -> Callable[[], None]:
    """Returns what mends it."""
    sound = world.copy().versions[name]
    SPOILT[how](world.versions[name])

    def mend() -> None:
        status = world.versions[name]["status"] if "status" not in how else sound["status"]
        world.versions[name] = {**sound, "status": status}

    return mend


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("name", ["bot-v1", "bot-v2"])
def test_traffic_stays_as_it_is(name: str, how: str) -> None:
    world = canary()
    before = {key: world.copy().children[key] for key in world.children}
    spoil(world, name, how)
    for _ in range(3):
        world.thrive()
        world.tick(minutes=11)
    assert world.routed() == {"bot-v1": 95, "bot-v2": 5}
    assert world.stages() == {"bot-v1": "Production", "bot-v2": "Canary"}
    assert {key: child["spec"] for key, child in world.children.items()} == {key: child["spec"] for key, child in before.items()}
    assert world.condition(name, "Stalled") in [("True", "InvalidSpec"), ("True", "InvalidStatus")]
    assert world.children["HTTPRoute", "bot"]["metadata"]["annotations"] == before["HTTPRoute", "bot"]["metadata"]["annotations"]


@pytest.mark.parametrize("how", SPOILT)
def test_a_canary_is_rolled_back_beside_a_production_version_that_cannot_be_read(how: str) -> None:
    world = canary()
    spoil(world, "bot-v1", how)
    world.edit("bot-v2", abort=True)
    world.thrive()
    assert world.stages()["bot-v2"] == "RolledBack"
    assert world.routed() == {"bot-v1": 100}


@pytest.mark.parametrize("how", SPOILT)
def test_production_follows_its_spec_beside_a_canary_that_cannot_be_read(how: str) -> None:
    world = canary()
    spoil(world, "bot-v2", how)
    world.versions["bot-v1"]["spec"]["serving"]["replicas"] = 3
    world.children["HTTPRoute", "bot"]["spec"]["rules"][0]["backendRefs"][1]["weight"] = 50
    world.thrive()
    assert world.children["Deployment", "bot-v1"]["spec"]["replicas"] == 3
    assert world.routed() == {"bot-v1": 95, "bot-v2": 5}


@pytest.mark.parametrize("how", SPOILT)
def test_the_former_version_returns_for_an_aborted_one_beside_a_canary_that_cannot_be_read(how: str) -> None:
    world = in_production(1, 2)
    world.add(model_version(3))
    world.thrive()
    assert world.stages()["bot-v3"] == "Canary"
    spoil(world, "bot-v3", how)
    world.edit("bot-v2", abort=True)
    world.thrive()
    assert world.stages() == {"bot-v1": "Production", "bot-v2": "RolledBack", "bot-v3": "Canary"}
    assert world.routed() == {"bot-v1": 95, "bot-v3": 5}


@pytest.mark.parametrize("how", SPOILT)
def test_a_new_version_starts_its_pods_and_says_what_it_waits_for(how: str) -> None:
    world = in_production(1)
    spoil(world, "bot-v1", how)
    world.add(model_version(2))
    world.thrive()
    assert ("Deployment", "bot-v2") in world.children
    assert world.stages()["bot-v2"] == "Registered"
    (told,) = [c["message"] for c in world.status("bot-v2")["conditions"] if c["type"] == "Progressing"]
    assert "bot-v1 cannot be read" in told


def test_a_share_that_its_pods_lost_for_a_moment_comes_back() -> None:
    world = canary()
    spoil(world, "bot-v2", "a member of a newer release")
    world.set_available("bot-v2", 0)
    world.thrive_without_pods()
    assert world.routed()["bot-v1"] == 100
    world.thrive()
    assert world.routed() == {"bot-v1": 95, "bot-v2": 5}


def test_one_whose_artifacts_cannot_be_read_stops_the_model() -> None:
    world = canary()
    world.versions["bot-v2"]["spec"]["artifacts"] = []
    world.edit("bot-v1", paused=True)
    assert world.plan().actions == ()


def flap(world: World) -> None:
    if ("Deployment", "bot-v2") in world.children:
        world.set_available("bot-v2", 0)


def add_another(world: World) -> None:
    if "bot-v3" not in world.versions:
        world.add(model_version(3))


MOMENTS: dict[str, Callable[[World], Any]] = {
    "thrive": lambda world: world.thrive(),
    "tick": lambda world: world.tick(minutes=7),
    "flap": flap,
    "edit route": lambda world: world.children["HTTPRoute", "bot"]["spec"]["rules"][0]["backendRefs"][0].update(weight=1),
    "abort": lambda world: world.versions["bot-v2"]["spec"].setdefault("rollout", {}).update(abort=True),
    "retire": lambda world: world.versions["bot-v2"]["spec"].update(lifecycle="Retired"),
    "another version": add_another,
}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(["bot-v1", "bot-v2"]), st.sampled_from(sorted(SPOILT)), st.lists(st.sampled_from(sorted(MOMENTS)), max_size=8))
def test_whatever_happens_it_stays_and_the_rollout_goes_on_once_it_is_mended(name: str, how: str, moments: list[str]) -> None:
    world = canary()
    mend = spoil(world, name, how)
    stage = world.stages()[name]
    pods = world.copy().children["Deployment", name]["spec"]
    for moment in moments:
        MOMENTS[moment](world)
        world.settle()
        assert world.stages()[name] == stage
        assert world.children["Deployment", name]["spec"] == pods
        assert sum(world.routed().values()) == 100
        assert world.routed().get("bot-v2", 0) in (0, 5)
    mend()
    for _ in range(12):
        world.thrive()
        world.tick(minutes=11)
    in_production = [name for name, stage in world.stages().items() if stage == "Production"]
    assert world.routed() == {in_production[0]: 100}
