"""The control that must fail: the same job tuned on shuffled answers learns the format, beats nothing, and publishes nothing."""

from __future__ import annotations

import yaml

from tests import demo
from tests.e2e import cluster
from tests.e2e.cluster import condition
from tests.e2e.conftest import EXAMPLE


def test_a_job_tuned_on_shuffled_answers_fails_the_gate_and_publishes_nothing(base: str, namespace: str) -> None:
    images = {name: cluster.image(name) for name in ("operator", "trainer", "server")}
    demo.apply(demo.Kubectl(), "shuffled.yaml", images)
    manifest = yaml.safe_load((EXAMPLE / "shuffled.yaml").read_text())
    name = manifest["metadata"]["name"]
    job = cluster.wait_for_condition("finetunejob", name, namespace, "Succeeded", "False", timeout_s=600)
    assert condition(job, "Evaluated")["reason"] in ("GateFailed", "GateInconclusive")
    assert condition(job, "Succeeded")["reason"] == condition(job, "Evaluated")["reason"]
    print(job["status"]["evaluation"]["gates"])
    model = manifest["spec"]["publish"]["model"]
    versions = cluster.items("modelversions", namespace)
    assert [
        version for version in versions if version["spec"]["lineage"]["jobRef"] == name or version["spec"]["model"] == model != demo.JOB
    ] == []
    assert job["status"]["artifacts"], "a failed job keeps its artifacts and says where"
