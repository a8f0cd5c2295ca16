"""What a stage left is no longer on the storage: it was emptied, or its claim was restored without its volume."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.core.facts import ClaimFact
from finetune_operator.core.plan import Create

from tests.unit.operator.finetunejob.test_plan import ANSWERS, World, run_to, run_to_end

MISSING = {"reason": "StageMissing", "message": "nothing of stage prepare, which comes before, is at pvc://c/jobs/u"}


def end_missing(world: World, name: str) -> None:
    world.end(name, MISSING, 15)


def command(world: World) -> list[str]:
    """Of the Job that the next pass makes."""
    (create,) = [action for action in world.step().actions if isinstance(action, Create)]
    arguments: list[str] = create.body["spec"]["template"]["spec"]["containers"][0]["command"][3:]
    return arguments


def answer(world: World, name: str, said: dict[str, Any]) -> None:
    world.end(name, said)
    world.step()


def test_the_first_answer_has_the_stages_before_it_looked_for_without_a_gpu() -> None:
    world = run_to("package")
    end_missing(world, "job-package-1")
    made = world.step()
    assert made.actions == ()
    assert world.condition("Packaged")["reason"] == "Retrying"
    assert "run again where they are gone" in world.condition("Packaged")["message"]
    assert world.condition("Packaged")["message"].startswith("StageMissing: nothing of stage prepare")
    assert [world.condition(type)["status"] for type in ("Prepared", "Trained")] == ["False", "False"]
    assert "checkpoint" not in world.job["status"], "it lay on the storage that is empty"
    assert command(world) == ["prepare", "--report"]


def test_what_is_still_there_is_not_done_again() -> None:
    """A storage that shows what one node wrote on another one late."""
    world = run_to("package")
    end_missing(world, "job-package-1")
    world.step()
    assert command(world) == ["prepare", "--report"]
    answer(world, "job-prepare-2", ANSWERS["prepare"])
    assert command(world) == ["train", "--report"]
    answer(world, "job-train-2", ANSWERS["train"])
    assert world.job["status"]["attempt"] | {"notBefore": ""} == {"stage": "package", "number": 2, "failures": 1, "notBefore": ""}
    assert world.job["status"]["checkpoint"]["step"] == 5
    world.now += (world.step().recheck_at or world.now) - world.now
    assert command(world) == ["package"]


def test_what_is_gone_is_made_anew_and_then_the_run_goes_on() -> None:
    world = run_to("package")
    end_missing(world, "job-package-1")
    world.step()
    assert command(world) == ["prepare", "--report"]
    end_missing(world, "job-prepare-2")
    world.step()
    assert command(world) == ["prepare"]
    answer(world, "job-prepare-3", ANSWERS["prepare"])
    assert command(world) == ["train", "--report"]
    end_missing(world, "job-train-2")
    world.step()
    assert command(world) == ["train"]
    answer(world, "job-train-3", ANSWERS["train"])
    world.now += (world.step().recheck_at or world.now) - world.now
    assert command(world) == ["package"]
    answer(world, "job-package-2", ANSWERS["package"])
    assert command(world) == ["evaluate"]
    counted = [(record["stage"], record["number"]) for record in world.job["status"]["attempts"] if record["counted"]]
    assert counted == [("package", 1)]


def test_storage_that_loses_it_again_ends_the_run_with_the_cause() -> None:
    world = run_to("train")
    end_missing(world, "job-train-1")
    world.step()
    world.step()
    end_missing(world, "job-prepare-2")
    world.step()
    world.step()
    answer(world, "job-prepare-3", ANSWERS["prepare"])
    world.now += (world.step().recheck_at or world.now) - world.now
    world.step()
    end_missing(world, "job-train-2")
    world.step()
    world.step()
    end_missing(world, "job-prepare-4")
    world.step()
    assert world.condition("Succeeded")["reason"] == "StageMissing"
    assert "for the second time" in world.condition("Succeeded")["message"]
    assert "Another job runs all stages" in world.condition("Succeeded")["message"]


def test_the_last_attempt_says_what_a_person_can_do_and_promises_nothing() -> None:
    world = World()
    world.job["spec"]["recovery"] = {"maxAttempts": 1}
    run_to("train", world)
    end_missing(world, "job-train-1")
    world.step()
    message = world.condition("Succeeded")["message"]
    assert message.endswith("Another job runs all stages (attempt 1 of 1)")


def test_a_report_that_finds_nothing_uses_up_no_attempt() -> None:
    world = World()
    world.job["spec"]["recovery"] = {"maxAttempts": 1}
    run_to("train", world)
    world.set_job("job-train-1", state="Complete")
    world.step()
    world.step()
    end_missing(world, "job-train-2")
    world.step()
    assert world.condition("Succeeded")["status"] == "Unknown"
    assert command(world) == ["train"]


def lose_claim(world: World) -> str:
    (name,) = [name for name in world.observed.claims if name != "base"]
    world.observed = replace(world.observed, claims={**world.observed.claims, name: None})
    return name


def restore_claim(world: World, name: str) -> None:
    world.observed = replace(world.observed, claims={**world.observed.claims, name: ClaimFact(name, "another", "9", phase="Bound")})


def test_a_claim_that_came_back_is_looked_through_before_a_gpu_is_taken() -> None:
    world = run_to("train")
    world.end("job-train-1", None, 143, disruption="EvictionByEvictionAPI")
    name = lose_claim(world)
    world.step()
    world.step()
    assert world.condition("Trained")["reason"] == "ClaimLost"
    restore_claim(world, name)
    world.step()
    assert command(world) == ["prepare", "--report"]
    answer(world, "job-prepare-2", ANSWERS["prepare"])
    assert command(world) == ["train"]
    assert world.job["status"]["attempt"]["failures"] == 0


def test_a_claim_that_is_lost_while_stages_are_looked_for_is_not_replaced_by_an_empty_one() -> None:
    world = run_to("train")
    end_missing(world, "job-train-1")
    world.step()
    lose_claim(world)
    made = world.step()
    assert made.actions == ()
    assert world.condition("Prepared")["reason"] == "ClaimLost"


def test_a_result_is_not_registered_before_the_claim_that_came_back_was_looked_through() -> None:
    world = run_to("evaluate")
    world.end("job-evaluate-1", ANSWERS["evaluate"])
    name = lose_claim(world)
    world.step()
    assert world.condition("Published")["reason"] == "ClaimLost"
    restore_claim(world, name)
    world.step()
    for stage in ("prepare", "train", "package"):
        assert command(world) == [stage, "--report"]
        answer(world, f"job-{stage}-2", ANSWERS[stage])
    for _ in range(6):
        world.step()
    assert world.condition("Succeeded")["status"] == "True"
    assert [version.name for version in world.observed.versions] == ["bot-v1"]


def test_an_evaluation_of_what_is_made_anew_is_looked_for_as_well() -> None:
    world = run_to("evaluate")
    world.end("job-evaluate-1", ANSWERS["evaluate"])
    name = lose_claim(world)
    world.step()
    restore_claim(world, name)
    world.step()
    for stage in ("prepare", "train", "package"):
        assert command(world) == [stage, "--report"]
        end_missing(world, f"job-{stage}-2")
        world.step()
        assert command(world) == [stage]
        answer(world, f"job-{stage}-3", ANSWERS[stage])
    assert command(world) == ["evaluate", "--report"]


@pytest.mark.parametrize("stage", ["train", "package", "evaluate"])
def test_a_whole_run_has_each_stage_once_where_nothing_is_lost(stage: str) -> None:
    world = run_to_end(run_to(stage))
    assert {job.attempt for job in world.observed.jobs} == {1}
