"""What a pass may look at beside the objects in the store: few, cached reads by name, and what pods have reported."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from finetune_operator.core.names import Object
from finetune_operator.core.plan import ActionProblem
from finetune_operator.core.settings import Settings
from finetune_operator.engine.cache import Cache
from finetune_operator.engine.reports import Report
from finetune_operator.engine.store import Key, Store
from finetune_operator.kube.client import Client
from finetune_operator.kube.errors import Forbidden
from finetune_operator.kube.resources import NODE, Resource

_FOUND_S = 120.0
_MISSING_S = 20.0
"""Below the 30 s after which a pass looks again for what was missing."""
_NODES_S = 300.0
_REMEMBERED = 4096
_REMEMBERED_BYTES = 16 * 1024 * 1024
"""Of one ConfigMap there may be a mebibyte."""


@dataclass
class Lookups:
    """Objects of kinds that are not watched (ConfigMaps, claims of users, nodes), each read at most once in a while."""

    client: Client
    monotonic: Callable[[], float] = time.monotonic
    _known: Cache = field(default_factory=lambda: Cache(_REMEMBERED, _REMEMBERED_BYTES))
    _gpus: dict[str, tuple[float, int | None]] = field(default_factory=dict)

    async def find(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """The object, at most two minutes old; None where there is none (asked again after 20 s)."""
        key = (resource.kind, namespace, name)
        known = self._known.get(key)
        if known and self.monotonic() - known[0] < (_FOUND_S if known[1] else _MISSING_S):
            return known[1]
        found = await self.client.find(resource, namespace, name)
        self._known[key] = (self.monotonic(), found)
        return found

    async def largest_node(self, extended_resource: str) -> int | None:
        """The most of an extended resource (GPUs) that any node offers; None where nodes may not be read."""
        known = self._gpus.get(extended_resource)
        if known and self.monotonic() - known[0] < _NODES_S:
            return known[1]
        try:
            most: int | None = 0
            async for page in self.client.pages(NODE):
                offers = [int(node.get("status", {}).get("allocatable", {}).get(extended_resource, 0)) for node in page.items]
                most = max([most or 0, *offers])
        except Forbidden:
            most = None
        self._gpus[extended_resource] = (self.monotonic(), most)
        return most


@dataclass
class World:
    """`reports` gives the newest report of a job's pods; `problems` is what earlier passes over a key could not do."""

    store: Store
    lookups: Lookups
    settings: Settings
    reports: Callable[[str, str], Report | None] = field(default=lambda namespace, job: None)
    status_ca: Callable[[], str] = field(default=lambda: "")
    gateway_api: Callable[[], bool] = field(default=lambda: True)
    problems: dict[Key, tuple[ActionProblem, ...]] = field(default_factory=dict)
    planned_since: dict[Key, datetime] = field(default_factory=dict)
    """When this process first planned for a key: what happened before, it did not watch."""
