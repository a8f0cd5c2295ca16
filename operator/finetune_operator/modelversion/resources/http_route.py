"""The HTTPRoute of a model: which share of requests each version gets. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetune_api.sections.rollout import GatewayAPI

from finetune_operator.core import names
from finetune_operator.core.names import Object
from finetune_operator.modelversion.observed import CONTENTS_ANNOTATION, STEPS_ANNOTATION, format_notes
from finetune_operator.modelversion.resources.service import SERVICE_PORT
from finetune_operator.modelversion.versions import Version

API_VERSION = "gateway.networking.k8s.io/v1"
KIND = "HTTPRoute"


def make_http_route(live: Sequence[Version], backends: Mapping[str, int], settings: GatewayAPI) -> Object:
    """One per model, owned by every live version (at least one), so that it goes with the last. `backends`: weight by Service name."""
    first = live[0]
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": first.spec.model,
            "namespace": first.namespace,
            "labels": names.labels(**{names.MODEL_LABEL: first.spec.model}),
            "annotations": {
                STEPS_ANNOTATION: format_notes(noted_steps(live)),
                CONTENTS_ANNOTATION: format_notes({version.name: version.content for version in live}),
            },
            "ownerReferences": [names.owner_reference(version.object, controller=False) for version in live],
        },
        "spec": {
            "parentRefs": [{"name": settings.gateway.name, "namespace": settings.gateway.namespace}],
            **({"hostnames": list(settings.hostnames)} if settings.hostnames else {}),
            "rules": [{"backendRefs": [{"name": name, "port": SERVICE_PORT, "weight": weight} for name, weight in backends.items()]}],
        },
    }


def noted_steps(live: Sequence[Version]) -> dict[str, int]:
    return {version.name: version.step_index for version in live if version.step_index is not None}
