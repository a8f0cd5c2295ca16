"""One life of the operator against a simulated cluster: the real store, sync, actor, reconciler and planners, without a process."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from finetune_operator.core.names import Object
from finetune_operator.core.settings import Settings
from finetune_operator.engine.actions import Actor
from finetune_operator.engine.reconcile import Reconciler
from finetune_operator.engine.recorder import Recorder
from finetune_operator.engine.store import Key, Store
from finetune_operator.engine.sync import Sync
from finetune_operator.engine.world import Lookups, World
from finetune_operator.kube.client import Client
from finetune_operator.planners import PLANNERS

from tests.sim.cluster import Cluster

_BACKOFF = timedelta(seconds=5)


@dataclass
class OperatorProcess:
    """`lose` says whether a watch event is lost on the way; the resync finds what it told."""

    cluster: Cluster
    rng: random.Random
    lose: float = 0.0
    settings: Settings = field(default_factory=lambda: Settings(namespace="system"))
    passes: int = 0

    def __post_init__(self) -> None:
        self.dirty: set[Key] = set()
        self.due: dict[Key, datetime] = {}
        self.store = Store()
        client = Client(self.cluster.send)
        clock = lambda: self.cluster.now.timestamp()  # noqa: E731
        self.world = World(self.store, Lookups(client, monotonic=clock), self.settings)
        self.recorder = Recorder(client, "sim", now=lambda: self.cluster.now)
        actor = Actor(client, self.store, may_write=lambda: True, mark=self.dirty.add)
        self.reconciler = Reconciler(actor, self.world, self.recorder, PLANNERS, now=lambda: self.cluster.now)
        self.sync = Sync(client, self.store, (), self.dirty.add)
        self.cluster.watch = self._seen

    def _seen(self, type: str, live: Object) -> None:
        if self.rng.random() < self.lose:
            return
        if live["kind"] in (
            "FineTuneJob",
            "ModelVersion",
            "Job",
            "Pod",
            "PersistentVolumeClaim",
            "Service",
            "Deployment",
            "HTTPRoute",
            "Event",
        ):
            self.dirty |= self.store.deleted(live) if type == "DELETED" else self.store.put(live)

    async def start(self) -> None:
        await self.sync.first()
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
        outcome = await self.reconciler.reconcile(key)
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
            if not await self.one_pass():
                return
        raise AssertionError(f"{limit} passes at one moment and still dirty: {sorted(self.dirty)}")

    async def resync(self) -> None:
        await self.sync.again()

    def _wake(self) -> None:
        for key, moment in list(self.due.items()):
            if moment <= self.cluster.now:
                del self.due[key]
                self.dirty.add(key)
