"""Bad input: each gets its refusal or condition, with what was expected and what to do, and takes no GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from hack.demo import JOB
from tests.e2e import cluster
from tests.e2e.cluster import Object, condition, kubectl, wait
from tests.e2e.conftest import config_map, on_claim, quick_job


@pytest.fixture(scope="module")
def planted(base: str, namespace: str) -> str:
    """Folders of bad data on the base's claim."""
    good = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    script = f"""
set -e
mkdir -p /claim/bad/broken /claim/bad/empty
printf '%s\\n%s\\n' '{good}' '{{"messages": [' > /claim/bad/broken/train.jsonl
: > /claim/bad/empty/train.jsonl
"""
    on_claim(JOB, script, namespace)
    return f"pvc://{JOB}/bad"


LATE_SECRET = "hub-token-late"
SMALL = {"prepare": {"cpu": "100m"}}
"""For jobs that stand beside others: one pod of the usual size fills the node that has the base model."""
TOO_MANY_GPUS = {"gpusPerNode": 8, "memory": "2Gi", "cpu": "1"}


@pytest.fixture(scope="module", autouse=True)
def waiting(base: str, namespace: str) -> Iterator[None]:
    """Two jobs that are Stalled only after a minute of waiting, which is not waited for here: the last cases look at them."""
    cluster.delete("secret", LATE_SECRET, namespace)
    model = {"source": "hf://org/nothing", "tokenSecretRef": {"name": LATE_SECRET, "key": "token"}}
    training = {"maxSteps": 3, "globalBatchSize": 8, "maxLength": 128}
    cluster.apply(
        quick_job("late-secret", model=model, stages=SMALL),
        quick_job("too-many-gpus", resources=TOO_MANY_GPUS, training=training, stages=SMALL),
    )
    yield
    kubectl("delete", "finetunejob", "late-secret", "too-many-gpus", "-n", namespace, "--ignore-not-found", "--wait=false")


def gpu_jobs(name: str, namespace: str) -> list[Object]:
    return cluster.items("jobs", namespace, f"finetune-operator.io/finetunejob={name},finetune-operator.io/stage=train")


BAD_DATA = {
    "broken": ("InvalidDataset", "line 2"),
    "empty": ("EmptyDataset", "faq"),
    "missing": ("DatasetNotFound", "faq"),
}
"""Folder → (reason, what the message names)."""


@pytest.fixture(scope="module")
def bad_data(planted: str, namespace: str) -> Iterator[None]:
    """A job for each folder, all at once."""
    jobs = [quick_job(f"bad-{folder}", datasets=[{"name": "faq", "source": f"{planted}/{folder}"}], stages=SMALL) for folder in BAD_DATA]
    cluster.apply(*jobs)
    yield
    kubectl("delete", "finetunejob", *(job["metadata"]["name"] for job in jobs), "-n", namespace, "--ignore-not-found", "--wait=false")


@pytest.mark.parametrize("folder", BAD_DATA)
def test_bad_data_ends_the_job_before_a_gpu(folder: str, bad_data: None, namespace: str) -> None:
    reason, says = BAD_DATA[folder]
    name = f"bad-{folder}"
    job = cluster.wait_for_condition("finetunejob", name, namespace, "Succeeded", "False", timeout_s=180)
    prepared = condition(job, "Prepared")
    print(prepared["reason"], prepared["message"])
    assert prepared["status"] == "False"
    assert prepared["reason"] == reason
    assert says in prepared["message"]
    assert gpu_jobs(name, namespace) == []
    assert len(job["status"]["attempts"]) == 1, "a wrong input is not tried again"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a wrong enum": ({"method": {"type": "SFTT"}}, "SFT"),
    "two members of a union": (
        {"model": {"source": "pvc://a/b", "chatTemplate": {"type": "Model", "named": "ChatML"}}},
        "named belongs to type Named",
    ),
    "an unknown field": ({"trainig": {}}, "unknown field"),
    "both epochs and steps": ({"training": {"epochs": 1, "maxSteps": 1}}, "not both"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_apply_refuses(case: tuple[dict[str, Any], str], namespace: str) -> None:
    change, says = case
    with pytest.raises(cluster.KubectlFailed, match=says):
        cluster.apply(quick_job("refused", **change))


def test_an_unknown_training_argument_is_named_within_seconds(base: str, namespace: str, job_name: str) -> None:
    training = {"maxSteps": 1, "args": {"learning_rat": 0.1, "output_dir": "/tmp/x"}}
    cluster.apply(quick_job(job_name, training=training))
    job = cluster.wait_for_condition("finetunejob", job_name, namespace, "Validated", "False", timeout_s=5)
    message = condition(job, "Validated")["message"]
    assert "learning_rat" in message
    assert "output_dir" in message
    assert condition(job, "Validated")["reason"] == "InvalidArgument"
    assert cluster.items("jobs", namespace, f"finetune-operator.io/finetunejob={job_name}") == []


def test_a_missing_claim_is_named_and_picked_up_by_itself(base: str, namespace: str, job_name: str) -> None:
    claim = f"{job_name}-late"[:50]
    cluster.apply(quick_job(job_name, storage={"persistentVolumeClaim": {"claimName": claim}}))
    job = cluster.wait_for_condition("finetunejob", job_name, namespace, "Validated", "False", timeout_s=10)
    assert claim in condition(job, "Validated")["message"]
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": claim, "namespace": namespace},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }
    )
    cluster.wait_for_condition("finetunejob", job_name, namespace, "Validated", timeout_s=60)
    cluster.delete("finetunejob", job_name, namespace, "--wait", "--timeout=60s")
    cluster.delete("pvc", claim, namespace, "--wait=false")


