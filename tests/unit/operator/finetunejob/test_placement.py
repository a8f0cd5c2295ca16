"""Where the pods of a run may be, what they ask for, and where its volume comes to lie."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import Stage
from finetune_operator.core.facts import ClaimFact, NodeFact
from finetune_operator.core.settings import Settings
from finetune_operator.finetunejob.observed import Observed, PodFact
from finetune_operator.finetunejob.policies.room import small_hosts
from finetune_operator.finetunejob.resources.pod_resources import largest_request
from finetune_operator.finetunejob.resources.run_spec import StageRequest
from finetune_operator.finetunejob.resources.stage_job import make_stage_job

from tests.unit.operator.finetunejob.test_plan import ANSWERS, NOW, SPEC, World, make_job, run_to

CPU_STAGES = [Stage.PREPARE, Stage.PACKAGE, Stage.EVALUATE]
POOL = {"nodeSelector": {"pool": "gpu"}, "tolerations": [{"key": "team", "operator": "Exists"}], "affinity": {"podAffinity": {}}}
GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def pod_of(stage: Stage, spec: dict[str, Any], **observed: Any) -> dict[str, Any]:
    read = FineTuneJobSpec.model_validate({**SPEC, **spec})
    body = make_stage_job(read, make_job(), StageRequest(stage, 1, "i"), Observed(**observed), Settings())
    pod: dict[str, Any] = body["spec"]["template"]["spec"]
    return pod


def hosts(pod: dict[str, Any]) -> list[Any]:
    required = pod.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    return [
        (found["operator"], found["values"])
        for term in required.get("nodeSelectorTerms", [])
        for found in term.get("matchExpressions", [])
        if found["key"] == "kubernetes.io/hostname"
    ]


# --------------------------------------------------------------------------------------------------------------------- inheritance


@pytest.mark.parametrize("stage", list(Stage))
def test_every_stage_may_run_where_train_may(stage: Stage) -> None:
    pod = pod_of(stage, {"scheduling": POOL})
    assert pod["nodeSelector"] == POOL["nodeSelector"]
    assert pod["affinity"] == POOL["affinity"]
    assert POOL["tolerations"][0] in pod["tolerations"]


@pytest.mark.parametrize("stage", CPU_STAGES)
def test_a_stage_may_say_otherwise_also_that_it_wants_none(stage: Stage) -> None:
    own = {"nodeSelector": {"pool": "cpu"}, "tolerations": [{"key": "other"}], "affinity": {"nodeAffinity": {}}}
    pod = pod_of(stage, {"scheduling": POOL, "stages": {stage.value: own}})
    assert (pod["nodeSelector"], pod["affinity"]) == (own["nodeSelector"], own["affinity"])
    assert [toleration["key"] for toleration in pod["tolerations"]][2:] == ["other"]
    nothing = pod_of(stage, {"scheduling": POOL, "stages": {stage.value: {"nodeSelector": {}, "tolerations": [], "affinity": {}}}})
    assert not {"nodeSelector", "affinity"} & set(nothing)
    assert len(nothing["tolerations"]) == 2
    (other,) = [pod_of(one, {"scheduling": POOL, "stages": {stage.value: own}}) for one in CPU_STAGES if one is not stage][:1]
    assert other["nodeSelector"] == POOL["nodeSelector"]


def test_only_train_has_the_runtime_class() -> None:
    pods = {stage: pod_of(stage, {"scheduling": {"runtimeClassName": "nvidia"}}) for stage in Stage}
    assert [stage for stage, pod in pods.items() if "runtimeClassName" in pod] == [Stage.TRAIN]


LIMITS: dict[str, tuple[dict[str, Any], dict[Stage, str | None]]] = {
    "none": ({}, {Stage.TRAIN: None, Stage.PREPARE: None}),
    "of train, for all": ({"resources": {"cpuLimit": "4"}}, {Stage.TRAIN: "4", Stage.PREPARE: "4", Stage.EVALUATE: "4"}),
    "never below the request": (
        {"resources": {"cpuLimit": "500m", "cpu": "500m"}},
        {Stage.TRAIN: "500m", Stage.PREPARE: "1"},
    ),
    "of its own": (
        {"resources": {"cpuLimit": "4"}, "stages": {"prepare": {"cpu": "2", "cpuLimit": "3"}}},
        {Stage.PREPARE: "3", Stage.PACKAGE: "4"},
    ),
}


@pytest.mark.parametrize("case", LIMITS)
def test_a_limit_of_cores(case: str) -> None:
    spec, wanted = LIMITS[case]
    for stage, limit in wanted.items():
        assert pod_of(stage, spec)["containers"][0]["resources"]["limits"].get("cpu") == limit


# ------------------------------------------------------------------------------------------------------------- where the volume lies


def node(host: str, **allocatable: str) -> NodeFact:
    return NodeFact(host, {"cpu": "8", "memory": "32Gi"} | {name.replace("_", "."): amount for name, amount in allocatable.items()})


GPU = {"nvidia.com/gpu": "1"}
ROOM: dict[str, tuple[list[NodeFact], tuple[str, ...]]] = {
    "nodes without a GPU": ([node("cpu"), NodeFact("gpu", {"cpu": "8", "memory": "32Gi", **GPU})], ("cpu",)),
    "a GPU node that is too small": (
        [NodeFact("tiny", {"cpu": "8", "memory": "1Gi", **GPU}), NodeFact("gpu", {"cpu": "8", "memory": "32Gi", **GPU})],
        ("tiny",),
    ),
    "no node has room: one may come": ([node("cpu"), node("other")], ()),
    "all have": ([NodeFact("gpu", {"cpu": "8", "memory": "32Gi", **GPU})], ()),
    "nodes that say nothing": ([NodeFact("mute", {})], ()),
    "no nodes": ([], ()),
    "an amount in an odd form": (
        [NodeFact("odd", {"cpu": "8e0", "memory": "34e9", **GPU}), NodeFact("gpu", {"cpu": "8", "memory": "32Gi", **GPU}), node("cpu")],
        ("cpu",),
    ),
}


@pytest.mark.parametrize("case", ROOM)
def test_hosts_that_could_not_hold_each_stage(case: str) -> None:
    nodes, wanted = ROOM[case]
    assert small_hosts(largest_request(FineTuneJobSpec.model_validate(SPEC)), nodes) == wanted


def test_the_largest_stage_decides() -> None:
    spec = FineTuneJobSpec.model_validate(
        {**SPEC, "resources": {"gpusPerNode": 0, "memory": "1Gi"}, "stages": {"package": {"memory": "9Gi"}}}
    )
    assert largest_request(spec) == {"cpu": 2.0, "memory": 9 * 2.0**30}


def test_the_first_pod_binds_the_volume_where_train_can_run() -> None:
    seen = {"small_hosts": ("cpu-1", "cpu-2"), "shares_one_node": True}
    assert hosts(pod_of(Stage.PREPARE, {}, **seen)) == [("NotIn", ["cpu-1", "cpu-2"])]
    assert all(hosts(pod_of(stage, {}, **seen)) == [] for stage in Stage if stage is not Stage.PREPARE), "the volume itself leads them"
    assert all(GPU_TAINT in pod_of(stage, {}, **seen)["tolerations"] for stage in Stage)
    assert GPU_TAINT not in pod_of(Stage.PREPARE, {}, small_hosts=())["tolerations"]


def test_a_users_own_node_affinity_still_holds() -> None:
    terms = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}, {"matchFields": [{"key": "metadata.name"}]}]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}, "podAffinity": {"x": 1}}
    pod = pod_of(Stage.PREPARE, {"scheduling": {"affinity": affinity}}, small_hosts=("cpu",))
    made = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [{**term, "matchExpressions": term["matchExpressions"][:-1]} for term in made] == [
        terms[0],
        {**terms[1], "matchExpressions": []},
    ]
    assert hosts(pod) == [("NotIn", ["cpu"])] * 2
    assert pod["affinity"]["podAffinity"] == {"x": 1}


@pytest.mark.parametrize("own", [{"nodeSelector": {"pool": "cpu"}}, {"tolerations": []}, {"affinity": {}}])
def test_who_places_prepare_by_hand_is_not_overruled(own: dict[str, Any]) -> None:
    assert hosts(pod_of(Stage.PREPARE, {"stages": {"prepare": own}}, small_hosts=("cpu",))) == []


# ------------------------------------------------------------------------------------------------- why a pod waits, and what to do

WAITS: dict[str, tuple[str, str, str]] = {
    "a claim without a class": (
        "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found",
        "ClaimNotBound",
        "PersistentVolumeClaim mine (storageClassName fast-ssd) is Pending: no such class",
    ),
    "a volume that no node can have": (
        "0/3 nodes are available: 3 node(s) didn't find available persistent volumes to bind.",
        "ClaimNotBound",
        "PersistentVolumeClaim mine",
    ),
    "a claim that is not there": ('persistentvolumeclaim "theirs" not found', "ClaimNotFound", "restore the claim"),
    "a claim that is going": ('persistentvolumeclaim "theirs" is being deleted', "ClaimNotFound", "restore the claim"),
    "a volume elsewhere": (
        "0/3 nodes are available: 1 node(s) had volume node affinity conflict, 2 node(s) didn't match Pod's node affinity/selector.",
        "VolumeElsewhere",
        "a volume of the run lies on another node than this pod may run on: create another job",
    ),
    "a volume elsewhere, in the words of a newer scheduler": (
        "0/2 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity, 1 node(s) had untolerated taint(s).",
        "VolumeElsewhere",
        "ReadWriteMany",
    ),
    "a volume on a node that is full": (
        "0/2 nodes are available: 1 Insufficient nvidia.com/gpu, 1 node(s) had volume node affinity conflict.",
        "Unschedulable",
        "it goes on by itself once one of them has; where they never have it: create another job",
    ),
    "no room": ("0/2 nodes are available: 2 Insufficient cpu.", "Unschedulable", "goes on by itself once a node has room"),
}


@pytest.mark.parametrize("case", WAITS)
def test_why_a_pod_has_no_node_is_told_with_the_cure(case: str) -> None:
    words, reason, told = WAITS[case]
    world = run_to("prepare")
    world.observed = replace(
        world.observed,
        claims={"mine": ClaimFact("mine", "u", "1", storage_class="fast-ssd"), "base": ClaimFact("base", "b", "1", phase="Bound")},
        claim_words={"mine": "no such class"},
    )
    waiting = PodFact("p", "u", "Pending", unschedulable=words, unschedulable_since=NOW - timedelta(seconds=60))
    world.set_job("job-prepare-1", pods=(waiting,))
    world.step()
    stalled = world.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", reason)
    assert told in stalled["message"]
    assert words.rstrip(".") in stalled["message"]
    assert ("goes on by itself" in stalled["message"]) == (reason in ("Unschedulable", "ClaimNotBound"))


def test_a_storage_class_that_is_not_there_is_told_before_the_start() -> None:
    world = World(job=make_job({**SPEC, "storage": {"persistentVolumeClaim": {"size": "1Gi", "storageClassName": "fast-ssd"}}}))
    world.step(storage_class_missing=True)
    validated = world.condition("Validated")
    assert (validated["status"], validated["reason"]) == ("False", "StorageClassNotFound")
    assert "storageClassName: there is no StorageClass fast-ssd" in validated["message"]
    assert world.job["status"]["phase"] == "Refused"
    assert world.step(storage_class_missing=False).status["startTime"]


@pytest.mark.parametrize("claim", [None, ClaimFact("c", "u", "1", phase="Lost"), ClaimFact("c", "u", "1", phase="Bound", deleting=True)])
def test_a_claim_that_was_lost_in_mid_run_is_told_and_not_replaced(claim: ClaimFact | None) -> None:
    world = run_to("train")
    (name,) = [name for name in world.observed.claims if name.startswith("job-")]
    world.observed = replace(world.observed, claims={**world.observed.claims, name: claim})
    world.end("job-train-1", None, 1)
    world.step()
    world.now += timedelta(minutes=1)
    made = world.step()
    assert made.actions == ()
    assert (world.condition("Stalled")["reason"], world.condition("Trained")["reason"]) == ("ClaimLost", "ClaimLost")
    assert name in world.condition("Stalled")["message"]
    assert made.recheck_at is not None
    world.observed = replace(world.observed, claims={**world.observed.claims, name: ClaimFact(name, "u", "1", phase="Bound")})
    world.step()
    world.step()
    assert world.live() == ["job-prepare-2"], "on a CPU it is looked whether its files came back with it"
    world.end("job-prepare-2", ANSWERS["prepare"])
    world.step()
    world.now += timedelta(seconds=10)
    world.step()
    assert world.live() == ["job-train-2"]


def test_nothing_is_registered_of_a_claim_that_is_lost() -> None:
    world = run_to("evaluate")
    (name,) = [name for name in world.observed.claims if name.startswith("job-")]
    world.observed = replace(world.observed, claims={**world.observed.claims, name: None})
    world.end("job-evaluate-1", ANSWERS["evaluate"])
    for _ in range(4):
        world.step()
    assert world.condition("Published")["reason"] == "ClaimLost"
    assert world.observed.versions == ()


def test_a_claim_that_is_gone_before_anything_was_on_it_is_made_again() -> None:
    world = run_to("prepare")
    (name,) = [name for name in world.observed.claims if name.startswith("job-")]
    world.observed = replace(world.observed, claims={"base": world.observed.claims["base"], name: None})
    world.step()
    assert world.observed.claims[name] is not None
