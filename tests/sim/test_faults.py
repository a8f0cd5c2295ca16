"""Lost events, refused and unanswered requests, conflicts: the same end, and a second pass does nothing."""

from __future__ import annotations

import asyncio
import random

import pytest
from finetune_api.run import Stage
from finetune_operator.kube.client import Request

from tests.sim.cluster import Cluster, Refusal
from tests.sim.operator_process import OperatorProcess
from tests.sim.scenario import JOB, NAMESPACE, Life, make_job, verdict


def undisturbed() -> object:
    life = Life()
    life.submit()
    asyncio.run(life.run())
    return verdict(life)


def idle_writes(cluster: Cluster) -> int:
    """Requests to change something of an operator that starts anew and looks at everything, then again after a resync."""

    async def look() -> int:
        before = len(cluster.asked)
        operator = OperatorProcess(cluster, random.Random(0))
        await operator.start()
        await operator.settle()
        operator.mark_all()
        await operator.resync()
        await operator.settle()
        return len(cluster.asked) - before

    return asyncio.run(look())


@pytest.mark.parametrize("seed", range(8))
def test_lost_events_are_found_by_the_resync(seed: int) -> None:
    life = Life(seed=seed, lose=0.3)
    life.submit()
    asyncio.run(life.run())
    assert verdict(life) == undisturbed()
    assert all(len(pods) == 1 for pods in life.kubelet.started.values())


@pytest.mark.parametrize("seed", range(8))
def test_requests_that_fail_before_or_after_they_took_effect(seed: int) -> None:
    life = Life(seed=seed)
    faults = {"before": 0, "after": 0}

    def fail_before(request: Request) -> None:
        if life.rng.random() < 0.15:
            faults["before"] += 1
            raise life.rng.choice([TimeoutError("slow"), ConnectionResetError("reset")])

    def fail_after(request: Request, writes: int) -> None:
        if writes and life.rng.random() < 0.4:
            faults["after"] += 1
            raise TimeoutError("the answer was lost")

    life.submit()
    life.cluster.before, life.cluster.after = fail_before, fail_after
    start = OperatorProcess.start

    async def start_undisturbed(operator: OperatorProcess) -> None:
        life.cluster.before = lambda request: None
        await start(operator)
        life.cluster.before = fail_before

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OperatorProcess, "start", start_undisturbed)
        asyncio.run(life.run())
    assert faults["before"] > 0
    assert faults["after"] > 0
    assert verdict(life) == undisturbed()
    assert all(len(pods) == 1 for pods in life.kubelet.started.values())


def test_an_api_that_answers_500_for_a_while_is_told_and_then_forgotten() -> None:
    life = Life()
    life.submit()
    broken = True

    def fail(body: object) -> None:
        if broken and body["kind"] == "Job":  # type: ignore[index]
            raise Refusal(500, "InternalError", "failed calling webhook")

    life.cluster.admit = fail
    asyncio.run(life.run(until=lambda cluster: _reason(cluster) == "ApiError"))
    assert "failed calling webhook" in life.condition("ResourcesApplied")["message"]
    broken = False
    asyncio.run(life.run())
    assert verdict(life) == undisturbed()


def _reason(cluster: Cluster, type: str = "ResourcesApplied") -> str:
    conditions = (cluster.objects[JOB].get("status") or {}).get("conditions", [])
    return next((condition["reason"] for condition in conditions if condition["type"] == type), "")


def test_a_refusal_is_told_in_the_words_of_the_api_and_healed_when_its_cause_is_gone() -> None:
    life = Life()
    life.submit()
    words = 'pods "demo-prepare-1-" is forbidden: violates PodSecurity "restricted:latest"'

    def refuse(body: object) -> None:
        if body["kind"] == "Pod":  # type: ignore[index]
            raise Refusal(403, "Forbidden", words)

    life.cluster.admit = refuse
    asyncio.run(life.run(until=lambda cluster: _reason(cluster, "Validated") == "Forbidden"))
    assert words in life.condition("Validated")["message"]
    assert not [id for id in life.cluster.objects if id[0] == "jobs"], "a Job was made though its pod is refused"
    told_after = len(life.cluster.writes)
    life.cluster.admit = lambda body: None
    asyncio.run(life.run())
    assert verdict(life) == undisturbed()
    assert told_after <= 4


