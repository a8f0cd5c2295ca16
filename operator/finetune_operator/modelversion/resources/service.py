"""The Service of a version: what the route sends to, and a name within the cluster. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_operator.core.names import Object
from finetune_operator.modelversion.resources.deployment import selector, version_labels
from finetune_operator.modelversion.versions import Version

SERVICE_PORT = 80


def make_service(version: Version, owners: Sequence[Object]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": version.name,
            "namespace": version.namespace,
            "labels": version_labels(version),
            "ownerReferences": list(owners),
        },
        "spec": {
            "type": "ClusterIP",
            "selector": selector(version),
            "ports": [{"name": "http", "port": SERVICE_PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def endpoint(version: Version) -> str:
    """Base URL of the OpenAI-compatible API within the cluster."""
    return f"http://{version.name}.{version.namespace}.svc/v1"
