"""What people, quotas, nodes and queues do to a run's Jobs and pods while it goes on."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.core.names import claim_name
from finetune_operator.core.plan import ActionProblem, Create, Delete
from finetune_operator.core.refusal import never_fits, steady
from finetune_operator.finetunejob.observed import PodFact

from tests.unit.operator.finetunejob.test_plan import ANSWERS, NOW, World, report, run_to

CHECKPOINT = ANSWERS["train"]["checkpoint"]
STOPPED = '{"stage": "train", "reason": "Terminated", "checkpoint": {"step": 40, "uri": "pvc://c/40", "digest": "d", "time": "t"}}'


def pod(**facts: Any) -> PodFact:
    return PodFact(**{"name": "p", "uid": "u", "phase": "Running", "node": "n1", **facts})


def orphaned(world: World, **facts: Any) -> None:
    """The stage's Job is deleted by hand, and its pod is still there."""
    world.observed = replace(
        world.observed, jobs=tuple(job for job in world.observed.jobs if job.stage != "train"), orphans=(pod(**facts),)
    )


# ----------------------------------------------------------------------------------------------------------------- deleted by hand


def test_a_job_deleted_by_hand_gets_no_successor_while_its_pod_is_alive() -> None:
    world = run_to("train")
    orphaned(world, deleting=True, gone_by=NOW + timedelta(seconds=120))
    made = world.step()
    assert made.actions == ()
    assert world.condition("Trained")["reason"] == "Stopping"
    world.step(orphans=())
    assert world.live() == ["job-train-1"]


def test_a_pod_that_was_orphaned_for_good_is_told_and_not_stopped() -> None:
    world = run_to("train")
    orphaned(world)
    made = world.step()
    assert made.actions == ()
    assert made.recheck_at is not None
    assert (world.condition("Trained")["reason"], world.condition("Stalled")["status"]) == ("FormerPodAlive", "False")
    assert "kubectl delete pod p" in world.condition("Trained")["message"]
    world.step(orphans=(pod(phase="Succeeded"),))
    assert world.live() == ["job-train-1"]


def test_what_an_orphan_saved_is_in_status() -> None:
    world = run_to("train")
    orphaned(world, phase="Failed", message=STOPPED)
    world.step()
    assert world.job["status"]["checkpoint"]["step"] == 40


def test_a_suspended_run_is_suspended_only_when_its_orphans_have_ended() -> None:
    world = run_to("train")
    orphaned(world)
    world.job["spec"]["suspend"] = True
    world.step()
    assert world.condition("Suspended")["reason"] == "Suspending"
    assert "kubectl delete pod p" in world.condition("Stalled")["message"]
    world.step(orphans=())
    assert (world.condition("Suspended")["status"], world.condition("Stalled")["status"]) == ("True", "False")


def test_an_attempt_that_failed_gets_no_successor_while_its_pod_is_alive() -> None:
    """FailureTarget comes before the pod's end."""
    world = run_to("train")
    alive = pod(deleting=True, gone_by=NOW + timedelta(seconds=120))
    world.set_job("job-train-1", state="Failed", finished_at=NOW - timedelta(seconds=20), pods=(alive,))
    for _ in range(3):
        world.step()
        world.now += timedelta(seconds=15)
    assert world.live() == []
    world.set_job("job-train-1", pods=(replace(alive, phase="Failed"),))
    world.step()
    assert world.live() == ["job-train-2"]


def test_no_more_jobs_of_a_stage_are_kept_than_status_tells_of() -> None:
    world = run_to("train")
    for number in range(1, 26):
        world.end(f"job-train-{number}", None, 143, disruption="PreemptionByScheduler")
        world.step()
        world.now += timedelta(minutes=6)
        world.step()
        world.observed = replace(world.observed, jobs=tuple(job for job in world.observed.jobs if not job.deleting))
    assert next(job.name for job in world.observed.jobs if job.stage == "train") == "job-train-7"
    assert "job-prepare-1" in [job.name for job in world.observed.jobs]


# ------------------------------------------------------------------------------------------------------------------- interruptions


def test_interruptions_in_a_row_wait_longer_and_longer() -> None:
    world = run_to("train")
    waits = []
    for number in range(1, 10):
        world.end(f"job-train-{number}", None, 143, disruption="PreemptionByScheduler")
        world.step()
        made = world.step()
        waits.append((made.recheck_at - world.now).total_seconds() if made.recheck_at else 0)
        world.now += timedelta(seconds=waits[-1])
        world.step()
        assert world.live() == [f"job-train-{number + 1}"]
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300, 300]
    assert world.job["status"]["attempt"]["failures"] == 0