def test_a_lasting_refusal_is_written_once() -> None:
    life = Life()
    life.submit()

    def refuse(body: object) -> None:
        if body["kind"] == "Job":  # type: ignore[index]
            raise Refusal(403, "Forbidden", "exceeded quota: count/jobs.batch=0")

    life.cluster.admit = refuse
    asyncio.run(life.run(until=lambda cluster: _reason(cluster, "Stalled") == "QuotaExceeded"))
    assert life.condition("ResourcesApplied")["reason"] == "QuotaExceeded"
    written = len(life.cluster.writes)
    hour = life.cluster.now.replace(hour=1)
    asyncio.run(life.run(until=lambda cluster: cluster.now >= hour))
    assert len(life.cluster.writes) == written


def test_a_status_that_cannot_be_read_is_told_once_and_the_run_goes_on_when_it_is_mended() -> None:
    life = Life()
    life.submit()
    asyncio.run(life.run(until=lambda cluster: ("jobs", NAMESPACE, "demo-train-1") in cluster.objects))
    started = life.status()["startTime"]
    life.cluster.set_status(JOB, {**life.status(), "startTime": "yesterday"})
    asyncio.run(life.run(until=lambda cluster: _reason(cluster, "Stalled") == "InvalidStatus"))
    written = len(life.cluster.writes)
    asyncio.run(life.run())
    assert len(life.cluster.writes) == written
    assert [event["reason"] for event in life.cluster.events].count("InvalidStatus") == 1
    life.cluster.set_status(JOB, {**life.status(), "startTime": started})
    asyncio.run(life.run())
    assert verdict(life) == undisturbed()


def test_another_pass_over_what_is_done_writes_nothing() -> None:
    life = Life()
    life.submit()
    asyncio.run(life.run())
    assert idle_writes(life.cluster) == 0


def test_a_pass_in_the_middle_of_a_stage_writes_nothing() -> None:
    life = Life()
    life.submit()

    async def to_the_middle() -> None:
        operator = await life.run(until=lambda cluster: ("jobs", NAMESPACE, "demo-train-1") in cluster.objects)
        await operator.settle()

    asyncio.run(to_the_middle())
    assert idle_writes(life.cluster) == 0


def test_a_stranger_of_the_same_name_is_left_alone() -> None:
    life = Life()
    life.submit()
    stranger = {"metadata": {"name": "demo-prepare-1", "namespace": NAMESPACE}, "spec": {"template": {}}}
    life.cluster.put_new("jobs", {**stranger, "status": {"conditions": [{"type": "Failed", "status": "True"}]}})
    asyncio.run(life.run(until=lambda cluster: _reason(cluster) == "NotOwned"))
    assert life.cluster.objects["jobs", NAMESPACE, "demo-prepare-1"]["metadata"]["managedBy"] == "kubectl"
    life.cluster.remove(("jobs", NAMESPACE, "demo-prepare-1"))
    asyncio.run(life.run())
    assert verdict(life) == undisturbed()


@pytest.mark.parametrize("seed", range(4))
def test_a_lost_node_stalls_until_its_volume_is_free_and_costs_no_attempt(seed: int) -> None:
    life = Life(seed=seed, script={Stage.TRAIN: ["node-lost"]})
    life.submit()
    asyncio.run(life.run())
    assert life.status()["phase"] == "Succeeded"
    assert [attempt.get("counted") for attempt in life.status()["attempts"]] == [False]


def test_delete_and_apply_after_publishing_runs_nothing() -> None:
    life = Life()
    life.submit()
    asyncio.run(life.run())
    life.cluster.remove(JOB)
    while life.kubelet.step():
        pass
    own = [id for id in life.cluster.objects if id[0] == "persistentvolumeclaims" and id[2] != "base"]
    owners = [owner["kind"] for id in own for owner in life.cluster.objects[id]["metadata"]["ownerReferences"]]
    assert owners == ["ModelVersion"], "the claim belongs to the version alone once the job is gone"
    pods = dict(life.kubelet.started)
    life.cluster.put_new("finetunejobs", make_job())
    asyncio.run(life.run())
    assert life.condition("Succeeded")["reason"] == "AlreadyPublished"
    assert dict(life.kubelet.started) == pods
    assert ("deployments", NAMESPACE, "bot-v1") in life.cluster.objects
