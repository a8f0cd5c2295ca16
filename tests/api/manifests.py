"""Objects that the API server accepts, and ways to spoil them one member at a time."""

from __future__ import annotations

import copy
import itertools
from typing import Any

from tests.api.client import GROUP_PATH, Object

NAMESPACE = "finetune-api-test"
JOBS = f"{GROUP_PATH}/namespaces/{NAMESPACE}/finetunejobs"
VERSIONS = f"{GROUP_PATH}/namespaces/{NAMESPACE}/modelversions"
SHA = "ab" * 32
GATEWAY = {"type": "GatewayAPI", "gatewayAPI": {"gateway": {"name": "gw", "namespace": "infra"}}}
STEPS = [
    {"name": "canary", "stage": "Canary", "weight": 5, "hold": "10s"},
    {"name": "production", "stage": "Production"},
]

_numbers = itertools.count(1)


def job(**spec: Any) -> Object:
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": f"job-{next(_numbers)}", "namespace": NAMESPACE},
        "spec": {
            "model": {"source": "pvc://base/model"},
            "datasets": [{"name": "faq", "source": "pvc://data/faq.jsonl"}],
            "storage": {"persistentVolumeClaim": {"size": "1Gi"}},
            **copy.deepcopy(spec),
        },
    }


def version(**spec: Any) -> Object:
    number = next(_numbers)
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "ModelVersion",
        "metadata": {"name": f"bot-v{number}", "namespace": NAMESPACE},
        "spec": {
            "model": "bot",
            "version": number,
            "artifacts": [{"name": "Q8_0", "format": "GGUF", "uri": "pvc://files/jobs/u/q8.gguf", "sha256": SHA, "bytes": 9}],
            "lineage": {"baseModel": "hf://org/base", "runDigest": SHA},
            **copy.deepcopy(spec),
        },
    }


def with_(body: Object, path: str, value: Any) -> Object:
    """`body` with the member at a dotted path set; None removes it. Numbers are list positions."""
    made = copy.deepcopy(body)
    *way, last = path.split(".")
    node: Any = made
    for step in way:
        node = node[int(step)] if step.isdigit() else node.setdefault(step, {})
    key = int(last) if last.isdigit() else last
    if value is None:
        node.pop(key, None)
    else:
        node[key] = value
    return made
