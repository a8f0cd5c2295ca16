"""A run while people, quotas, nodes and queues lay hands on it: at most one pod at a time, a status that is true, and the same end."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from finetune_api.outcome import ExitCode
from finetune_api.run import Stage
from finetune_api.section import digest_of
from finetune_operator.core import names
from finetune_operator.core.names import Object
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.cluster import Cluster, Id, Refusal
from tests.sim.kubelet import Kubelet
from tests.sim.operator_process import OperatorProcess
from tests.sim.scenario import JOB, NAMESPACE, Crash, Life, make_job

TEMPLATE = ("configmaps", NAMESPACE, "chat")
TEXT = "{{ messages }}"
NEWS_TAKE = timedelta(seconds=11)
"""So long a status may be behind: what a pod said last is waited for, and a key that backs off is left alone for a second."""
SPEC = {"model": {"source": "pvc://base/model", "chatTemplate": {"type": "ConfigMap", "configMap": {"name": "chat", "key": "t"}}}}


class HandledKubelet(Kubelet):
    """Its pods outlive their Jobs: what they run is written on themselves, as in a cluster."""

    def _start_pod(self, job: Object) -> None:
        before = set(self.cluster.objects)
        super()._start_pod(job)
        (id,) = set(self.cluster.objects) - before
        pod = copy.deepcopy(self.cluster.objects[id])
        pod["metadata"]["annotations"] = dict(job["spec"]["template"]["metadata"]["annotations"])
        self.cluster.replace(id, pod)

    def _run_annotation(self, pod: Object) -> str:
        return str(pod["metadata"]["annotations"][names.RUN_ANNOTATION])

    def _terminate(self, id: Id) -> None:
        """The Job controller counts a pod that was deleted before it goes (its finalizer)."""
        owner = next(iter(self.cluster.objects[id]["metadata"].get("ownerReferences") or ()), {"name": ""})
        job = ("jobs", id[1], owner["name"])
        if self.cluster.objects[id]["status"]["phase"] in ("Pending", "Running"):
            self._set_phase(id, "Failed", ExitCode.TERMINATED, None)
        live = self.cluster.objects.get(job)
        if live and live["metadata"]["uid"] == owner.get("uid") and "deletionTimestamp" not in live["metadata"]:
            self._end_job(job, "Failed", "BackoffLimitExceeded", id)
        self.cluster.remove(id)


@dataclass
class HandledLife(Life):
    """`deeds` are done one after another, at moments that the seed chooses."""

    deeds: list[str] = field(default_factory=list)
    refused_until: datetime | None = None
    refusals: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kubelet = HandledKubelet(self.cluster, self.rng, self.kubelet.script)
        self.cluster.put_new("configmaps", {"metadata": {"name": "chat", "namespace": NAMESPACE}, "data": {"t": TEXT}})
        self.cluster.admit = self._admit

    async def _turn(self, operator: OperatorProcess) -> bool:
        if self.deeds and self.rng.random() < 0.15:
            deed: Callable[[], None] = getattr(self, f"_{self.deeds[0]}")
            del self.deeds[0]
            deed()
            return True
        return await super()._turn(operator)

    async def _advance(self, operator: OperatorProcess) -> bool:
        due = operator.due()
        if due is None or due - self.cluster.now > NEWS_TAKE:
            self._check_truth()
        if self.deeds and self.rng.random() < 0.5:
            return True
        return await super()._advance(operator) or bool(self.deeds)

    def _check_truth(self) -> None:
        """When everything is at rest status says what is."""
        told = {condition["type"]: (condition["status"], condition["reason"]) for condition in self.status().get("conditions", [])}
        if not told:
            return
        stages = [told[type] for type in ("Prepared", "Trained", "Packaged", "Evaluated")]
        if told["Suspended"][0] == "True":
            assert self._alive() == [], "suspended, and a pod is alive"
        if told["Succeeded"][0] == "Unknown":
            assert told["Succeeded"][1] != "Waiting"
        if told["Succeeded"][0] != "Unknown" or told["ResourcesApplied"][0] == "False" or not self._alive():
            assert ("False", "Running") not in stages, "a stage is under way without a pod"

    def _alive(self) -> list[Id]:
        pods = [(id, live) for id, live in self.cluster.objects.items() if id[0] == "pods" and self._is_ours(live)]
        return [id for id, pod in pods if pod["status"]["phase"] in ("Pending", "Running")]

    def _is_ours(self, live: Object) -> bool:
        return names.STAGE_LABEL in (live["metadata"].get("labels") or {})

    # ------------------------------------------------------------------------------------------------------------------- deeds

    def _stage_jobs(self) -> list[Id]:
        return sorted(id for id in self.cluster.objects if id[0] == "jobs")

    def _delete_job(self) -> None:
        for id in self._stage_jobs()[-1:]:
            self.cluster.delete(id)

    def _delete_job_foreground(self) -> None:
        for id in self._stage_jobs()[-1:]:
            self.cluster.delete(id, foreground=True)

    def _orphan_pods(self) -> None:
        for id in self._stage_jobs():
            for pod in list(self.cluster.dependents(self.cluster.objects[id]["metadata"]["uid"])):
                live = copy.deepcopy(self.cluster.objects[pod])
                live["metadata"]["ownerReferences"] = []
                self.cluster.replace(pod, live)
            self.cluster.remove(id)

    def _delete_pod(self) -> None:
        for id in self._alive():
            self.cluster.delete(id)

    def _preempt(self) -> None:
        for id in self._alive():
            self.kubelet._set_phase(id, "Failed", ExitCode.TERMINATED, None, disruption="PreemptionByScheduler")

    def _reject(self) -> None:
        for id in self._alive():
            if self.cluster.objects[id]["status"]["phase"] == "Pending":
                self.cluster.set_status(id, {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "Pod was rejected"})

    def _refuse_pods(self) -> None:
        self.refused_until = self.cluster.now + timedelta(seconds=self.rng.choice([5, 50, 500]))

    def _admit(self, body: Any) -> None:
        if body["kind"] == "Pod" and self.refused_until and self.cluster.now < self.refused_until:
            self.refusals += 1
            raise Refusal(403, "Forbidden", f'pods "{self.refusals}" is forbidden: {self.rng.choice(["exceeded quota: q", "no"])}')

    def _change_template(self) -> None:
        self.cluster.replace(TEMPLATE, {**self.cluster.objects[TEMPLATE], "data": {"t": "another"}})

    def _restore_template(self) -> None:
        """As the run was started with it."""
        text = next((text for text in (TEXT, "another") if digest_of(text) == self.status().get("chatTemplateDigest")), TEXT)
        self.cluster.replace(TEMPLATE, {**self.cluster.objects[TEMPLATE], "data": {"t": text}})

    def _set_suspend(self, value: bool) -> None:
        job = self.cluster.objects[JOB]
        self.cluster.replace(JOB, {**job, "spec": {**job["spec"], "suspend": value}})

    def _suspend(self) -> None:
        self._set_suspend(True)

    def _resume(self) -> None:
        self._set_suspend(False)

    def _kill_the_operator(self) -> None:
        raise Crash

    def templates(self) -> set[str | None]:
        """What the prepare Jobs that were ever made were told."""
        runs = [
            live["metadata"]["annotations"][names.RUN_ANNOTATION]
            for id, live in self.cluster.objects.items()
            if "-prepare-" in id[2] and id[0] == "pods"
        ]
        return {json.loads(run).get("chatTemplateText") for run in runs}


DEEDS = [
    "delete_job",
    "delete_job_foreground",
    "orphan_pods",
    "delete_pod",
    "preempt",
    "reject",
    "refuse_pods",
    "change_template",
    "suspend",
    "resume",
    "kill_the_operator",
]


def pods(cluster: Cluster) -> list[tuple[Id, Object]]:
    return [(id, live) for id, live in cluster.objects.items() if id[0] == "pods"]


def live_through(seed: int, deeds: list[str]) -> HandledLife:
    life = HandledLife(seed=seed, deeds=[*deeds, "resume", "restore_template"])
    life.submit(make_job(**SPEC))
    asyncio.run(life.run())
    return life


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.lists(st.sampled_from(DEEDS), max_size=6))
def test_whatever_is_done_to_a_run_it_has_one_pod_at_a_time_and_comes_to_its_end(seed: int, deeds: list[str]) -> None:
    life = live_through(seed, deeds)
    assert life.status()["phase"] == "Succeeded"
    assert not any(record["counted"] for record in life.status().get("attempts", []))


@pytest.mark.parametrize("seed", range(20))
def test_a_job_deleted_by_hand_has_no_successor_beside_its_pod(seed: int) -> None:
    life = live_through(seed, ["delete_job"] * 4)
    assert life.kubelet.most_live == 1


@pytest.mark.parametrize("seed", range(12))
def test_a_run_is_told_the_template_that_was_there_when_it_started(seed: int) -> None:
    life = live_through(seed, ["preempt", "change_template", "preempt", "kill_the_operator", "delete_pod", "restore_template"])
    assert life.status()["phase"] == "Succeeded"
    assert len(life.templates()) <= 1


def test_refused_for_an_hour_a_run_is_asked_for_and_written_at_most_once_a_minute() -> None:
    life = HandledLife(deeds=[])
    life.refused_until = life.cluster.now + timedelta(hours=1)
    life.submit(make_job(**SPEC))
    hour = life.refused_until

    async def an_hour() -> None:
        await life.run(until=lambda cluster: cluster.now >= hour)

    asyncio.run(an_hour())
    # a refusal by quota may pass and holds up no start, and the Job controller of this cluster asks nobody
    assert life.status()["phase"] in ("Refused", "Pending", "Preparing", "Training")
    assert life.refusals <= 60 + 8
    assert len(life.cluster.writes) <= 60 + 10
    asyncio.run(life.run())
    assert life.status()["phase"] == "Succeeded"


@pytest.mark.parametrize("stage", ["train", "package", "evaluate"])
def test_a_later_stage_refused_for_an_hour_too(stage: str) -> None:
    life = HandledLife(deeds=[])
    refused = [0]

    def refuse(body: Any) -> None:
        if body["kind"] == "Pod" and stage in body["metadata"]["name"] and life.status().get("startTime"):
            refused[0] += 1
            raise Refusal(403, "Forbidden", f"no, for the {refused[0]}th time")

    life.cluster.admit = refuse
    life.submit(make_job(**SPEC))
    end = life.cluster.now + timedelta(hours=1)
    asyncio.run(life.run(until=lambda cluster: cluster.now >= end))
    assert 2 <= refused[0] <= 62
    assert life.condition("Succeeded")["reason"] == "Forbidden"
    assert life.condition("Stalled")["status"] == "True"
    life.cluster.admit = lambda body: None
    asyncio.run(life.run())
    assert life.status()["phase"] == "Succeeded"


def test_a_hundred_and_fifty_preemptions_take_hours() -> None:
    life = HandledLife(script={Stage.TRAIN: ["preempted"] * 150})
    life.submit(make_job(**SPEC))
    before = life.cluster.now
    asyncio.run(life.run(steps=20_000))
    assert life.status()["phase"] == "Succeeded"
    assert life.cluster.now - before > timedelta(hours=11)
    assert len([id for id in life.cluster.objects if id[0] == "jobs"]) <= 24


def test_a_claim_that_is_lost_in_mid_run_is_told_and_not_replaced() -> None:
    life = HandledLife()
    life.submit(make_job(**SPEC))
    asyncio.run(
        life.run(until=lambda cluster: any("-train-" in id[2] and live["status"]["phase"] == "Running" for id, live in pods(cluster)))
    )
    (claim,) = [id for id in life.cluster.objects if id[0] == "persistentvolumeclaims" and id[2] != "base"]
    backup = copy.deepcopy(life.cluster.objects[claim])
    life.cluster.remove(claim)
    for id in life._alive():
        life.kubelet._set_phase(id, "Failed", ExitCode.TERMINATED, None, disruption="EvictionByEvictionAPI")
    day = life.cluster.now + timedelta(minutes=30)
    asyncio.run(life.run(until=lambda cluster: cluster.now >= day))
    assert claim not in life.cluster.objects, "an empty claim stands in for it"
    assert (life.condition("Stalled")["reason"], life.condition("Trained")["reason"]) == ("ClaimLost", "ClaimLost")
    assert claim[2] in life.condition("Stalled")["message"]
    life.cluster.put_new("persistentvolumeclaims", {"metadata": {"name": claim[2], "namespace": NAMESPACE}, "spec": backup["spec"]})
    life.cluster.set_status(claim, {"phase": "Bound"})
    asyncio.run(life.run())
    assert life.status()["phase"] == "Succeeded"
