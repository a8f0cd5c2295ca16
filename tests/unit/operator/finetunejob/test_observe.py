"""API objects become facts: what kubelet and Job controller say, read right."""

from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_api.progress import ProgressReport
from finetune_api.section import digest_of
from finetune_operator.core import names
from finetune_operator.core.conditions import parse_timestamp
from finetune_operator.core.settings import Settings
from finetune_operator.engine.reports import Report
from finetune_operator.engine.store import Store
from finetune_operator.engine.world import Lookups, World
from finetune_operator.finetunejob.observe import job_fact, observe, pod_fact
from finetune_operator.kube.client import Client

from tests.sim.cluster import Cluster, Refusal
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


async def test_named_claims_are_looked_up_once_and_config_maps_afresh_until_the_start() -> None:
    bench = Bench(model={"source": "pvc://base/model", "chatTemplate": {"type": "ConfigMap", "configMap": {"name": "t", "key": "k"}}})
    bench.cluster.put_new("configmaps", {"metadata": {"name": "t", "namespace": "team"}, "data": {"k": "v"}})
    for _ in range(3):
        observed = await observe(bench.job, bench.world)
    assert dict(observed.claims) == {"base": None}
    assert observed.config_maps == {"t": {"k": "v"}}
    assert sorted(bench.cluster.reads) == ["configmaps/t"] * 3 + ["persistentvolumeclaims/base"]


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


# ---------------------------------------------------------------------------------------------------- what hands have done meanwhile


def labelled(uid: str, **more: str) -> dict[str, str]:
    return {names.JOB_LABEL: "demo", names.JOB_UID_LABEL: uid, **more}


async def test_pods_whose_job_is_gone_are_orphans_and_those_of_a_former_job_of_the_name_are_nobodys() -> None:
    bench = Bench()
    uid = bench.job["metadata"]["uid"]
    bench.put(make_stage_job(ownerReferences=owned_by(uid)))
    bench.put(make_pod({}, labels=labelled(uid), ownerReferences=owned_by("j")))
    bench.put(make_pod({}, name="orphan", uid="o", labels=labelled(uid), ownerReferences=owned_by("gone")))
    bench.put(make_pod({}, name="alone", uid="a", labels=labelled(uid)))
    bench.put(make_pod({}, name="former", uid="f", labels=labelled("former"), ownerReferences=owned_by("gone")))
    assert [pod.name for pod in (await observe(bench.job, bench.world)).orphans] == ["alone", "orphan"]


@pytest.mark.parametrize(
    ("status", "began"),
    [
        ({"phase": "Failed", "reason": "UnexpectedAdmissionError"}, False),
        ({"phase": "Pending", "containerStatuses": [{"name": "trainer", "state": {"waiting": {"reason": "ErrImagePull"}}}]}, False),
        ({"phase": "Running", "containerStatuses": [{"name": "trainer", "state": {"running": {}}}]}, True),
        (
            {
                "phase": "Failed",
                "reason": "Evicted",
                "containerStatuses": [{"name": "trainer", "state": {"terminated": {"exitCode": 137}}}],
            },
            True,
        ),
    ],
)
def test_whether_anything_of_a_pod_ever_ran(status: dict[str, Any], began: bool) -> None:
    assert pod_fact(make_pod(status)).began is began


def test_a_refusal_is_told_without_the_random_name() -> None:
    said = 'Error creating: pods "demo-train-2-0-x7k2j" is forbidden: no'
    refusal = {"involvedObject": {"uid": "j"}, "message": said, "lastTimestamp": TIME}
    assert job_fact(make_stage_job(), [], [refusal]).refused == 'Error creating: pods "demo-train-2-0" is forbidden: no'


STARTED: dict[str, Any] = {"startTime": TIME, "firstPodTime": TIME, "specDigest": "x"}