def test_many_interruptions_in_a_row_are_told_to_a_person_while_nothing_runs() -> None:
    world = run_to("train")
    stalled = []
    for number in range(1, 7):
        world.end(f"job-train-{number}", None, -1, phase="Failed", terminated_reason="UnexpectedAdmissionError", began=False)
        world.step()
        world.step()
        stalled.append(world.condition("Stalled")["status"])
        world.now += timedelta(minutes=6)
        world.step()
        assert world.condition("Stalled")["status"] == "False"
    assert stalled == ["False"] * 4 + ["True"] * 2


def test_what_an_older_pod_says_late_is_no_news() -> None:
    world = run_to("train")
    world.job["status"]["checkpoint"] = {"step": 60, "uri": "pvc://c/60", "digest": "d", "time": "t"}
    orphaned(world, phase="Failed", message=STOPPED)
    world.step()
    assert world.job["status"]["checkpoint"]["step"] == 60


def test_an_attempt_that_worked_for_a_while_forgets_what_was_before() -> None:
    world = run_to("train")
    for number in (1, 2, 3):
        world.now += timedelta(minutes=11)
        world.end(f"job-train-{number}", None, 143, disruption="PreemptionByScheduler")
        world.step()
        world.step()
        assert world.live() == [f"job-train-{number + 1}"]


