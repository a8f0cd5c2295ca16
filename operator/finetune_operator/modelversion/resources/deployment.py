"""The Deployment that serves a version with llama-server. Pure.

Its pod template is made once and noted on the Deployment. It is made anew when the spec asks for something else, never because this
code or the chart did: an upgrade of the operator restarts no server.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from finetune_api.environment import MODEL_PATH, MODEL_SHA256
from finetune_api.modelversion import PublishedArtifact
from finetune_api.section import digest_of
from finetune_api.sections.placement import Placement
from finetune_api.sections.serving import ServerType

from finetune_operator.core import names
from finetune_operator.core.names import Object
from finetune_operator.core.restricted import restricted_container, restricted_pod
from finetune_operator.core.settings import Settings
from finetune_operator.modelversion.observed import SERVER, TEMPLATE_ANNOTATION, NotedTemplate
from finetune_operator.modelversion.versions import Version

PORT = 8080
MODELS = "/models"
CLAIM_LABEL = f"{names.GROUP}/claim"

PRE_STOP_S = 15
"""The pod leaves the Service's endpoints at once and the Gateway some seconds later: until then it still answers."""
TERMINATION_GRACE_S = 60
START_TIMEOUT_S = 1800
"""Reading and hashing a large file from slow storage."""
SPARE_HTTP_THREADS = 64
"""llama-server gives each open request a thread, a waiting one too: without spare ones /health would wait behind them and the
pod be taken out under load."""


PUBLIC_PATHS = {ServerType.LLAMA_CPP: ("/v1",)}
"""What of each server's API the Gateway lets through, by path prefix. The rest of llama-server's tells what others ask (/slots) and how
it is set up (/props)."""

_NOT_OF_THE_TEMPLATE = {"replicas", "keep_previous"}


def asked_of(version: Version) -> str:
    """Digest of what the spec asks of the pods. Members at their default are left out: a later release has more of them."""
    return digest_of(version.spec.serving.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=_NOT_OF_THE_TEMPLATE))[:16]


def make_template(version: Version, artifact: PublishedArtifact, image: str, *, one_node: bool, settings: Settings) -> NotedTemplate:
    """`one_node`: the claim can be mounted on one node at a time, so all pods that use it go where the first one is."""
    labels, own = version_labels(version), {CLAIM_LABEL: claim_label(artifact.location.claim)}
    spec = _pod(version, artifact, _container(version, artifact, image, settings)) | _placed(version, own, one_node=one_node)
    return NotedTemplate(asked_of(version), {"metadata": {"labels": labels | own}, "spec": spec})


def make_deployment(version: Version, template: NotedTemplate, owners: Sequence[Object]) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": version.name,
            "namespace": version.namespace,
            "labels": version_labels(version),
            "annotations": {TEMPLATE_ANNOTATION: json.dumps({"asked": template.asked, "template": template.template}, sort_keys=True)},
            "ownerReferences": list(owners),
        },
        "spec": {
            "replicas": version.spec.serving.replicas,
            "revisionHistoryLimit": 1,
            "progressDeadlineSeconds": START_TIMEOUT_S,
            "selector": {"matchLabels": selector(version)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": template.template,
        },
    }


def owners_of_server(version: Version, route: Object | None) -> list[Object]:
    """Of Deployment and Service. `route`: reference to the model's HTTPRoute, where there is one: it keeps what it sends to when the version
    is deleted, until others answer."""
    return [names.owner_reference(version.object), *([route] if route else [])]


def version_labels(version: Version) -> dict[str, str]:
    return names.labels(**selector(version))


def selector(version: Version) -> dict[str, str]:
    return {names.MODEL_LABEL: version.spec.model, names.VERSION_LABEL: str(version.spec.version)}


def claim_label(claim: str) -> str:
    """A claim's name as a label value: names are longer than label values may be."""
    return claim if len(claim) <= 63 else hashlib.sha256(claim.encode()).hexdigest()[:32]


def _pod(version: Version, artifact: PublishedArtifact, container: Object) -> Object:
    return {
        **restricted_pod(),
        "terminationGracePeriodSeconds": TERMINATION_GRACE_S,
        "containers": [container],
        "volumes": [
            {"name": "models", "persistentVolumeClaim": {"claimName": artifact.location.claim, "readOnly": True}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }


def _container(version: Version, artifact: PublishedArtifact, image: str, settings: Settings) -> Object:
    health = {"httpGet": {"path": "/health", "port": "http"}}
    return {
        "name": SERVER,
        "image": image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": _arguments(version),
        "env": [
            {"name": MODEL_PATH, "value": f"{MODELS}/{artifact.location.path}"},
            {"name": MODEL_SHA256, "value": artifact.sha256},
        ],
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "startupProbe": health | {"periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": START_TIMEOUT_S},
        "readinessProbe": health | {"periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 3},
        "livenessProbe": health | {"periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_S}}},
        "resources": _resources(version),
        "securityContext": restricted_container(),
        "volumeMounts": [
            {"name": "models", "mountPath": MODELS, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }


def _arguments(version: Version) -> list[str]:
    """What follows the image's own `--model --host --port --metrics`. llama-server's --ctx-size is shared by its slots."""
    serving = version.spec.serving.effective_llama_cpp
    arguments = {
        "--alias": version.spec.model,
        "--ctx-size": str(serving.context_length * serving.parallel),
        "--parallel": str(serving.parallel),
        "--threads-http": str(serving.parallel + SPARE_HTTP_THREADS),
    } | ({"--n-gpu-layers": "999"} if version.spec.serving.effective_resources.gpus else {})
    return [*(part for pair in arguments.items() for part in pair), "--jinja"]


def _resources(version: Version) -> Object:
    resources = version.spec.serving.effective_resources
    gpus = {resources.gpu_resource_name: str(resources.gpus)} if resources.gpus else {}
    limits = {"memory": resources.memory} | ({"cpu": resources.cpu_limit} if resources.cpu_limit else {})
    return {"requests": {"cpu": resources.cpu, "memory": resources.memory, **gpus}, "limits": limits | gpus}


def _placed(version: Version, own: dict[str, str], *, one_node: bool) -> Object:
    """What the spec says of nodes, in a Pod's own words, and what the claim demands beside it."""
    serving = version.spec.serving
    asked = serving.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=set(Placement.model_fields))
    if one_node:
        return asked | {"affinity": _with_same_node(serving.affinity or {}, own)}
    return asked | {"topologySpreadConstraints": _spread(version)}


_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def _with_same_node(affinity: Object, own: dict[str, str]) -> Object:
    term = {"labelSelector": {"matchLabels": own}, "topologyKey": "kubernetes.io/hostname"}
    pods = affinity.get("podAffinity") or {}
    return affinity | {"podAffinity": pods | {_REQUIRED: [*(pods.get(_REQUIRED) or []), term]}}


def _spread(version: Version) -> list[Object]:
    return [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector(version)},
        }
    ]
