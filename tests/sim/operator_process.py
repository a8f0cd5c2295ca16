"""One life of the operator against a simulated cluster: the real store, sync, queue, actor, reconciler and planners, without a process."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from finetune_operator.core.names import Object
from finetune_operator.core.settings import Settings
from finetune_operator.engine.actions import Actor
from finetune_operator.engine.queue import Outcome, Queue
from finetune_operator.engine.reconcile import Reconciler
from finetune_operator.engine.recorder import Recorder
from finetune_operator.engine.store import Name, Store, name_of
from finetune_operator.engine.sync import Sync
from finetune_operator.engine.world import Lookups, World
from finetune_operator.kube.client import Client
from finetune_operator.kube.resources import WATCHED, Resource
from finetune_operator.planners import PLANNERS

from tests.sim.cluster import Cluster, is_selected

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
        self.underway: dict[str, deque[tuple[str, Object]]] = {resource.kind: deque() for resource in WATCHED}
        self.watched: set[Name] = set()
        self.rewound = False
        self.view = View()
        self.store = Store()
        client = Client(self.cluster.send)
        clock = lambda: self.cluster.now.timestamp()  # noqa: E731
        self.queue = Queue(monotonic=clock, wall=clock, jitter=self.rng.uniform)
        self.world = World(self.store, Lookups(client, monotonic=clock), self.settings)
        self.recorder = Recorder(client, "sim", now=lambda: self.cluster.now)
        actor = Actor(client, self.store, may_write=lambda: True, mark=self.queue.add)
        self.reconciler = Reconciler(actor, self.world, self.recorder, PLANNERS, now=lambda: self.cluster.now)
        self.sync = Sync(client, self.store, (), self.queue.add, rewound=self._rewind)
        self.cluster.watch = self.seen

    def _rewind(self) -> None:
        self.rewound = True
        self.view = View()

    def seen(self, type: str, live: Object) -> None:
        """An event as the API server sends it to watches without selectors."""
        resource = _RESOURCES.get((live["apiVersion"], live["kind"]))
        if resource is None:
            return
        if type == "DELETED" or not _is_watched(resource, live):
            self.view.absent(live)
        if self.deaf:
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
        if type == "DELETED" or not _is_watched(resource, live):
            self.watched.discard(name)
            return "DELETED" if was or type == "DELETED" else None
        self.watched.add(name)
        return type

    def _deliver(self, queue: deque[tuple[str, Object]]) -> None:
        type, live = queue.popleft()
        for key in self.store.deleted(live) if type == "DELETED" else self.store.put(live):
            self.queue.add(key)

    def hear(self) -> bool:
        """One event that was under way arrives; False where none is."""
        waiting = [queue for queue in self.underway.values() if queue]
        if waiting:
            self._deliver(self.rng.choice(waiting))
        return bool(waiting)

    async def start(self) -> None:
        await self.sync.first()
        self.watched |= {Name(*name) for resource in WATCHED for name in self.store.versions(resource.kind)}
        self.mark_all()

    def mark_all(self) -> None:
        for key in sorted(self.store.all_keys()):
            self.queue.add(key)

    async def one_pass(self) -> bool:
        """A pass over the key that waits for longest; False where none does."""
        if not self.queue.is_ready():
            return False
        key = await self.queue.take()
        self.passes += 1
        self.queue.done(key, await self.reconciler.reconcile(key) if self.sync.sees(key) else Outcome())
        await self.recorder.flush()
        return True

    def due(self) -> datetime | None:
        """When the next key that waits for a moment is ready."""
        moment = self.queue.next_due()
        # a float of seconds may lie a little after the moment that was asked for
        return None if moment is None else datetime.fromtimestamp(moment, UTC) + timedelta(microseconds=1)

    async def settle(self, limit: int = 200) -> None:
        """Passes until nothing is ready at this moment."""
        for _ in range(limit):
            if not await self.one_pass() and not self.hear():
                return
        raise AssertionError(f"{limit} passes at one moment and still not at rest")

    async def resync(self) -> None:
        await self.sync.again()

    def check_view(self) -> None:
        """What it believes never goes back in time, whatever overtakes what on the way."""
        self.view.check(self.store)

    def check_sees_all(self) -> None:
        """Once all news is there and what was lost is found, it believes what is."""
        for resource in WATCHED:
            lives = [
                live
                for live in self.cluster.objects.values()
                if (live["apiVersion"], live["kind"]) == (resource.api_version, resource.kind)
            ]
            there = {name_of(live): (live["metadata"]["uid"], int(live["metadata"]["resourceVersion"])) for live in lives}
            watched = {name_of(live) for live in lives if _is_watched(resource, live)}
            believed = self.store.versions(resource.kind)
            assert believed == {name: there.get(name) for name in watched | believed.keys()}, f"{resource.kind} at rest"


def _is_watched(resource: Resource, live: Object) -> bool:
    return is_selected(live, resource.label_selector, resource.field_selector)


class View:
    """How far in the history of each object the operator's picture has come, by resourceVersions."""

    def __init__(self) -> None:
        self._reached: defaultdict[Name, int] = defaultdict(int)
        self._absences: defaultdict[Name, list[int]] = defaultdict(list)
        self._moment = -1

    def absent(self, last: Object) -> None:
        """From this version on there is no such object, or no watch takes it."""
        self._absences[name_of(last)].append(int(last["metadata"]["resourceVersion"]))

    def check(self, store: Store) -> None:
        if store.moment == self._moment:  # nothing was learnt
            return
        self._moment = store.moment
        known = {name for resource in WATCHED for name in store.versions(resource.kind)}
        for name in sorted(known | self._reached.keys()):
            before, now = self._reached[name], store.version(name)
            if name not in known:
                now = next((version for version in self._absences[name] if version >= before), -1)
                assert now >= 0, f"{name} was taken for gone though it stood at {before}"
            assert now >= before, f"{name} was seen at {before}, and then at {now}"
            self._reached[name] = now
