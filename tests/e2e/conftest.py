"""One install, one base model and a tiny one, one trained example: the cases share them wherever they can."""

from __future__ import annotations

import copy
import os
import zlib
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
    return {name: os.environ[f"FINETUNE_IMAGE_{name.upper()}"] for name in ("operator", "trainer", "server", "example")}


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
def example_base(namespace: str) -> str:
    """The claim that holds the example's base model and data, brought there by the example's own Job."""
    demo.make_base(demo.Kubectl(), images())
    return demo.JOB


@pytest.fixture(scope="session")
def base(example_base: str, namespace: str) -> str:
    """The same claim with a tiny base model beside the example's, for jobs that must be quick."""
    script = Path(__file__).with_name("tiny_base.py").read_text()
    cluster.apply(config_map("tiny-base", namespace, {"tiny_base.py": script}), tiny_base_job(namespace))
    kubectl("wait", "--for=condition=Complete", "job/tiny-base", "-n", namespace, "--timeout=300s", timeout_s=310)
    return example_base


def config_map(name: str, namespace: str, files: dict[str, str]) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": files}


def tiny_base_job(namespace: str) -> Object:
    """The example's Job with the trainer's image and tiny_base.py in it."""
    job: Object = list(yaml.safe_load_all((EXAMPLE / "base-job.yaml").read_text()))[1]
    job["metadata"] = {"name": "tiny-base", "namespace": namespace}
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    container["image"] = images()["trainer"]
    container["command"] = ["python", "/scripts/tiny_base.py", "--output", "/claim/tiny"]
    container["resources"] = {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "2Gi"}}
    container["volumeMounts"] += [{"name": "scripts", "mountPath": "/scripts"}, {"name": "tmp", "mountPath": "/tmp"}]
    pod["volumes"] += [{"name": "scripts", "configMap": {"name": "tiny-base"}}, {"name": "tmp", "emptyDir": {}}]
    return job


@pytest.fixture(scope="session")
def example(example_base: str, namespace: str) -> Object:
    """The example's FineTuneJob, run to its end; its ModelVersion in production."""
    kube = demo.Kubectl()
    demo.apply(kube, "finetunejob.yaml", images())
    demo.follow(kube)
    demo.roll_out(kube)
    return cluster.get("finetunejob", demo.JOB, namespace)


def on_claim(claim: str, script: str, namespace: str) -> str:
    """What a shell script prints in a pod that has the claim at /claim."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "on-claim", "namespace": namespace},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "script",
                    "image": images()["operator"],
                    "command": ["sh", "-c", script],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [{"name": "claim", "mountPath": "/claim"}],
                }
            ],
            "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": claim}}],
        },
    }
    cluster.delete("pod", "on-claim", namespace)
    cluster.apply(pod)
    kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/on-claim", "-n", namespace, "--timeout=120s")
    printed = kubectl("logs", "on-claim", "-n", namespace)
    cluster.delete("pod", "on-claim", namespace, "--wait=false")
    return printed


def quick_job(name: str, **spec: Any) -> Object:
    """The example cut down to seconds: the tiny base, no gate, no rollout, three steps. `spec` replaces whole members."""
    job = copy.deepcopy(yaml.safe_load((EXAMPLE / "finetunejob.yaml").read_text()))
    job["metadata"]["name"] = name
    job["spec"] |= {
        "model": {"source": f"pvc://{demo.JOB}/tiny/base"},
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
    test, _, case = request.node.name.removeprefix("test_").replace("_", "-").partition("[")
    name = test[:38].strip("-") if not case else f"{test[:32].strip('-')}-{zlib.crc32(case.encode()):08x}"[:38]
    yield name
    if not os.environ.get(KEEP):
        kubectl("delete", "finetunejob", name, "-n", namespace, "--ignore-not-found", "--wait=false")
