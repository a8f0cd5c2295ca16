"""Our own LISTs: nothing is decided before every watched kind was listed, and what watches lost is found again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from finetune_operator.core.names import Object
from finetune_operator.engine.store import Key, Name, Store, name_of
from finetune_operator.kube.client import Client
from finetune_operator.kube.errors import ApiError, Gone, NotFound
from finetune_operator.kube.resources import OPTIONAL, WATCHED, Resource

log = logging.getLogger(__name__)

_RETRY_S = 2.0


@dataclass
class Sync:
    """Keeps the store equal to the cluster. `mark` is told the keys that a difference concerns; `corrected` its kind."""

    client: Client
    store: Store
    namespaces: tuple[str, ...]
    mark: Callable[[Key], None]
    corrected: Callable[[str], None] = field(default=lambda kind: None)
    monotonic: Callable[[], float] = time.monotonic
    last_at: float | None = None
    """Monotonic moment at which the last round of LISTs was complete."""

    async def first(self) -> None:
        """Lists every watched kind into the store; returns once all are in."""
        while True:
            try:
                for resource in WATCHED:
                    await self._each_namespace(resource, metadata_only=False)
                break
            except ApiError as error:
                log.warning("cannot list yet: %s", error.message)
                await asyncio.sleep(_RETRY_S)
        self.store.synced = True
        self.last_at = self.monotonic()
        log.info("store is synced", extra={"objects": len(self.store)})

    async def again(self) -> None:
        """Compares uid and resourceVersion of everything with the store; reads again what differs. Raises ApiError."""
        for resource in WATCHED:
            await self._each_namespace(resource, metadata_only=True)
        self.last_at = self.monotonic()

    async def run(self, every_s: float) -> None:
        """Compares for ever; a failed round is tried again soon."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.again()
            except ApiError as error:
                log.warning("resync not finished: %s", error.message)
                await asyncio.sleep(_RETRY_S)

    async def _each_namespace(self, resource: Resource, *, metadata_only: bool) -> None:
        for namespace in self.namespaces or ("",):
            try:
                await self._compare(resource, namespace, metadata_only=metadata_only)
            except NotFound:
                if resource not in OPTIONAL:
                    raise
            except Gone:
                await self._compare(resource, namespace, metadata_only=metadata_only)

    async def _compare(self, resource: Resource, namespace: str, *, metadata_only: bool) -> None:
        seen: set[Name] = set()
        listed_at = 0
        async for page in self.client.pages(resource, namespace, metadata_only=metadata_only):
            listed_at = int(page.resource_version)
            for item in page.items:
                seen.add(name_of(item))
                await self._take(resource, item, complete=not metadata_only)
            # decoding and slimming a page takes milliseconds: let watches and probes have their turn
            await asyncio.sleep(0)
        for name, (uid, version) in self.store.versions(resource.kind, namespace).items():
            # what was created while the LIST ran is newer than it, and not gone
            if name not in seen and version <= listed_at:
                self._tell(resource, self.store.forget(name, uid, listed_at))

    async def _take(self, resource: Resource, item: Object, *, complete: bool) -> None:
        if complete:
            self._tell(resource, self.store.put(item))
            return
        name, metadata = name_of(item), item["metadata"]
        if self.store.version(name) >= int(metadata["resourceVersion"]):
            return
        live = await self.client.find(resource, name.namespace, name.name)
        if live is not None:
            self._tell(resource, self.store.put(live))

    def _tell(self, resource: Resource, keys: set[Key]) -> None:
        if keys and self.store.synced:
            self.corrected(resource.kind)
        for key in keys:
            self.mark(key)