async def test_that_the_own_claim_is_gone_is_believed_after_a_look_by_its_name() -> None:
    bench = Bench()
    name = names.claim_name("demo", bench.job["metadata"]["uid"])
    assert name not in (await observe(bench.job, bench.world)).claims, "nothing was made yet"
    bench.job["status"] = {**STARTED, "conditions": [{"type": "Prepared", "status": "True"}]}
    assert (await observe(bench.job, bench.world)).claims == {name: None}
    restored = Bench()
    restored.job["status"] = bench.job["status"]
    restored.cluster.put_new("persistentvolumeclaims", {"metadata": {"name": name, "namespace": "team"}, "spec": {}})
    claim = (await observe(restored.job, restored.world)).claims[name]
    assert claim is not None, "a person restored it, without our label"


async def test_a_storage_class_is_looked_up_before_the_start_and_one_that_may_not_be_read_is_not_missing() -> None:
    bench = Bench(storage={"persistentVolumeClaim": {"size": "1Gi", "storageClassName": "fast-ssd"}})
    assert (await observe(bench.job, bench.world)).storage_class_missing
    there = Bench(storage={"persistentVolumeClaim": {"size": "1Gi", "storageClassName": "fast-ssd"}})
    there.cluster.objects["storageclasses", "", "fast-ssd"] = {"metadata": {"name": "fast-ssd"}}
    assert not (await observe(there.job, there.world)).storage_class_missing
    closed = Bench(storage={"persistentVolumeClaim": {"size": "1Gi", "storageClassName": "fast-ssd"}})

    def forbid(path: str) -> None:
        raise Refusal(403, "Forbidden", f"may not get {path}")

    serve = closed.cluster._serve
    closed.cluster._serve = lambda request: forbid(request.path) if "storageclasses" in request.path else serve(request)  # type: ignore
    assert not (await observe(closed.job, closed.world)).storage_class_missing


