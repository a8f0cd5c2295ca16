"""The operator killed, pods killed, jobs suspended and deleted in the middle: nothing twice, nothing lost, nothing left."""

from __future__ import annotations

import subprocess

import pytest

from tests.e2e import cluster
from tests.e2e.cluster import GROUP, OPERATOR_NAMESPACE, kubectl, wait
from tests.e2e.conftest import quick_job

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
    finally:
        cluster.delete("finetunejob", again["metadata"]["name"], namespace, "--wait=false")


@pytest.mark.parametrize("verb", ["get", "list", "create", "update"])
def test_the_operator_has_no_right_on_secrets(verb: str, namespace: str) -> None:
    account = f"system:serviceaccount:{OPERATOR_NAMESPACE}:finetune-operator"
    shown = subprocess.run(["kubectl", "auth", "can-i", verb, "secrets", "-n", namespace, "--as", account], capture_output=True, text=True)
    assert shown.stdout.strip() == "no"