def test_a_quota_is_told_in_the_apis_words(base: str, namespace: str, job_name: str) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "tight", "namespace": namespace},
        "spec": {"hard": {"count/jobs.batch": "0"}},
    }
    cluster.apply(quota)
    try:
        cluster.apply(quick_job(job_name))
        job = cluster.wait_for_condition("finetunejob", job_name, namespace, "ResourcesApplied", "False", timeout_s=60)
        assert "quota" in condition(job, "ResourcesApplied")["message"]
    finally:
        cluster.delete("resourcequota", "tight", namespace)
    wait(lambda: cluster.items("jobs", namespace, f"finetune-operator.io/finetunejob={job_name}"), "the job goes on by itself", 90)


def test_a_pod_that_admission_refuses_is_told_in_its_words_and_can_be_mended(base: str, namespace: str, job_name: str) -> None:
    limits = {
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": {"name": "small-pods", "namespace": namespace},
        "spec": {"limits": [{"type": "Container", "max": {"memory": "64Mi"}}]},
    }
    cluster.apply(limits)
    try:
        cluster.apply(quick_job(job_name))
        cluster.wait_for_condition("finetunejob", job_name, namespace, "Validated", "False", 60, says="maximum memory usage")
        assert "spec.stages.prepare.memory" in condition(cluster.get("finetunejob", job_name, namespace), "Validated")["message"]
        assert cluster.items("jobs", namespace, f"finetune-operator.io/finetunejob={job_name}") == []
    finally:
        cluster.delete("limitrange", "small-pods", namespace)
    cluster.patch("finetunejob", job_name, namespace, {"spec": {"resources": {"memory": "3Gi"}}})  # else it is asked for once a minute
    wait(lambda: cluster.items("jobs", namespace, f"finetune-operator.io/finetunejob={job_name}"), "the mended job starts", 90)


WITHOUT_A_POD = {
    "a PriorityClass that is not there": ({"scheduling": {"priorityClassName": "nope"}}, ("nope", "spec.scheduling.priorityClassName")),
    "a RuntimeClass that is not there": ({"scheduling": {"runtimeClassName": "nvidia"}}, ("nvidia", "spec.scheduling.runtimeClassName")),
    "a StorageClass that is not there": (
        {"storage": {"persistentVolumeClaim": {"size": "1Gi", "storageClassName": "fast-ssd"}}},
        ("fast-ssd", "spec.storage.persistentVolumeClaim.storageClassName"),
    ),
    "a template too large for a pod": (
        {"model": {"source": f"pvc://{JOB}/tiny/base", "chatTemplate": {"type": "ConfigMap", "configMap": {"name": "big", "key": "t"}}}},
        ("spec.model.chatTemplate.configMap", "key t of ConfigMap big"),
    ),
}


@pytest.mark.parametrize("case", WITHOUT_A_POD.values(), ids=WITHOUT_A_POD.keys())
def test_what_would_stop_a_later_stage_is_said_before_the_first_and_can_be_mended(
    case: tuple[dict[str, Any], tuple[str, ...]], base: str, namespace: str, job_name: str
) -> None:
    change, words = case
    cluster.server_side_apply(config_map("big", namespace, {"t": "{# " + "x" * 300_000 + " #}"}))
    cluster.apply(quick_job(job_name, **change))
    job = cluster.wait_for_condition("finetunejob", job_name, namespace, "Validated", "False", timeout_s=20)
    message = condition(job, "Validated")["message"]
    assert all(word in message for word in words), message
    assert cluster.items("jobs", namespace, f"finetune-operator.io/finetunejob={job_name}") == []
    cluster.apply(quick_job(job_name))
    wait(lambda: cluster.items("jobs", namespace, f"finetune-operator.io/finetunejob={job_name}"), "mended, it starts", 30)


def test_a_missing_secret_is_named_and_picked_up_by_itself(waiting: None, namespace: str) -> None:
    job = cluster.wait_for_condition("finetunejob", "late-secret", namespace, "Stalled")
    assert f'secret "{LATE_SECRET}" not found' in condition(job, "Stalled")["message"]
    canary = "hf_canarytokenthatmustnotleak"
    kubectl("create", "secret", "generic", LATE_SECRET, "-n", namespace, f"--from-literal=token={canary}")
    job = cluster.wait_for_condition("finetunejob", "late-secret", namespace, "Succeeded", "False", timeout_s=180)
    everything = (
        json.dumps(job) + cluster.stage_logs("late-secret", namespace) + kubectl("get", "events,jobs,pods", "-n", namespace, "-o", "json")
    )
    assert canary not in everything
    assert gpu_jobs("late-secret", namespace) == []


def test_more_gpus_than_any_node_has_is_said_and_not_terminal(waiting: None, namespace: str) -> None:
    job = cluster.wait_for_condition("finetunejob", "too-many-gpus", namespace, "Stalled", says="Insufficient nvidia.com/gpu")
    assert any("8 GPUs" in warning for warning in job["status"]["plan"]["warnings"])
    assert condition(job, "Succeeded")["status"] == "Unknown"
