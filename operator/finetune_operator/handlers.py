"""Every kopf decorator. kopf is the source of events and nothing more: it writes nothing and decides nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import kopf

from finetune_operator.kube.resources import WATCHED, Resource
from finetune_operator.runtime import Runtime


def register(runtime: Runtime) -> kopf.OperatorRegistry:
    """A registry whose handlers feed `runtime`: none adds a finalizer or an annotation to any object."""
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(login)
    kopf.on.startup(registry=registry)(_start(runtime))
    kopf.on.cleanup(registry=registry)(_stop(runtime))
    for resource in WATCHED:
        kopf.on.event(resource.group, resource.version, resource.plural, registry=registry, id=resource.plural)(_seen(runtime, resource))
    return registry


def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    # kopf's own choice would import the synchronous client: 40 MiB for a token
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


def _start(runtime: Runtime) -> Callable[..., Any]:
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings)
        await runtime.start()

    return start


def _stop(runtime: Runtime) -> Callable[..., Any]:
    async def stop(**_: Any) -> None:
        await runtime.stop()

    return stop


def _seen(runtime: Runtime, resource: Resource) -> Callable[..., Any]:
    async def seen(event: kopf.RawEvent, **_: Any) -> None:
        live = {**event["object"], "apiVersion": resource.api_version, "kind": resource.kind}
        runtime.seen(event["type"], live)

    return seen


class NoDiffBase(kopf.DiffBaseStorage):  # type: ignore[misc]
    """Of no object is an earlier state kept: nothing here asks for changes, and kopf would copy every object several times per event."""

    def build(self, **_: Any) -> dict[str, Any]:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None


class Patience:
    """Seconds between tries of a watch, without an end: kopf ends the process with the last one, be it one namespace without rights."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1.0, 2.0, 4.0, 8.0, 16.0), itertools.repeat(30.0))


def configure(settings: kopf.OperatorSettings) -> None:
    settings.networking.error_backoffs = Patience()
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.watching.chunk_size = 500
    # workers are a task per object: many at once cost memory, idle ones too
    settings.queueing.worker_limit = 1000
    settings.queueing.idle_timeout = 0.1
    settings.queueing.exit_timeout = 0.2
    settings.process.ultimate_exiting_timeout = 30
    for resource in WATCHED:
        key = (resource.group, resource.version, resource.plural)
        if resource.label_selector:
            settings.watching.label_selectors[key] = resource.label_selector
        if resource.field_selector:
            settings.watching.field_selectors[key] = resource.field_selector