REJECTED = {
    "a device that is gone": ("UnexpectedAdmissionError", "PodRejected"),
    "no room after all": ("OutOfcpu", "PodRejected"),
    "a node without its label": ("NodeAffinity", "PodRejected"),
    "a full disk": ("Evicted", "PodRejected"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_a_pod_that_its_node_turned_away_uses_up_no_attempt(case: str) -> None:
    words, reason = REJECTED[case]
    world = run_to("train")
    for number in range(1, 5):
        world.end(f"job-train-{number}", None, -1, phase="Failed", terminated_reason=words, began=False)
        world.step()
        world.now += timedelta(minutes=6)
        world.step()
    assert world.condition("Succeeded")["status"] == "Unknown"
    records = world.job["status"]["attempts"]
    assert [(record["reason"], record["counted"]) for record in records] == [(reason, False)] * 4
    assert words in records[0]["message"]


def test_a_node_that_went_down_under_a_pod_uses_up_no_attempt() -> None:
    world = run_to("train")
    world.end("job-train-1", None, 137, terminated_reason="ContainerStatusUnknown")
    world.step()
    record = world.job["status"]["attempts"][-1]
    assert (record["reason"], record["counted"]) == ("NodeLost", False)


# ----------------------------------------------------------------------------------------------------- what ends or stops a stage


def under_way() -> World:
    world = run_to("train")
    world.set_job("job-train-1", pods=(pod(),))
    world.step(progress=report(42))
    assert world.job["status"]["display"]["eta"] == "1h24m"
    return world


def test_a_suspended_run_shows_no_time_at_which_it_will_be_done() -> None:
    world = under_way()
    world.job["spec"]["suspend"] = True
    world.step(progress=None)
    assert world.condition("Trained")["reason"] == "Suspending"
    world.step(jobs=())
    assert world.job["status"]["display"] == {"progress": "42%", "eta": "", "loss": "1.23"}
    assert (world.condition("Trained")["reason"], world.condition("Succeeded")["reason"]) == ("Suspended", "Suspended")


@pytest.mark.parametrize("code", [1, 143])
def test_an_attempt_that_waits_for_its_pod_shows_no_time_either(code: int) -> None:
    world = under_way()
    world.end("job-train-1", None, code)
    world.step(progress=None)
    assert world.job["status"]["display"]["eta"] == ""
    assert "Succeeded" not in world.condition("Succeeded")["reason"]
    assert world.condition("Succeeded")["reason"] == world.condition("Trained")["reason"] == "Retrying"


def test_the_deadline_ends_the_stage_and_says_what_was_saved_last() -> None:
    world = under_way()
    world.job["status"]["checkpoint"] = CHECKPOINT
    world.job["spec"]["activeDeadlineSeconds"] = 30
    world.now += timedelta(seconds=47)
    (stop,) = world.step(progress=None).actions
    assert isinstance(stop, Delete)
    assert "active for 47 s" in world.condition("Succeeded")["message"]
    assert "step 5" in world.condition("Succeeded")["message"]
    assert (world.condition("Trained")["reason"], world.job["status"]["activeSeconds"]) == ("DeadlineExceeded", 47)
    assert world.job["status"]["attempts"][-1]["reason"] == "DeadlineExceeded"
    assert world.job["status"]["display"]["eta"] == ""
    world.set_job("job-train-1", pods=(pod(phase="Failed", message=STOPPED, deleting=True),))
    for _ in range(2):
        assert world.step().actions == ()
        assert world.job["status"]["checkpoint"]["step"] == world.job["status"]["progress"]["step"] == 40
        for condition in ("Succeeded", "Stalled"):
            assert world.condition(condition)["message"].endswith("; the last checkpoint (step 40) is at pvc://c/40")
            assert "step 5" not in world.condition(condition)["message"]


def test_a_final_failure_keeps_the_end_of_the_stages_that_were_done() -> None:
    world = under_way()
    world.job["spec"]["activeDeadlineSeconds"] = 30
    world.now += timedelta(seconds=47)
    world.step()
    assert world.condition("Prepared")["status"] == "True"


@pytest.mark.parametrize("kind", ["Job", "PersistentVolumeClaim"])
def test_what_is_refused_is_not_under_way(kind: str) -> None:
    world = World()
    world.step()
    metadata = world.job["metadata"]
    name = "job-prepare-1" if kind == "Job" else claim_name(metadata["name"], metadata["uid"])
    world.step(problems=(ActionProblem(kind, name, "QuotaExceeded", "exceeded quota: team"),))  # type: ignore[arg-type]
    for condition in ("Prepared", "Succeeded"):
        assert world.condition(condition)["reason"] == "QuotaExceeded"
        assert "exceeded quota: team" in world.condition(condition)["message"]
    world.set_job("job-prepare-1", pods=(pod(),))
    world.step(problems=())
    assert world.condition("Prepared")["reason"] == world.condition("Succeeded")["reason"] == "Running"


def test_the_reason_of_a_run_is_what_it_is_at() -> None:
    world = run_to("train")
    assert world.condition("Succeeded")["reason"] == "Running"
    assert "train" in world.condition("Succeeded")["message"]
    waiting = pod(phase="Pending", waiting=("ErrImagePull", "no such image"))
    world.set_job("job-train-1", pods=(waiting,))
    world.step()
    assert (world.condition("Succeeded")["status"], world.condition("Succeeded")["reason"]) == ("Unknown", "ErrImagePull")


def test_a_pull_that_fails_again_and_again_is_written_once() -> None:
    world = run_to("train")
    told = []
    for reason, message in [("ErrImagePull", "no such image"), ("ImagePullBackOff", "Back-off")] * 3:
        world.set_job("job-train-1", pods=(pod(phase="Pending", waiting=(reason, message)),))
        made = world.step()
        told.append((world.condition("Stalled")["reason"], world.condition("Trained")["message"], len(made.events)))
    assert {(reason, message) for reason, message, _ in told} == {("ErrImagePull", told[0][1])}
    assert "no such image" in told[0][1]
    assert "another spec.image takes another job" in told[0][1]
    assert sum(events for _, _, events in told) == 1


@pytest.mark.parametrize("edit", [{"suspend": True}, {"activeDeadlineSeconds": 1}])
def test_a_run_whose_spec_was_changed_can_be_stopped(edit: dict[str, Any]) -> None:
    world = under_way()
    world.job["spec"] |= {"training": {"args": {"adam_beta1": 0.5}}, **edit}
    world.now += timedelta(seconds=9)
    made = world.step()
    assert [type(action) for action in made.actions] == [Delete]
    assert not any(isinstance(action, Create) for action in world.step(jobs=()).actions)


# -------------------------------------------------------------------------------------------------------------------- quota races

RACE = "exceeded quota: team, requested: pods=1, used: pods=1, limited: pods=1"
NEVER = "exceeded quota: team, requested: requests.memory=8Gi,pods=1, used: pods=0,requests.memory=0, limited: pods=9,requests.memory=4Gi"


def test_a_quota_race_needs_no_person_unless_it_lasts() -> None:
    world = run_to("train")
    world.set_job("job-train-1", refused=RACE)
    made = world.step()
    assert (world.condition("Trained")["reason"], world.condition("Stalled")["status"]) == ("PodRefused", "False")
    assert made.recheck_at is not None
    world.now = made.recheck_at
    world.step()
    assert (world.condition("Stalled")["status"], world.condition("Stalled")["message"]) == ("True", RACE)


def test_a_quota_that_could_never_be_met_needs_one_at_once() -> None:
    world = run_to("train")
    world.set_job("job-train-1", refused=NEVER)
    world.step()
    assert world.condition("Stalled")["reason"] == "PodRefused"


@pytest.mark.parametrize(("words", "never"), [(RACE, False), (NEVER, True), ("exceeded quota", False), ("", False)])
def test_a_quota_by_its_words(words: str, never: bool) -> None:
    assert never_fits(words) is never


def test_a_random_name_is_no_news() -> None:
    told = {steady(f'Error creating: pods "demo-train-1-0-{end}" is forbidden: no') for end in ("x7k2j", "bcdfg", "44444")}
    assert told == {'Error creating: pods "demo-train-1-0" is forbidden: no'}
    assert steady('pods "demo-train-1" is forbidden') == 'pods "demo-train-1" is forbidden'
