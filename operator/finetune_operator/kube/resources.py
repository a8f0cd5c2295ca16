"""The kinds that are spoken of with the API server, and their paths."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.core import names


@dataclass(frozen=True)
class Resource:
    """A kind and where the API serves it. `label_selector` and `field_selector` narrow what is watched and listed of it."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True
    label_selector: str = ""
    field_selector: str = ""

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        return self.api_version.rpartition("/")[2]

    @property
    def group_path(self) -> str:
        return f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        parts = [self.group_path]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


_OURS = f"{names.MANAGED_BY}={names.MANAGED_BY_VALUE}"

FINETUNEJOB = Resource(names.API_VERSION, names.FINETUNEJOB, "finetunejobs")
MODELVERSION = Resource(names.API_VERSION, names.MODELVERSION, "modelversions")
JOB = Resource("batch/v1", "Job", "jobs", label_selector=_OURS)
POD = Resource("v1", "Pod", "pods", label_selector=_OURS)
CLAIM = Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims", label_selector=_OURS)
SERVICE = Resource("v1", "Service", "services", label_selector=_OURS)
DEPLOYMENT = Resource("apps/v1", "Deployment", "deployments", label_selector=_OURS)
HTTPROUTE = Resource("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes", label_selector=_OURS)
DISRUPTION_BUDGET = Resource("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", label_selector=_OURS)
AUTOSCALER = Resource("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
"""Of everybody: who says how many pods a Deployment of ours has is not ours."""
REFUSAL = Resource("v1", "Event", "events", field_selector="involvedObject.kind=Job,reason=FailedCreate")
"""Why the Job controller could not create a pod (quota, Pod Security): told nowhere else."""

CORE_EVENT = Resource("v1", "Event", "events")
CONFIGMAP = Resource("v1", "ConfigMap", "configmaps")
SECRET = Resource("v1", "Secret", "secrets")
NODE = Resource("v1", "Node", "nodes", namespaced=False)
STORAGECLASS = Resource("storage.k8s.io/v1", "StorageClass", "storageclasses", namespaced=False)
LEASE = Resource("coordination.k8s.io/v1", "Lease", "leases")
ENDPOINTSLICE = Resource("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")
EVENT = Resource("events.k8s.io/v1", "Event", "events")
TOKENREVIEW = Resource("authentication.k8s.io/v1", "TokenReview", "tokenreviews", namespaced=False)

WATCHED: tuple[Resource, ...] = (
    FINETUNEJOB,
    MODELVERSION,
    JOB,
    POD,
    CLAIM,
    SERVICE,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    AUTOSCALER,
    HTTPROUTE,
    REFUSAL,
)
"""What the store holds: fed by kopf's watches and by our own LISTs with the same selectors."""

OPTIONAL: tuple[Resource, ...] = (HTTPROUTE,)
"""Watched kinds whose CRD a cluster may lack."""

_KNOWN = {
    (resource.api_version, resource.kind): resource
    for resource in (*WATCHED, CONFIGMAP, SECRET, NODE, LEASE, ENDPOINTSLICE, EVENT, TOKENREVIEW)
}


def resource_of(api_version: str, kind: str) -> Resource:
    """The resource of an object's `apiVersion` and `kind`. KeyError: a kind that nothing here speaks of."""
    return _KNOWN[api_version, kind]
