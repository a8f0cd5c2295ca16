"""Every right that the code uses: what the chart's RBAC is compared with, and what the simulated API server enforces."""

from __future__ import annotations

from collections.abc import Mapping

Rules = Mapping[str, Mapping[str, tuple[str, ...]]]
"""API group → resource (with subresource) → verbs."""

_WATCH = ("get", "list", "watch")
_APPLY = (*_WATCH, "create", "patch", "delete")

TENANTS: Rules = {
    "finetune-operator.io": {
        "finetunejobs": (*_WATCH, "delete"),
        "modelversions": (*_WATCH, "create"),
        "finetunejobs/status": ("patch",),
        "modelversions/status": ("patch",),
    },
    "batch": {"jobs": (*_WATCH, "create", "patch", "delete")},  # patch: labels that somebody took away
    "": {
        "pods": (*_WATCH, "create"),  # create: dry runs only
        "persistentvolumeclaims": (*_WATCH, "create", "patch"),
        "services": _APPLY,
        "configmaps": ("get",),
        "events": _WATCH,
    },
    "apps": {"deployments": _APPLY},
    "policy": {"poddisruptionbudgets": _APPLY},
    "autoscaling": {"horizontalpodautoscalers": _WATCH},
    "gateway.networking.k8s.io": {"httproutes": _APPLY},
    "events.k8s.io": {"events": ("create", "patch")},
}
"""In the namespaces that are watched."""

CLUSTER: Rules = {
    "authentication.k8s.io": {"tokenreviews": ("create",)},
    "": {"nodes": ("list",)},
    "storage.k8s.io": {"storageclasses": ("get",)},
}

OWN_NAMESPACE: Rules = {
    "coordination.k8s.io": {"leases": ("get", "create", "update")},
    "discovery.k8s.io": {"endpointslices": ("create", "patch")},
    "": {"secrets": ("get", "update")},  # by resourceNames
}


def allows(rules: Rules, group: str, resource: str, verb: str) -> bool:
    return verb in rules.get(group, {}).get(resource, ())