async def test_why_a_claim_has_no_volume_is_read_only_where_a_pod_waits_for_it() -> None:
    bench = Bench()
    uid = bench.job["metadata"]["uid"]
    bench.job["status"] = STARTED
    name = names.claim_name("demo", uid)
    claim = {"name": name, "namespace": "team", "uid": "c", "labels": labelled(uid)}
    bench.put({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": claim, "spec": {}, "status": {"phase": "Pending"}})
    bench.put(make_stage_job(ownerReferences=owned_by(uid)))
    for message, time in (("older", "2026-01-01T00:00:01Z"), ("no such class", "2026-01-01T00:00:02Z")):
        told = {
            "involvedObject": {"kind": "PersistentVolumeClaim", "name": name},
            "type": "Warning",
            "message": message,
            "lastTimestamp": time,
        }
        bench.cluster.put_new("events", {"metadata": {"name": message, "namespace": "team"}, **told})
    asked: list[str] = []
    bench.cluster.before = lambda request: asked.append(request.query) if request.path.endswith("/events") else None
    assert (await observe(bench.job, bench.world)).claim_words == {}
    words = "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    bench.put(make_pod({"conditions": [scheduled]}, labels=labelled(uid), ownerReferences=owned_by("j")))
    for _ in range(3):
        assert (await observe(bench.job, bench.world)).claim_words == {name: "no such class"}
    assert len(asked) == 1
    assert f"involvedObject.name%3D{name}" in asked[0]


@pytest.mark.parametrize(
    ("storage", "small"),
    [
        ({"size": "1Gi"}, ("cpu",)),
        ({"size": "1Gi", "accessModes": ["ReadWriteMany"]}, ()),
        ({"claimName": "bound"}, ()),
        ({"claimName": "waiting"}, ("cpu",)),
        ({"claimName": "shared"}, ()),
    ],
)
async def test_nodes_that_are_too_small_matter_while_the_volume_may_still_come_to_lie_there(
    storage: dict[str, Any], small: tuple[str, ...]
) -> None:
    bench = Bench(storage={"persistentVolumeClaim": storage}, resources={"gpusPerNode": 1})
    for name, phase, modes in (("bound", "Bound", []), ("waiting", "Pending", []), ("shared", "Pending", ["ReadWriteMany"])):
        body = {"metadata": {"name": name, "namespace": "team"}, "spec": {"accessModes": modes}, "status": {"phase": phase}}
        bench.cluster.put_new("persistentvolumeclaims", body)
    for name, gpus in (("cpu", {}), ("gpu", {"nvidia.com/gpu": "1"})):
        bench.cluster.put_new("nodes", {"metadata": {"name": name}, "status": {"allocatable": {"cpu": "8", "memory": "32Gi", **gpus}}})
    observed = await observe(bench.job, bench.world)
    assert (observed.small_hosts, observed.largest_node_gpus) == (small, 1)
    bench.job["status"] = {**STARTED, "conditions": [{"type": "Prepared", "status": "True"}]}
    assert (await observe(bench.job, bench.world)).small_hosts == ()


CHAT = {"source": "pvc://base/model", "chatTemplate": {"type": "ConfigMap", "configMap": {"name": "t", "key": "k"}}}


async def test_the_text_that_a_run_was_started_with_is_found_in_an_earlier_pod_when_its_config_map_has_changed() -> None:
    bench = Bench(model=CHAT)
    uid = bench.job["metadata"]["uid"]
    bench.job["status"] = {**STARTED, "chatTemplateDigest": digest_of("hello")}
    bench.cluster.put_new("configmaps", {"metadata": {"name": "t", "namespace": "team"}, "data": {"k": "other"}})
    assert (await observe(bench.job, bench.world)).config_maps == {"t": None}
    stage_job = make_stage_job(ownerReferences=owned_by(uid), name="demo-prepare-1")
    stage_job["metadata"]["labels"] |= {names.STAGE_LABEL: "prepare"}
    bench.put(stage_job)
    run = json.dumps({"chatTemplateText": "hello"})
    template = {"metadata": {"annotations": {names.RUN_ANNOTATION: run}}}
    bench.cluster.put_new("jobs", {**stage_job, "spec": {"template": template}})
    assert (await observe(bench.job, bench.world)).config_maps == {"t": {"k": "hello"}}
    bench.job["status"]["conditions"] = [{"type": "Prepared", "status": "True"}]
    assert (await observe(bench.job, bench.world)).config_maps == {}, "later stages have what prepare made of it"


async def test_pods_of_all_stages_are_asked_for_before_the_start_once_nothing_else_is_wrong() -> None:
    bench = Bench()
    await observe(bench.job, bench.world)
    assert bench.cluster.dry_runs == [], "its claim is not there"
    bench = Bench()
    bench.cluster.put_new("persistentvolumeclaims", {"metadata": {"name": "base", "namespace": "team"}, "spec": {}})

    def refuse(body: dict[str, Any]) -> None:
        if "-train-" in body["metadata"]["name"]:
            raise Refusal(403, "Forbidden", 'RuntimeClass "nvidia" not found')

    bench.cluster.admit = refuse
    observed = await observe(bench.job, bench.world)
    claim = names.claim_name("demo", bench.job["metadata"]["uid"])
    assert bench.cluster.dry_runs == ["demo-prepare-1", claim], "package and evaluate are asked for in the same shape"
    assert {stage: problem.message for stage, problem in observed.refused_pods.items()} == {"train": 'RuntimeClass "nvidia" not found'}
    assert observed.refused_claim is None
    bench.job["status"] = STARTED
    assert (await observe(bench.job, bench.world)).refused_pods == {}


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        ({}, ["prepare", "train"]),
        ({"stages": {"package": {"memory": "9Gi"}}}, ["prepare", "train", "package"]),
        ({"stages": {"evaluate": {"tolerations": []}}, "scheduling": {"tolerations": [{"key": "a"}]}}, ["prepare", "train", "evaluate"]),
    ],
)
async def test_pods_of_the_same_shape_are_asked_for_once_and_refused_together(spec: dict[str, Any], asked: list[str]) -> None:
    bench = Bench(**spec)
    bench.cluster.put_new("persistentvolumeclaims", {"metadata": {"name": "base", "namespace": "team"}, "spec": {}})
    seen: list[str] = []

    def refuse(body: dict[str, Any]) -> None:
        seen.append(body["metadata"]["name"].split("-")[1] if body["kind"] == "Pod" else body["kind"])
        raise Refusal(403, "Forbidden", "no")

    bench.cluster.admit = refuse
    observed = await observe(bench.job, bench.world)
    assert seen == [*asked, "PersistentVolumeClaim"]
    assert observed.refused_claim is not None
    assert list(observed.refused_pods) == ["prepare", "train", "package", "evaluate"]
