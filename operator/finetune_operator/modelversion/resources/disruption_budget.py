"""The PodDisruptionBudget of a version: a drain takes its pods one after the other. Pure."""

from __future__ import annotations

from finetune_operator.core import names
from finetune_operator.core.names import Object
from finetune_operator.modelversion.resources.deployment import selector, version_labels
from finetune_operator.modelversion.versions import Version

API_VERSION = "policy/v1"
KIND = "PodDisruptionBudget"


def make_disruption_budget(version: Version) -> Object:
    """At most one pod less than wanted, whatever their number; pods that do not answer anyway never block a drain."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": version.name,
            "namespace": version.namespace,
            "labels": version_labels(version),
            "ownerReferences": [names.owner_reference(version.object)],
        },
        "spec": {"maxUnavailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow", "selector": {"matchLabels": selector(version)}},
    }
