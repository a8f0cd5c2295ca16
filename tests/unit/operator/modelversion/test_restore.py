"""Versions whose status is lost, deleted and made again: which place they find, and that nobody skips a step."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.core.names import Object

from tests.unit.operator.modelversion.world import World, in_production, model_version

NONE = {"type": "None"}


def lose(world: World, *names: str) -> None:
    for name in names or world.versions:
        world.versions[name].pop("status", None)


def recreate(world: World, name: str, **spec: Any) -> None:
    """Deleted with its children, and created again before the operator looks."""
    number = int(name.rpartition("v")[2])
    for key in [key for key in world.children if key[1] == name]:
        del world.children[key]
    body = model_version(number, **spec)
    body["metadata"]["uid"] = f"again-{name}"
    world.versions[name] = body


def others_files(body: Object) -> None:
    body["spec"]["artifacts"][1]["sha256"] = "cd" * 32


def walk(world: World, rounds: int = 4) -> None:
    for _ in range(rounds):
        world.thrive()
        world.tick(minutes=10)
    world.thrive()


@pytest.mark.parametrize("number", [1, 2])
def test_a_former_version_that_is_made_again_never_becomes_a_second_production(number: int) -> None:
    world = in_production(1, 2, 3)
    recreate(world, f"bot-v{number}")
    walk(world)
    assert world.stages() == {"bot-v1": "Archived", "bot-v2": "Archived", "bot-v3": "Production"}
    assert world.routed() == {"bot-v3": 100}
    assert "older than bot-v3, which is in production" in world.status(f"bot-v{number}")["history"][-1]["why"]


def test_a_former_production_version_that_is_made_again_can_still_return() -> None:
    world = in_production(1, 2, 3)
    recreate(world, "bot-v2")
    world.thrive()
    world.edit("bot-v3", abort=True)
    world.thrive()
    assert world.stages() == {"bot-v1": "Archived", "bot-v2": "Production", "bot-v3": "RolledBack"}


@pytest.mark.parametrize("traffic", [None, NONE])
def test_an_older_version_without_status_does_not_replace_a_newer_one(traffic: Object | None) -> None:
    steps = [] if traffic else None
    world = World()
    world.add(model_version(5, traffic=traffic, steps=steps))
    walk(world)
    world.add(model_version(3, traffic=traffic, steps=steps))
    walk(world)
    assert world.stages() == {"bot-v5": "Production", "bot-v3": "Archived"}


@pytest.mark.parametrize("approval", ["Automatic", "Manual"])
def test_versions_created_while_the_operator_was_away_walk_their_steps(approval: str) -> None:
    world = World()
    world.add(*(model_version(number, approval=approval) for number in (1, 2, 3)))
    world.run_pass()
    assert set(world.stages().values()) == {"Registered"}
    world.all_ready()
    world.thrive()
    assert "Production" not in world.stages().values()
    assert set(world.stages().values()) == {"Canary"}
    if approval == "Manual":
        walk(world)
        assert set(world.stages().values()) == {"Canary"}


def test_nobody_is_in_production_before_its_pods_answered() -> None:
    world = World()
    world.add(model_version(1, steps=[]), model_version(2, steps=[]))
    world.settle()
    assert set(world.stages().values()) == {"Registered"}


def test_the_production_version_made_again_keeps_its_place_by_the_route() -> None:
    world = in_production(1, 2)
    recreate(world, "bot-v2")
    world.run_pass()
    assert world.stages() == {"bot-v1": "Archived", "bot-v2": "Production"}


def test_the_production_version_made_again_keeps_its_place_by_the_former_ones_word() -> None:
    world = in_production(1, 2, traffic=NONE, steps=[])
    recreate(world, "bot-v2", traffic=NONE, steps=[])
    world.run_pass()
    assert world.stages() == {"bot-v1": "Archived", "bot-v2": "Production"}


@pytest.mark.parametrize("traffic", [None, NONE])
def test_other_files_under_the_name_of_the_production_version_walk_their_steps(traffic: Object | None) -> None:
    steps = [] if traffic else None
    world = in_production(1, 2, traffic=traffic, steps=steps)
    recreate(world, "bot-v2", traffic=traffic, steps=steps)
    others_files(world.versions["bot-v2"])
    world.run_pass()
    assert world.stages() == {"bot-v1": "Production", "bot-v2": "Registered"}


def test_a_status_lost_in_the_middle_of_the_way_goes_on_there() -> None:
    world = in_production(1)
    world.add(model_version(2))
    world.thrive()
    world.tick(minutes=10)
    world.thrive()
    lose(world, "bot-v2")
    world.run_pass()
    assert world.stages() == {"bot-v1": "Production", "bot-v2": "Staging"}


@pytest.mark.parametrize("killed_after", range(1, 4))
def test_a_restore_goes_on_where_it_was_killed(killed_after: int) -> None:
    world = in_production(1, 2)
    world.add(model_version(3))
    world.thrive()
    lose(world)
    world.run_pass(writes=killed_after)
    world.thrive()
    assert world.stages() == {"bot-v1": "Archived", "bot-v2": "Production", "bot-v3": "Canary"}


def test_two_in_production_that_an_older_operator_left_become_one() -> None:
    world = in_production(1, 2, 3)
    world.status("bot-v2").update(stage="Production", stepIndex=2)
    world.thrive()
    assert world.stages() == {"bot-v1": "Archived", "bot-v2": "Archived", "bot-v3": "Production"}
    assert world.status("bot-v2")["replacedBy"] == "bot-v3"


def test_an_aborted_version_without_status_takes_nothing() -> None:
    world = World()
    world.add(model_version(1), model_version(2, abort=True))
    walk(world)
    assert world.stages() == {"bot-v1": "Production", "bot-v2": "RolledBack"}


def test_a_production_version_whose_abort_was_refused_keeps_its_place() -> None:
    world = in_production(1)
    world.edit("bot-v1", abort=True)
    world.thrive()
    lose(world)
    world.thrive()
    assert (world.stages(), world.routed()) == ({"bot-v1": "Production"}, {"bot-v1": 100})
