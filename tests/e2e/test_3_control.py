"""The control that must fail: the same job tuned on shuffled answers learns the format, beats nothing, and publishes nothing."""

from __future__ import annotations

from tests.e2e import cluster
from tests.e2e.cluster import condition


def test_a_job_tuned_on_shuffled_answers_fails_the_gate_and_publishes_nothing(control: str, namespace: str) -> None:
    job = cluster.wait_for_condition("finetunejob", control, namespace, "Succeeded", "False", timeout_s=900)
    print(job["status"]["evaluation"]["gates"])
    assert condition(job, "Evaluated")["reason"] == "GateFailed"
    assert condition(job, "Succeeded")["reason"] == "GateFailed"
    assert job["status"]["artifacts"], "a failed job keeps its artifacts and says where"
    assert control not in {version["spec"]["lineage"]["jobRef"] for version in cluster.items("modelversions", namespace)}
