"""One install, one base model, one trained example: the cases share them wherever they can."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack import demo
from tests.e2e import cluster
from tests.e2e.cluster import Object, kubectl

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "support-bot"
NAMESPACE = demo.NAMESPACE
KEEP = "FINETUNE_KEEP_JOBS"
"""Set: a further run on the same cluster takes base model, example and jobs as they are."""


def images() -> dict[str, str]:
    """References of the images that were given to the nodes."""
    return {name: os.environ[f"FINETUNE_IMAGE_{name.upper()}"] for name in ("operator", "trainer", "server")}


@pytest.fixture(scope="session")
def namespace() -> str:
    """The example's namespace, without what a demo or a killed run left there: Pod Security `restricted` is enforced on it."""
    if not os.environ.get(KEEP):
        kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait", timeout_s=180)
    cluster.kubectl("apply", "-f", str(EXAMPLE / "namespace.yaml"))
    enforced = cluster.get("namespace", NAMESPACE, NAMESPACE)["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert enforced == "restricted"
    return NAMESPACE


@pytest.fixture(scope="session")
def base(namespace: str) -> str:
    """The claim that holds the base model and the data, made by the example's own Job."""
    demo.make_base(demo.Kubectl(), images())
    return demo.JOB


@pytest.fixture(scope="session")
def example(base: str, namespace: str) -> Object:
    """The example's FineTuneJob, run to its end; its ModelVersion in production."""
    kube = demo.Kubectl()
    demo.apply(kube, "finetunejob.yaml", images())
    demo.follow(kube)
    demo.roll_out(kube)
    return cluster.get("finetunejob", demo.JOB, namespace)


def quick_job(name: str, **spec: Any) -> Object:
    """The example cut down to seconds of training: no gate, no rollout, three steps. `spec` replaces whole members."""
    job = copy.deepcopy(yaml.safe_load((EXAMPLE / "finetunejob.yaml").read_text()))
    job["metadata"]["name"] = name
    job["spec"] |= {
        "training": {"maxSteps": 3, "learningRate": 0.001, "globalBatchSize": 4, "perDeviceBatchSize": 4, "maxLength": 128},
        "evaluation": {"maxSamples": 40, "maxNewTokens": 8},
        "export": {"gguf": ["Q8_0"]},
        "datasets": job["spec"]["datasets"][:1],
        "preparation": {"split": {"train": 0.8, "validation": 0.1, "test": 0.1}},
        "runId": name,
    }
    del job["spec"]["publish"]
    job["spec"] |= spec
    return job  # type: ignore[no-any-return]


@pytest.fixture
def job_name(request: pytest.FixtureRequest, namespace: str) -> Iterator[str]:
    """A name of the test's own; whatever carries it is gone afterwards."""
    name = request.node.name.removeprefix("test_").replace("_", "-").split("[")[0][:38].strip("-")
    yield name
    if not os.environ.get(KEEP):
        kubectl("delete", "finetunejob", name, "-n", namespace, "--ignore-not-found", "--wait=false")
