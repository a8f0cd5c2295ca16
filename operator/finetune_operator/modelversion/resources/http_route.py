"""The HTTPRoute of a model: which share of requests each version gets. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api.section import digest_of
from finetune_api.sections.rollout import GatewayAPI

from finetune_operator.core import names
from finetune_operator.core.names import Object
from finetune_operator.modelversion.observed import (
    CONTENTS_ANNOTATION,
    ROUTE_ANNOTATION,
    STEPS_ANNOTATION,
    RouteFact,
    format_notes,
    our_part,
)
from finetune_operator.modelversion.resources.deployment import PUBLIC_PATHS
from finetune_operator.modelversion.resources.service import SERVICE_PORT
from finetune_operator.modelversion.versions import Version

API_VERSION = "gateway.networking.k8s.io/v1"
KIND = "HTTPRoute"


def make_http_route(
    live: Sequence[Version],
    backends: Mapping[str, int],
    settings: GatewayAPI,
    theirs: Mapping[str, Any] = {},
    heirs: Sequence[Version] = (),
) -> Object:
    """One per model, owned by every live version (at least one) and by the `heirs`, who may follow them: so that it goes with the last.

    `backends`: weight by Service name. `theirs`: members of the rule that people set (filters, timeouts, …); they are kept.
    """
    first = live[0]
    paths = sorted({path for version in live for path in PUBLIC_PATHS[version.spec.serving.type]})
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": path}} for path in paths],
        "backendRefs": [{"name": name, "port": SERVICE_PORT, "weight": weight} for name, weight in backends.items()],
    }
    spec = {
        "parentRefs": [{"name": settings.gateway.name, "namespace": settings.gateway.namespace}],
        "hostnames": list(settings.hostnames),  # none, said so: server-side apply leaves what others set where nothing is said
        "rules": [{**theirs, **rule}],
    }
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
                ROUTE_ANNOTATION: _mark(spec),
            },
            "ownerReferences": [names.owner_reference(version.object, controller=False) for version in (*live, *heirs)],
        },
        "spec": spec,
    }


def reference_to(route: RouteFact) -> Object:
    """An owner reference to the route."""
    return {"apiVersion": API_VERSION, "kind": KIND, "name": route.name, "uid": route.uid}


def route_mark(route: Object) -> str:
    """Digest of our part of a route that was made here, as it is noted on it."""
    return str(route["metadata"]["annotations"][ROUTE_ANNOTATION])


def _mark(spec: Mapping[str, Any]) -> str:
    return digest_of(our_part(spec))[:16]


def noted_steps(live: Sequence[Version]) -> dict[str, int]:
    return {version.name: version.step_index for version in live if version.step_index is not None}
