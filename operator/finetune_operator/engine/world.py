"""What a pass may look at beside the objects in the store: few, cached reads by name, and what pods have reported."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from finetune_operator.core.facts import NodeFact, node_fact
from finetune_operator.core.names import Object
from finetune_operator.core.plan import ActionProblem
from finetune_operator.core.settings import Settings
from finetune_operator.engine.admission import Admission
from finetune_operator.engine.cache import Cache
from finetune_operator.engine.reports import Report
from finetune_operator.engine.store import Key, Store
from finetune_operator.kube.client import Client
from finetune_operator.kube.errors import Forbidden
from finetune_operator.kube.resources import CORE_EVENT, NODE, Resource

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
    _nodes: tuple[float, tuple[NodeFact, ...] | None] | None = None

    async def find(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """The object, at most two minutes old; None where there is none (asked again after 20 s)."""
        key = (resource.kind, namespace, name)
        known = self._known.get(key)
        if known and self.monotonic() - known[0] < (_FOUND_S if known[1] else _MISSING_S):
            return known[1]
        found = await self.client.find(resource, namespace, name)
        self._known[key] = (self.monotonic(), found)
        return found

    async def read(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """The object as it is now; None where there is none."""
        self._known.pop((resource.kind, namespace, name), None)
        return await self.find(resource, namespace, name)

    async def find_cluster_wide(self, resource: Resource, name: str) -> Object | Literal["unknown"] | None:
        """As `find`, of a resource outside namespaces; `unknown` where the operator may not read it."""
        try:
            return await self.find(resource, "", name)
        except Forbidden:
            return "unknown"

    async def last_warning(self, kind: str, namespace: str, name: str) -> str:
        """What the newest Warning Event about an object says, at most 20 s old; empty where there is none."""
        key = (f"warnings of {kind}", namespace, name)
        known = self._known.get(key)
        if known is None or self.monotonic() - known[0] >= _MISSING_S:
            selector = f"involvedObject.kind={kind},involvedObject.name={name},type=Warning"
            pages = self.client.pages(replace(CORE_EVENT, field_selector=selector), namespace)
            found = [event async for page in pages for event in page.items]
            last = max(found, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""), default=None)
            known = self._known[key] = (self.monotonic(), last)
        return str((known[1] or {}).get("message") or "")

    async def nodes(self) -> tuple[NodeFact, ...] | None:
        """The nodes, at most five minutes old; None where they may not be read."""
        if self._nodes and self.monotonic() - self._nodes[0] < _NODES_S:
            return self._nodes[1]
        try:
            nodes: tuple[NodeFact, ...] | None = tuple([node_fact(node) async for page in self.client.pages(NODE) for node in page.items])
        except Forbidden:
            nodes = None
        self._nodes = (self.monotonic(), nodes)
        return nodes


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
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(self.lookups.client, self.lookups.monotonic)
