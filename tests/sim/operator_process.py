"""One life of the operator against a simulated cluster: the real store, sync, actor, reconciler and planners, without a process."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from finetune_operator.core.names import Object
from finetune_operator.core.settings import Settings
from finetune_operator.engine.actions import Actor
from finetune_operator.engine.queue import Outcome
from finetune_operator.engine.reconcile import Reconciler
from finetune_operator.engine.recorder import Recorder
from finetune_operator.engine.store import Key, Name, Store, name_of
from finetune_operator.engine.sync import Sync
from finetune_operator.engine.world import Lookups, World
from finetune_operator.kube.client import Client
from finetune_operator.kube.resources import WATCHED, Resource
from finetune_operator.planners import PLANNERS

from tests.sim.cluster import Cluster, is_selected

_BACKOFF = timedelta(seconds=5)
_RESOURCES = {(resource.api_version, resource.kind): resource for resource in WATCHED}


@dataclass
class OperatorProcess:
    """`lose` says whether a watch event is lost on the way; the resync finds what it told. `late`: whether it waits for a while.

    Each kind has a watch of its own: the events of a kind come in order, those of different kinds overtake each other.
    """

    cluster: Cluster
    rng: random.Random
    lose: float = 0.0
    settings: Settings = field(default_factory=lambda: Settings(namespace="system"))
    passes: int = 0
    late: float = 0.0
    deaf: bool = False
    """Its watches tell nothing any more."""

    def __post_init__(self) -> None:
        self.dirty: set[Key] = set()
        self.due: dict[Key, datetime] = {}
        self.underway: dict[str, deque[tuple[str, Object]]] = {resource.kind: deque() for resource in WATCHED}
        self.watched: set[Name] = set()
        self.rewound = False
        self.store = Store()
        client = Client(self.cluster.send)
        clock = lambda: self.cluster.now.timestamp()  # noqa: E731
        self.world = World(self.store, Lookups(client, monotonic=clock), self.settings)
        self.recorder = Recorder(client, "sim", now=lambda: self.cluster.now)
        actor = Actor(client, self.store, may_write=lambda: True, mark=self.dirty.add)
        self.reconciler = Reconciler(actor, self.world, self.recorder, PLANNERS, now=lambda: self.cluster.now)
        self.sync = Sync(client, self.store, (), self.dirty.add, rewound=self._rewind)
        self.cluster.watch = self.seen

    def _rewind(self) -> None:
        self.rewound = True

    def seen(self, type: str, live: Object) -> None:
        """An event as the API server sends it to watches without selectors."""
        resource = _RESOURCES.get((live["apiVersion"], live["kind"]))
        if resource is None or self.deaf:
            return
        event = self._selected(resource, type, live)
        if event is None or self.rng.random() < self.lose:
            return
        queue = self.underway[resource.kind]
        queue.append((event, live))
        if len(queue) == 1 and (not self.late or self.rng.random() >= self.late):
            self._deliver(queue)

    def _selected(self, resource: Resource, type: str, live: Object) -> str | None:
        """What a watch with the resource's selectors tells: an object that they no longer take is as good as deleted."""
        name, was = name_of(live), name_of(live) in self.watched
        if type == "DELETED" or not is_selected(live, resource.label_selector, resource.field_selector):
            self.watched.discard(name)
            return "DELETED" if was or type == "DELETED" else None
        self.watched.add(name)
        return type

    def _deliver(self, queue: deque[tuple[str, Object]]) -> None:
        type, live = queue.popleft()
        self.dirty |= self.store.deleted(live) if type == "DELETED" else self.store.put(live)

    def hear(self) -> bool:
        """One event that was under way arrives; False where none is."""
        waiting = [queue for queue in self.underway.values() if queue]
        if waiting:
            self._deliver(self.rng.choice(waiting))
        return bool(waiting)

    async def start(self) -> None:
        await self.sync.first()
        self.watched |= {Name(*name) for resource in WATCHED for name in self.store.versions(resource.kind)}
        self.dirty |= self.store.all_keys()

    async def one_pass(self) -> bool:
        """A pass over some dirty key; False where none is dirty."""
        self._wake()
        if not self.dirty:
            return False
        key = self.rng.choice(sorted(self.dirty))
        self.dirty.discard(key)
        self.due.pop(key, None)
        self.passes += 1
        outcome = await self.reconciler.reconcile(key) if self.sync.sees(key) else Outcome()
        if outcome.failed:
            self.due[key] = self.cluster.now + _BACKOFF
        elif outcome.again:
            self.dirty.add(key)
        if outcome.recheck_at is not None:
            self.due[key] = min(self.due.get(key, outcome.recheck_at), outcome.recheck_at)
        await self.recorder.flush()
        return True

    async def settle(self, limit: int = 200) -> None:
        """Passes until nothing is dirty at this moment."""
        for _ in range(limit):
            if not await self.one_pass() and not self.hear():
                return
        raise AssertionError(f"{limit} passes at one moment and still dirty: {sorted(self.dirty)}")

    async def resync(self) -> None:
        await self.sync.again()

    def _wake(self) -> None:
        for key, moment in list(self.due.items()):
            if moment <= self.cluster.now:
                del self.due[key]
                self.dirty.add(key)
