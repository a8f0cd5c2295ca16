"""The operator killed, pods killed, jobs suspended and deleted in the middle: nothing twice, nothing lost, nothing left."""

from __future__ import annotations

import re
import subprocess
import time

import pytest

from tests.e2e import cluster
from tests.e2e.cluster import GROUP, OPERATOR_NAMESPACE, Object, condition, kubectl, wait
from tests.e2e.conftest import on_claim, quick_job

LONG = {"maxSteps": 400, "learningRate": 0.001, "globalBatchSize": 8, "perDeviceBatchSize": 2, "maxLength": 256}


def operator_pods() -> dict[str, str]:
    """uid by name of the operator's pods."""
    pods = cluster.items("pods", OPERATOR_NAMESPACE, "app.kubernetes.io/component=operator")
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods if not pod["metadata"].get("deletionTimestamp")}


def kill_operator() -> None:
    for name in operator_pods():
        kubectl("delete", "pod", name, "-n", OPERATOR_NAMESPACE, "--grace-period=0", "--force")


def stage_jobs(name: str, namespace: str) -> list[str]:
    return sorted(job["metadata"]["name"] for job in cluster.items("jobs", namespace, f"{GROUP}/finetunejob={name}"))


def test_an_operator_killed_again_and_again_loses_and_repeats_nothing(base: str, namespace: str, job_name: str) -> None:
    before = set(operator_pods().values())
    cluster.apply(quick_job(job_name))
    killed = 0
    for stage in ("prepare", "train", "package", "evaluate"):
        wait(lambda stage=stage: f"{job_name}-{stage}-1" in stage_jobs(job_name, namespace), f"stage {stage}", 240)
        kill_operator()
        killed += 1
    job = cluster.wait_for_condition("finetunejob", job_name, namespace, "Succeeded", timeout_s=300)
    assert killed == 4
    assert not before & set(operator_pods().values()), "every operator pod was killed"
    assert stage_jobs(job_name, namespace) == sorted(f"{job_name}-{stage}-1" for stage in ("prepare", "train", "package", "evaluate"))
    assert job["status"].get("attempts", []) == []
    # the same storage again: an equal job takes every stage over
    again = quick_job(f"{job_name[:30]}-re", resumeFrom={"jobName": job_name})
    cluster.apply(again)
    try:
        taken = cluster.wait_for_condition("finetunejob", again["metadata"]["name"], namespace, "Succeeded", timeout_s=240)
        assert taken["status"]["dataset"]["digest"] == job["status"]["dataset"]["digest"]
        digests = [[artifact["sha256"] for artifact in item["status"]["artifacts"]] for item in (job, taken)]
        assert digests[0] == digests[1]
        judged = _judged(again["metadata"]["name"], namespace)
        assert judged["status"]["artifacts"], "a failed job keeps its artifacts and says where"
        assert cluster.find("modelversion", "untaught-v1", namespace) is None
    finally:
        cluster.delete("finetunejob", again["metadata"]["name"], namespace, "--wait=false")


def _judged(former: str, namespace: str) -> Object:
    """The model of three steps before a gate that only a taught one passes."""
    gates = [{"name": "recall", "metric": "facts/ExactMatch", "min": 0.9}]
    name = f"{former[:30]}-judged"
    evaluation = {"maxSamples": 40, "maxNewTokens": 8, "minSamples": 16, "gates": gates}
    cluster.apply(quick_job(name, resumeFrom={"jobName": former}, evaluation=evaluation, publish={"model": "untaught"}))
    try:
        job = cluster.wait_for_condition("finetunejob", name, namespace, "Succeeded", "False", timeout_s=120)
        assert condition(job, "Evaluated")["reason"] == condition(job, "Succeeded")["reason"] == "GateFailed"
        return job
    finally:
        cluster.delete("finetunejob", name, namespace, "--wait=false")


def _training(name: str, namespace: str) -> Object | None:
    job = cluster.get("finetunejob", name, namespace)
    progress = job["status"].get("progress") or {}
    return job if progress.get("stage") == "train" and progress.get("step", 0) >= 1 else None


def test_progress_moves_suspend_saves_going_on_resumes_and_a_deadline_names_what_it_saved(base: str, namespace: str, job_name: str) -> None:
    cluster.apply(quick_job(job_name, training=LONG))
    job = wait(lambda: _training(job_name, namespace), "training has begun", 240)
    assert job["status"]["display"]["progress"].endswith("%")
    first = job["status"]["progress"]["step"]
    wait(
        lambda: (cluster.get("finetunejob", job_name, namespace)["status"].get("progress") or {}).get("step", 0) > first,
        "progress moves",
        60,
    )
    cluster.patch("finetunejob", job_name, namespace, {"spec": {"suspend": True}})
    asked = time.monotonic()
    job = cluster.wait_for_condition("finetunejob", job_name, namespace, "Suspended", timeout_s=150)
    print(f"suspended after {time.monotonic() - asked:.0f} s")
    assert _train_pods(job_name, namespace) == []
    assert job["status"]["phase"] == "Suspended"
    cluster.patch("finetunejob", job_name, namespace, {"spec": {"suspend": False}})
    pod = wait(lambda: _running_train_pod(job_name, namespace), "a new pod", 120)
    resumed = wait(lambda: _resumed_at(pod, namespace), "the log says where it goes on", 120)
    assert resumed >= first
    wait(
        lambda: (cluster.get("finetunejob", job_name, namespace)["status"].get("progress") or {}).get("step", 0) > resumed, "it trains", 60
    )
    cluster.patch("finetunejob", job_name, namespace, {"spec": {"activeDeadlineSeconds": 30}})
    job = cluster.wait_for_condition("finetunejob", job_name, namespace, "Succeeded", "False", timeout_s=90)
    wait(lambda: not _train_pods(job_name, namespace), "the pod is gone", 60)
    job = wait(lambda: _with_newest_checkpoint(job_name, namespace), "status names the newest checkpoint of the claim", 20)
    assert condition(job, "Succeeded")["reason"] == "DeadlineExceeded"
    assert f"{job['status']['activeSeconds']} s" in condition(job, "Succeeded")["message"]
    assert condition(job, "Trained")["reason"] == "DeadlineExceeded"
    assert job["status"]["display"].get("eta", "") == ""


