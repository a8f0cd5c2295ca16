"""The control that must fail: the same job tuned on shuffled answers learns the format, beats nothing, and publishes nothing."""

from __future__ import annotations

import yaml

from hack import demo
from tests.e2e import cluster
from tests.e2e.cluster import condition
from tests.e2e.conftest import EXAMPLE, images


def test_a_job_tuned_on_shuffled_answers_fails_the_gate_and_publishes_nothing(example_base: str, namespace: str) -> None:
    demo.apply(demo.Kubectl(), "shuffled.yaml", images())
    manifest = yaml.safe_load((EXAMPLE / "shuffled.yaml").read_text())
    name = manifest["metadata"]["name"]
    job = cluster.wait_for_condition("finetunejob", name, namespace, "Succeeded", "False", timeout_s=900)
    print(job["status"]["evaluation"]["gates"])
    assert condition(job, "Evaluated")["reason"] == "GateFailed"
    assert condition(job, "Succeeded")["reason"] == "GateFailed"
    assert job["status"]["artifacts"], "a failed job keeps its artifacts and says where"
    assert name not in {version["spec"]["lineage"]["jobRef"] for version in cluster.items("modelversions", namespace)}
