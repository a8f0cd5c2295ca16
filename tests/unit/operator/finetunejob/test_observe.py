"""API objects become facts: what kubelet and Job controller say, read right."""

from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_api.progress import ProgressReport
from finetune_operator.core import names
from finetune_operator.core.conditions import parse_timestamp
from finetune_operator.core.settings import Settings
from finetune_operator.engine.reports import Report
from finetune_operator.engine.store import Store
from finetune_operator.engine.world import Lookups, World
from finetune_operator.finetunejob.observe import job_fact, observe, pod_fact
from finetune_operator.kube.client import Client

from tests.sim.cluster import Cluster
from tests.sim.scenario import make_job

TIME = "2026-01-01T00:00:00Z"


def owned_by(uid: str, kind: str = "Job") -> list[dict[str, Any]]:
    return [{"apiVersion": "batch/v1", "kind": kind, "name": "owner", "uid": uid, "controller": True}]


def make_stage_job(*conditions: str, **metadata: Any) -> dict[str, Any]:
    labels = names.labels(**{names.JOB_LABEL: "demo", names.STAGE_LABEL: "train", names.ATTEMPT_LABEL: "2"})
    listed = [
        {"type": type, "status": "True", "reason": f"{type}Reason", "message": "m", "lastTransitionTime": TIME} for type in conditions
    ]
    own = {"name": "demo-train-2", "namespace": "team", "uid": "j", "creationTimestamp": TIME, "labels": labels, **metadata}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": own, "status": {"conditions": listed}}


def make_pod(status: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    own = {"name": "p", "namespace": "team", "uid": "p", "labels": {"batch.kubernetes.io/job-completion-index": "3"}, **metadata}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": own, "spec": {"nodeName": "n"}, "status": status}


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        ((), "Active"),
        (("Suspended",), "Active"),
        (("Complete",), "Complete"),
        (("SuccessCriteriaMet", "Complete"), "Complete"),
        (("Failed",), "Failed"),
        (("FailureTarget",), "Failed"),
    ],
)
def test_the_state_of_a_stage_job(conditions: tuple[str, ...], state: str) -> None:
    fact = job_fact(make_stage_job(*conditions), [], [])
    assert (fact.state, fact.stage, fact.attempt) == (state, "train", 2)
    assert (fact.finished_at is not None) == (state != "Active")


def test_a_condition_that_is_false_counts_for_nothing() -> None:
    live = make_stage_job("Failed")
    live["status"]["conditions"][0]["status"] = "False"
    assert job_fact(live, [], []).state == "Active"


def test_the_last_refusal_of_this_very_job_is_told() -> None:
    refusals = [
        {"involvedObject": {"uid": "j"}, "message": "older", "lastTimestamp": "2026-01-01T00:00:01Z"},
        {"involvedObject": {"uid": "j"}, "message": "newer", "lastTimestamp": "2026-01-01T00:00:02Z"},
        {"involvedObject": {"uid": "another"}, "message": "foreign", "lastTimestamp": "2026-01-01T00:00:03Z"},
    ]
    assert job_fact(make_stage_job(), [], refusals).refused == "newer"


PODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no status yet": ({}, {"phase": "Pending", "waiting": None, "exit_code": None}),
    "an image that cannot be pulled": (
        {"phase": "Pending", "containerStatuses": [{"name": "trainer", "state": {"waiting": {"reason": "ErrImagePull", "message": "no"}}}]},
        {"waiting": ("ErrImagePull", "no")},
    ),
    "an init container that waits comes first": (
        {
            "phase": "Pending",
            "initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "CreateContainerConfigError", "message": "key"}}}],
            "containerStatuses": [{"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}],
        },
        {"waiting": ("CreateContainerConfigError", "key")},
    ),
    "no node fits": (
        {
            "phase": "Pending",
            "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes", "lastTransitionTime": TIME}
            ],
        },
        {"unschedulable": "0/3 nodes", "unschedulable_since": parse_timestamp(TIME)},
    ),
    "out of memory": (
        {
            "phase": "Failed",
            "containerStatuses": [{"name": "trainer", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": "{}"}}}],
        },
        {"exit_code": 137, "terminated_reason": "OOMKilled", "message": "{}"},
    ),
    "evicted before it started": ({"phase": "Failed", "reason": "Evicted"}, {"exit_code": None, "terminated_reason": "Evicted"}),
    "preempted": (
        {"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]},
        {"disruption": "PreemptionByScheduler"},
    ),
    "another container's end says nothing of the stage": (
        {"phase": "Failed", "containerStatuses": [{"name": "sidecar", "state": {"terminated": {"exitCode": 3}}}]},
        {"exit_code": None},
    ),
}


def test_a_pod_under_deletion_says_by_when_it_should_be_gone() -> None:
    assert pod_fact(make_pod({})).gone_by is None
    assert pod_fact(make_pod({}, deletionTimestamp=TIME)).gone_by == parse_timestamp(TIME)


@pytest.mark.parametrize("case", PODS)
def test_facts_of_a_pod(case: str) -> None:
    status, wanted = PODS[case]
    fact = pod_fact(make_pod(status))
    assert {name: getattr(fact, name) for name in wanted} == wanted
    assert (fact.node, fact.index) == ("n", 3)


class Bench:
    def __init__(self, **spec: Any) -> None:
        self.cluster = Cluster()
        self.report: Report | None = None
        self.store = Store()
        lookups = Lookups(Client(self.cluster.send))
        self.world = World(self.store, lookups, Settings(), reports=lambda namespace, name: self.report)
        self.job = self.cluster.put_new("finetunejobs", make_job(**spec))

    def put(self, live: dict[str, Any], version: int = 1) -> None:
        self.store.put({**live, "metadata": {**live["metadata"], "resourceVersion": str(version)}})


async def test_a_stage_job_of_a_former_job_of_the_name_is_not_ours() -> None:
    bench = Bench()
    bench.put(make_stage_job(ownerReferences=owned_by("former")))
    assert (await observe(bench.job, bench.world)).jobs == ()


async def test_pods_are_found_by_the_uid_of_their_job() -> None:
    bench = Bench()
    bench.put(make_stage_job(ownerReferences=owned_by(bench.job["metadata"]["uid"])))
    labels = {names.JOB_LABEL: "demo"}
    bench.put(make_pod({}, labels=labels, ownerReferences=owned_by("j")))
    bench.put(make_pod({}, name="q", uid="q", labels=labels, ownerReferences=owned_by("other")))
    observed = await observe(bench.job, bench.world)
    assert [pod.name for job in observed.jobs for pod in job.pods] == ["p"]


async def test_a_report_counts_only_from_a_pod_of_a_live_attempt() -> None:
    bench = Bench()
    status = ProgressReport.model_validate({"trainerStatus": {"progressPercentage": 5}}).trainer_status
    bench.report = Report("p", status)
    bench.put(make_stage_job(ownerReferences=owned_by(bench.job["metadata"]["uid"])))
    assert (await observe(bench.job, bench.world)).progress is None
    bench.put(make_pod({}, labels={names.JOB_LABEL: "demo"}, ownerReferences=owned_by("j")))
    assert (await observe(bench.job, bench.world)).progress == status
    bench.put(make_stage_job("Failed", ownerReferences=owned_by(bench.job["metadata"]["uid"])), version=2)
    assert (await observe(bench.job, bench.world)).progress is None


async def test_named_claims_and_config_maps_are_looked_up_once() -> None:
    bench = Bench(model={"source": "pvc://base/model", "chatTemplate": {"type": "ConfigMap", "configMap": {"name": "t", "key": "k"}}})
    bench.cluster.put_new("configmaps", {"metadata": {"name": "t", "namespace": "team"}, "data": {"k": "v"}})
    for _ in range(3):
        observed = await observe(bench.job, bench.world)
    assert dict(observed.claims) == {"base": None}
    assert observed.config_maps == {"t": {"k": "v"}}
    assert sorted(bench.cluster.reads) == ["configmaps/t", "persistentvolumeclaims/base"]


async def test_a_job_that_has_ended_reads_nothing() -> None:
    bench = Bench()
    bench.job["status"] = {"conditions": [{"type": "Succeeded", "status": "True"}]}
    await observe(bench.job, bench.world)
    assert bench.cluster.reads == []


async def test_the_older_job_and_the_claim_its_files_lie_on() -> None:
    bench = Bench(resumeFrom={"jobName": "older"})
    assert (await observe(bench.job, bench.world)).older_job is None
    older = json.loads(json.dumps(bench.cluster.put_new("finetunejobs", make_job("older"))))
    bench.put(older)
    observed = await observe(bench.job, bench.world)
    assert observed.older_job is not None
    assert observed.older_job.claim is None, "it never started"
    bench.put({**older, "status": {"startTime": TIME}}, version=10_000)
    observed = await observe(bench.job, bench.world)
    assert observed.older_job is not None
    assert observed.older_job.claim == names.claim_name("older", older["metadata"]["uid"])