def _train_pods(name: str, namespace: str) -> list[Object]:
    return cluster.items("pods", namespace, f"{GROUP}/finetunejob={name},{GROUP}/stage=train")


def _with_newest_checkpoint(name: str, namespace: str) -> Object | None:
    job = cluster.get("finetunejob", name, namespace)
    (claim,) = cluster.items("pvc", namespace, f"{GROUP}/finetunejob={name}")
    folders = on_claim(claim["metadata"]["name"], "find /claim -type d -path '*checkpoints/*' -name 'step-*'", namespace).split()
    newest = max(int(re.findall(r"/step-(\d+)", folder)[-1]) for folder in folders)
    print(newest, job["status"].get("checkpoint"))
    return job if (job["status"].get("checkpoint") or {}).get("step") == newest else None


def _resumed_at(pod: str, namespace: str) -> int | None:
    found = re.search(r"resuming at step (\d+) of", kubectl("logs", pod, "-n", namespace))
    return int(found[1]) if found else None


def _running_train_pod(name: str, namespace: str) -> str | None:
    pods = _train_pods(name, namespace)
    return next((pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"), None)


def test_a_pod_killed_in_training_is_resumed_and_a_deleted_job_leaves_nothing(base: str, namespace: str, job_name: str) -> None:
    cluster.apply(quick_job(job_name, training=LONG))
    job = wait(lambda: _training(job_name, namespace), "training has begun", 240)
    pod = wait(lambda: _running_train_pod(job_name, namespace), "the train pod", 10)
    kubectl("delete", "pod", pod, "-n", namespace, "--wait=false")
    killed_at = job["status"]["progress"]["step"]
    job = wait(lambda: _second_attempt(job_name, namespace), "a second attempt", 180)
    print(job["status"]["attempts"][-1])
    assert job["status"]["attempts"][-1]["counted"] is False, "a pod stopped from outside costs no attempt"
    again = wait(lambda: _running_train_pod(job_name, namespace), "its pod", 120)
    assert wait(lambda: _resumed_at(again, namespace), "the log says where it goes on", 120) >= killed_at
    cluster.delete("finetunejob", job_name, namespace, "--wait", "--timeout=60s")
    claims = f"{GROUP}/finetunejob={job_name}"
    wait(lambda: not any(cluster.items(kind, namespace, claims) for kind in ("jobs", "pods", "pvc")), "nothing is left", 150)


def _second_attempt(name: str, namespace: str) -> Object | None:
    job = cluster.get("finetunejob", name, namespace)
    return job if job["status"].get("attemptCount", 1) >= 2 and job["status"]["attempt"]["stage"] == "train" else None


def test_a_job_deleted_while_the_operator_is_down_leaves_nothing(base: str, namespace: str, job_name: str) -> None:
    cluster.apply(quick_job(job_name))
    wait(lambda: stage_jobs(job_name, namespace), "its first stage", 60)
    kubectl("scale", "deployment/finetune-operator", "-n", OPERATOR_NAMESPACE, "--replicas=0")
    try:
        wait(lambda: not operator_pods(), "the operator is down", 60)
        cluster.delete("finetunejob", job_name, namespace, "--wait", "--timeout=60s")
        mine = f"{GROUP}/finetunejob={job_name}"
        wait(lambda: not any(cluster.items(kind, namespace, mine) for kind in ("jobs", "pods", "pvc")), "nothing is left", 180)
    finally:
        kubectl("scale", "deployment/finetune-operator", "-n", OPERATOR_NAMESPACE, "--replicas=2")
        kubectl("rollout", "status", "deployment/finetune-operator", "-n", OPERATOR_NAMESPACE, "--timeout=120s")


@pytest.mark.parametrize("verb", ["get", "list", "create", "update"])
def test_the_operator_has_no_right_on_secrets(verb: str, namespace: str) -> None:
    account = f"system:serviceaccount:{OPERATOR_NAMESPACE}:finetune-operator"
    shown = subprocess.run(["kubectl", "auth", "can-i", verb, "secrets", "-n", namespace, "--as", account], capture_output=True, text=True)
    assert shown.stdout.strip() == "no"


def test_the_operator_measures_itself_and_answers_its_probes() -> None:
    helm = subprocess.run(
        ["helm", "test", "finetune-operator", "-n", OPERATOR_NAMESPACE, "--timeout", "90s"], capture_output=True, text=True
    )
    assert helm.returncode == 0, helm.stdout + helm.stderr
