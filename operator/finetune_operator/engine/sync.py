"""Our own LISTs: nothing is decided before every watched kind was listed, and what watches lost is found again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from finetune_operator.core import names
from finetune_operator.core.names import Object
from finetune_operator.engine.store import MODEL, Key, Name, Store, name_of
from finetune_operator.kube.client import Client
from finetune_operator.kube.errors import ApiError, Gone, NotFound, Unreachable
from finetune_operator.kube.resources import CLAIM, FINETUNEJOB, JOB, MODELVERSION, OPTIONAL, POD, REFUSAL, WATCHED, Resource

log = logging.getLogger(__name__)

_RETRY_S = 2.0
_LONGEST_RETRY_S = 60.0

NEEDED: Mapping[str, tuple[Resource, ...]] = {
    names.FINETUNEJOB: (FINETUNEJOB, MODELVERSION, JOB, POD, CLAIM),
    MODEL: tuple(resource for resource in WATCHED if resource not in (FINETUNEJOB, JOB, REFUSAL)),
}
"""What must be seen of a namespace before anything is decided there, by kind of key: what is not seen would be taken for absent."""

Part = tuple[Resource, str]
"""A watched kind in a namespace; everywhere, where that is empty."""


@dataclass
class Sync:
    """Keeps the store equal to the cluster. `mark` is told the keys that a difference concerns; `corrected` its kind.

    A kind that cannot be listed in a namespace (no rights, a broken conversion) stops the keys that need it there and no others: see
    `sees`. `rewound` is told once a LIST is older than what was seen before: the API server's storage was restored from a backup.
    """

    client: Client
    store: Store
    namespaces: tuple[str, ...]
    mark: Callable[[Key], None]
    corrected: Callable[[str], None] = field(default=lambda kind: None)
    rewound: Callable[[], None] = field(default=lambda: None)
    monotonic: Callable[[], float] = time.monotonic
    last_at: float | None = None
    """Monotonic moment at which the last round of LISTs was over; parts that cannot be listed are in `blind`."""
    blind: dict[Part, str] = field(default_factory=dict)
    """Parts of the cluster that could not be listed when last tried, and why."""

    async def first(self) -> None:
        """Lists every watched kind into the store; returns once the API server has answered for all of them."""
        await self._round(self._parts(), metadata_only=False)
        self.store.synced = True
        self.last_at = self.monotonic()
        log.info("store is synced", extra={"objects": len(self.store)})

    async def again(self) -> None:
        """Compares uid and resourceVersion of everything with the store; reads again what differs."""
        await self._round(self._parts(), metadata_only=True)
        self.last_at = self.monotonic()

    async def run(self, every_s: float) -> None:
        """Compares for ever. What could not be listed is tried again soon, and ever less often."""
        due, retry_s = self.monotonic() + every_s, _RETRY_S
        while True:
            await asyncio.sleep(max(0.0, min(due - self.monotonic(), retry_s if self.blind else every_s)))
            if self.monotonic() >= due:
                await self.again()
                due, retry_s = self.monotonic() + every_s, _RETRY_S
            elif self.blind:
                await self._round(list(self.blind), metadata_only=True)
                retry_s = min(2 * retry_s, _LONGEST_RETRY_S)

    def sees(self, key: Key) -> bool:
        """Whether everything that a pass over `key` decides by could be listed."""
        needed = NEEDED[key.kind]
        return not any(resource in needed and namespace in ("", key.namespace) for resource, namespace in self.blind)

    def _parts(self) -> list[Part]:
        return [(resource, namespace) for resource in WATCHED for namespace in self.namespaces or ("",)]

    async def _round(self, parts: Iterable[Part], *, metadata_only: bool) -> None:
        """Each part by itself, until each was answered: no answer at all is waited out."""
        left = list(parts)
        while left:
            left = [part for part in left if not await self._try(part, metadata_only=metadata_only)]
            if left:
                await asyncio.sleep(_RETRY_S)

    async def _try(self, part: Part, *, metadata_only: bool) -> bool:
        """Whether the API server answered, be it with a refusal."""
        resource, namespace = part
        # what was missed while it could not be seen is read in full
        complete = not metadata_only or part in self.blind
        try:
            await self._list(resource, namespace, metadata_only=not complete)
        except Unreachable as error:
            log.warning("cannot list %s yet: %s", resource.plural, error.message)
            return False
        except ApiError as error:
            self._lose(part, error)
            return True
        if self.blind.pop(part, None) is not None:
            log.info("%s of %s can be listed again", resource.plural, namespace or "all namespaces")
            for key in self.store.all_keys():
                if namespace in ("", key.namespace):
                    self.mark(key)
        return True

    def _lose(self, part: Part, error: ApiError) -> None:
        resource, namespace = part
        if self.blind.get(part) != error.message:
            where, message = namespace or "all namespaces", error.message
            log.error("%s of %s cannot be listed, what needs them waits: %s", resource.plural, where, message)
        self.blind[part] = error.message

    async def _list(self, resource: Resource, namespace: str, *, metadata_only: bool) -> None:
        """Compares once; a second time where paging took too long, or where what came was older than what is known."""
        for attempt in (1, 2):
            try:
                if await self._compare(resource, namespace, metadata_only=metadata_only):
                    return
            except NotFound:
                if resource in OPTIONAL:
                    return
                raise
            except Gone:
                if attempt == 2:
                    raise
        log.error("resourceVersions of %s went back: was etcd restored from a backup? They are read anew", resource.plural)
        self.store.rewind(resource.kind)
        await self._compare(resource, namespace, metadata_only=False)
        self.rewound()

    async def _compare(self, resource: Resource, namespace: str, *, metadata_only: bool) -> bool:
        """False, and nothing done, where the LIST is older than what was known before it was asked for: no LIST ever is."""
        known, listed_at = self.store.newest(resource.kind), 0
        seen: set[Name] = set()
        async for page in self.client.pages(resource, namespace, metadata_only=metadata_only):
            listed_at = int(page.resource_version)
            if listed_at < known:
                return False
            for item in page.items:
                seen.add(name_of(item))
                await self._take(resource, item, complete=not metadata_only)
            # decoding and slimming a page takes milliseconds: let watches and probes have their turn
            await asyncio.sleep(0)
        for name, (uid, version) in self.store.versions(resource.kind, namespace).items():
            # what was created while the LIST ran is newer than it, and not gone
            if name not in seen and version <= listed_at:
                self._tell(resource, self.store.forget(name, uid, listed_at))
        return True

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
