"""The example, from `kubectl apply` to an answer through the gateway, and what may happen to it afterwards. In this order."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time

import pytest

from hack import demo
from tests.e2e import cluster
from tests.e2e.cluster import Object, condition, kubectl, wait
from tests.e2e.conftest import EXAMPLE, images
from tests.e2e.load import Load

JOB = demo.JOB
STATUS_BYTES = 20_000


def version_of(job: Object) -> str:
    return str(job["status"]["modelVersionRef"]["name"])


def test_every_condition_tells_the_truth(example: Object, namespace: str) -> None:
    for type in ("Validated", "Prepared", "Trained", "Packaged", "Evaluated", "Published", "Succeeded", "ResourcesApplied"):
        assert condition(example, type)["status"] == "True", type
        kubectl("wait", f"--for=condition={type}", "finetunejob", JOB, "-n", namespace, "--timeout=1s")
    for type in ("Reconciling", "Stalled"):
        assert condition(example, type)["status"] == "False", type
    generation = example["metadata"]["generation"]
    assert {found["observedGeneration"] for found in example["status"]["conditions"]} == {generation}


def test_status_has_the_evidence_and_stays_small(example: Object) -> None:
    status = example["status"]
    gate = status["evaluation"]["gates"][0]
    assert gate["result"] == "Passed"
    choice = next(metric for metric in status["evaluation"]["metrics"] if metric["name"] == "AnswerChoice")
    print(json.dumps(choice))
    assert choice["improvementOverBase"]["low"] > 0
    assert {report["format"]: report["verdict"] for report in status["parity"]}["Q8_0"] == "Passed"
    assert status["plan"]["trainableParameters"] > 0
    assert status["dataset"]["rowsOut"]["train"] > 0
    assert all(len(artifact["sha256"]) == 64 for artifact in status["artifacts"])
    assert len(json.dumps(status)) < STATUS_BYTES


def test_the_columns_say_it(example: Object, namespace: str) -> None:
    header, row = kubectl("get", "ftj", JOB, "-n", namespace).splitlines()
    assert header.split() == ["NAME", "PHASE", "PROGRESS", "ETA", "LOSS", "METHOD", "MODEL", "AGE"]
    assert "Succeeded" in row
    header, row = kubectl("get", "mver", version_of(example), "-n", namespace).splitlines()
    assert header.split() == ["NAME", "MODEL", "VERSION", "STAGE", "WEIGHT", "READY", "SCORE", "JOB", "AGE"]
    assert row.split()[3] == "Production"


def test_it_moved_while_it_trained(example: Object, namespace: str) -> None:
    """Progress reached status from the pod: a last loss and step are left of it."""
    progress = example["status"]["progress"]
    assert progress["percent"] == 100 or progress["stage"] == "evaluate"


def test_facts_are_answered_word_for_word_in_a_phrasing_that_was_never_trained(example: Object, namespace: str) -> None:
    """Asked of the version in production, through the gateway, by the example's own script."""
    rows = demo.held_out_rows(demo.Kubectl(), images(), namespace)
    assert len(rows.splitlines()) >= 32
    script = [sys.executable, str(EXAMPLE / "check.py"), "-", "--url", demo.GATEWAY, "--host", demo.HOSTNAME, "--min", "0.8"]
    done = subprocess.run(script, input=rows, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_applying_it_again_changes_nothing(example: Object, namespace: str) -> None:
    before = cluster.get("finetunejob", JOB, namespace)["metadata"]
    demo.apply(demo.Kubectl(), "finetunejob.yaml", images())
    time.sleep(5)
    after = cluster.get("finetunejob", JOB, namespace)["metadata"]
    assert (after["resourceVersion"], after["generation"]) == (before["resourceVersion"], before["generation"])


def test_a_started_jobs_content_cannot_change(example: Object, namespace: str) -> None:
    with pytest.raises(cluster.KubectlFailed, match="create another job"):
        cluster.patch("finetunejob", JOB, namespace, {"spec": {"training": {"epochs": 7}}})


def test_deleting_the_job_leaves_production_serving_and_the_same_job_trains_nothing(example: Object, namespace: str) -> None:
    version = version_of(example)
    cluster.delete("finetunejob", JOB, namespace, "--wait", "--timeout=120s")
    assert cluster.items("jobs", namespace, f"finetune-operator.io/finetunejob={JOB}") == []
    pods = cluster.items("pods", namespace, f"finetune-operator.io/model={JOB}")
    pod = next(pod for pod in pods if pod["metadata"]["name"].startswith(version))
    cluster.delete("pod", pod["metadata"]["name"], namespace, "--wait", "--timeout=120s")
    cluster.wait_for_condition("modelversion", version, namespace, "Ready", timeout_s=120)
    wait(lambda: _answers(), "the version answers again", 60)
    demo.apply(demo.Kubectl(), "finetunejob.yaml", images())
    job = cluster.wait_for_condition("finetunejob", JOB, namespace, "Succeeded", timeout_s=30)
    assert condition(job, "Succeeded")["reason"] == "AlreadyPublished"
    assert cluster.items("jobs", namespace, f"finetune-operator.io/finetunejob={JOB}") == []


def _answers() -> bool:
    try:
        return bool(demo.ask("hello") is not None)
    except OSError:
        return False


def test_a_second_version_takes_over_and_an_abort_brings_the_first_back_without_a_failed_request(example: Object, namespace: str) -> None:
    first = version_of(example)
    second = copy.deepcopy(cluster.get("modelversion", first, namespace))
    name = f"{JOB}-v2"
    spec = second["spec"] | {"version": 2, "lineage": second["spec"]["lineage"] | {"runDigest": "2" * 64}}
    with Load() as load:
        cluster.apply(
            {
                "apiVersion": second["apiVersion"],
                "kind": "ModelVersion",
                "metadata": {"name": name, "namespace": namespace},
                "spec": spec,
            }
        )
        seen = _stages_until(name, namespace, "Production")
        assert cluster.get("modelversion", first, namespace)["status"]["stage"] == "Archived"
        time.sleep(3)
        cluster.patch("modelversion", name, namespace, {"spec": {"rollout": {"abort": True}}})
        _stages_until(first, namespace, "Production")
        time.sleep(3)
    print(dict(load.answers), seen)
    assert [stage for stage, _ in seen if stage in ("Canary", "Staging", "Production")] == ["Canary", "Staging", "Production"]
    assert dict(seen)["Canary"] == 5
    assert load.answers["200"] >= 20 * 10
    assert load.failed == 0
    assert cluster.get("modelversion", name, namespace)["status"]["stage"] == "RolledBack"
    history = cluster.get("modelversion", name, namespace)["status"]["history"]
    assert [entry["to"] for entry in history][-4:] == ["Canary", "Staging", "Production", "RolledBack"]


def _stages_until(name: str, namespace: str, wanted: str) -> list[tuple[str, int]]:
    """(stage, weight) as they were seen, repetitions left out, until the wanted stage with its traffic."""
    seen: list[tuple[str, int]] = []

    def reached() -> bool:
        status = (cluster.find("modelversion", name, namespace) or {}).get("status", {})
        now = (status.get("stage", "Registered"), status.get("weight", 0))
        if not seen or seen[-1] != now:
            seen.append(now)
        return now == (wanted, 100)

    wait(reached, f"{name} in {wanted}", 180, every_s=0.3)
    return seen
