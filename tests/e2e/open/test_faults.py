"""The operator killed, pods killed, jobs suspended and deleted in the middle: nothing twice, nothing lost, nothing left."""

from __future__ import annotations

import json
import subprocess
import time

from tests.e2e import cluster
from tests.e2e.cluster import GROUP, OPERATOR_NAMESPACE, Object, condition, kubectl, wait
from tests.e2e.conftest import quick_job
from tests.e2e.test_4_faults import operator_pods, stage_jobs

LONG = {"maxSteps": 400, "learningRate": 0.001, "globalBatchSize": 8, "perDeviceBatchSize": 2, "maxLength": 256}


def _training(name: str, namespace: str) -> Object | None:
    job = cluster.get("finetunejob", name, namespace)
    progress = job["status"].get("progress") or {}
    return job if progress.get("stage") == "train" and progress.get("step", 0) >= 1 else None


def test_progress_moves_suspend_saves_and_going_on_resumes(base: str, namespace: str, job_name: str) -> None:
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
    assert cluster.items("pods", namespace, f"{GROUP}/finetunejob={job_name},{GROUP}/stage=train") == []
    assert job["status"]["phase"] == "Suspended"
    cluster.patch("finetunejob", job_name, namespace, {"spec": {"suspend": False}})
    pod = wait(lambda: _running_train_pod(job_name, namespace), "a new pod", 120)
    wait(lambda: "resum" in kubectl("logs", pod, "-n", namespace).lower(), "the log says from where it resumes", 120)


def _running_train_pod(name: str, namespace: str) -> str | None:
    pods = cluster.items("pods", namespace, f"{GROUP}/finetunejob={name},{GROUP}/stage=train")
    return next((pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"), None)


def test_a_pod_killed_in_training_is_resumed_and_a_deleted_job_leaves_nothing(base: str, namespace: str, job_name: str) -> None:
    cluster.apply(quick_job(job_name, training=LONG))
    wait(lambda: _training(job_name, namespace), "training has begun", 240)
    pod = wait(lambda: _running_train_pod(job_name, namespace), "the train pod", 10)
    kubectl("delete", "pod", pod, "-n", namespace, "--wait=false")
    job = wait(lambda: _second_attempt(job_name, namespace), "a second attempt", 180)
    record = job["status"]["attempts"][-1]
    print(record)
    assert condition(job, "Succeeded")["status"] == "Unknown"
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


KSTATUS = {"Succeeded": "Current", "Failed": "Failed", "Suspended": "Current"}


def test_helms_kstatus_reads_ends_right(example: Object, namespace: str) -> None:
    """By the Go library that Helm 4 waits with."""
    verdicts = {}
    for job in cluster.items("finetunejobs", namespace):
        shown = subprocess.run(["kstatus"], input=json.dumps(job), capture_output=True, text=True, check=True).stdout
        verdicts.setdefault(job["status"]["phase"], set()).add(shown.split()[0])
    print(verdicts)
    assert verdicts["Succeeded"] == {"Current"}
    for phase, verdict in verdicts.items():
        assert verdict == {KSTATUS.get(phase, "InProgress")} or phase not in KSTATUS


def test_the_operator_measures_itself_and_answers_its_probes() -> None:
    helm = subprocess.run(
        ["helm", "test", "finetune-operator", "-n", OPERATOR_NAMESPACE, "--timeout", "90s"], capture_output=True, text=True
    )
    assert helm.returncode == 0, helm.stdout + helm.stderr
