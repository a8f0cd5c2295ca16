"""What one operator process is made of, and in which order its parts start and stop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web

from finetune_operator.core.names import Object
from finetune_operator.core.settings import Settings
from finetune_operator.engine.actions import Actor, NotLeading
from finetune_operator.engine.health import Health
from finetune_operator.engine.leader import Leader, LeadershipLost, Timing
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.queue import Outcome, Queue
from finetune_operator.engine.reconcile import Planner, Reconciler
from finetune_operator.engine.recorder import Recorder
from finetune_operator.engine.reports import Reports
from finetune_operator.engine.store import Key, Store
from finetune_operator.engine.sync import Sync
from finetune_operator.engine.world import Lookups, World
from finetune_operator.kube.client import Client, Send
from finetune_operator.kube.errors import ApiError
from finetune_operator.kube.release import owned_by_secret
from finetune_operator.kube.resources import FINETUNEJOB, HTTPROUTE, MODELVERSION, Resource
from finetune_operator.status_server.service import Listening, StatusService

log = logging.getLogger(__name__)
T = TypeVar("T")

_PROBE_CRDS_S = 180.0
_RETRY_S = 2.0
_FLUSH_S = 1.0


@dataclass(frozen=True)
class Options:
    """What concerns this process and not its behaviour."""

    listening: Listening
    lease: str = "finetune-operator"
    health_port: int = 8080
    metrics_port: int = 9090
    workers: int = 8


@dataclass
class Runtime:
    """`connect` gives the way to the API server, `planners` what a pass does by kind of key."""

    settings: Settings
    options: Options
    connect: Callable[[], AbstractAsyncContextManager[Send]]
    planners: Mapping[str, Planner]
    timing: Timing = field(default_factory=Timing)
    exit: Callable[[int], Any] = os._exit
    """Ends the process at once, for when nothing may be written any more."""

    def __post_init__(self) -> None:
        self.store = Store()
        self.queue = Queue()
        self.metrics = Metrics()
        self.metrics.watch(self.store, self.queue)
        self.reports = Reports(self.queue, self.settings.progress_write_s)
        self.stopping = asyncio.Event()
        """Set when the process should end cleanly."""
        self.leading = False
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Starts everything in the background; returns once the API server answers. Probes are answered before that."""
        send = await self._stack.enter_async_context(self.connect())
        # a connection of its own: whatever else fills the first one must not cost the Lease
        lease_send = await self._stack.enter_async_context(self.connect())
        client = Client(send, self.metrics.count_call)
        owners = owned_by_secret(client, self.settings.namespace, self.options.listening.secret)
        self._leader = Leader(
            Client(lease_send, self.metrics.count_call, self.timing.request_s),
            self.settings.namespace,
            self.options.lease,
            self.settings.identity,
            self.timing,
            owners=owners,
        )
        self._sync = Sync(client, self.store, self.settings.watch_namespaces, self._mark, self._count_correction, self._start_anew)
        self.metrics.unlisted.set_function(lambda: len(self._sync.blind))
        health = Health(self.store, self.queue, self._sync, self.metrics, self.settings.resync_s, lambda: self.leading)
        await self._serve(self.options.health_port, health.probes())
        await self._serve(self.options.metrics_port, [health.metrics_route()])
        self._spawn("lag", health.measure_lag())
        self._recorder = Recorder(client, self.settings.identity, self.metrics.events_dropped.inc)
        self._served = await _patiently(lambda: self._probe(client))
        self._status = StatusService(
            client, self.settings, self.options.listening, self.store, self.reports, self.metrics, lambda: self.leading, owners
        )
        actor = Actor(client, self.store, lambda: self._leader.may_write, self._mark)
        self._reconciler = Reconciler(actor, self._world(client), self._recorder, self.planners, self.metrics)
        self._spawn("events", self._recorder.run())
        self._spawn("crds", self._watch_crds(client))
        self._spawn("lead", self._lead())

    async def stop(self) -> None:
        """Lets go of everything; another replica may lead at once."""
        for task in self._tasks:
            task.cancel()
        # kopf's waiter for this flag outlives a signal, and kopf then waits 5 s for it
        self.stopping.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.leading = False
        await self._leader.release()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._recorder.flush(), _FLUSH_S)
        await self._stack.aclose()

    def seen(self, type: str | None, live: Object) -> None:
        """A watch event, or an item of a watch's first listing (type None)."""
        for key in self.store.deleted(live) if type == "DELETED" else self.store.put(live):
            self._mark(key)

    def _world(self, client: Client) -> World:
        return World(
            store=self.store,
            lookups=Lookups(client),
            settings=self.settings,
            reports=self.reports.newest,
            status_ca=lambda: self._status.ca,
            gateway_api=lambda: self._served.get(HTTPROUTE.plural, False),
        )

    def _mark(self, key: Key) -> None:
        """Followers keep their store warm and have no queue: the new leader marks every key."""
        if self.leading:
            self.queue.add(key)

    async def _pass(self, key: Key) -> Outcome:
        """What cannot be seen is not decided upon: the key is marked again once it can."""
        return await self._reconciler.reconcile(key) if self._sync.sees(key) else Outcome()

    def _start_anew(self) -> None:
        # watches that go on from a version of the future hear nothing until it is reached
        log.error("the API server's history went back: ending, to start anew")
        self.stopping.set()

    def _count_correction(self, kind: str) -> None:
        self.metrics.resync_corrections.labels(kind).inc()

    async def _lead(self) -> None:
        await self._sync.first()
        self._spawn("resync", self._sync.run(self.settings.resync_s))
        await self._leader.acquire()
        self.metrics.leader.set(1)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._leader.keep())
            await self._sync.again()
            await self._stack.enter_async_context(self._status.serving())
            self.leading = True
            for key in self.store.all_keys():
                self.queue.add(key)
            group.create_task(self.queue.run(self._pass, self.options.workers))

    async def _probe(self, client: Client) -> dict[str, bool]:
        kinds: tuple[Resource, ...] = (FINETUNEJOB, MODELVERSION, HTTPROUTE)
        return {resource.plural: await client.is_served(resource) for resource in kinds}

    async def _watch_crds(self, client: Client) -> None:
        """kopf never watches a kind whose CRD comes later, and loops on one that goes: a fresh process knows what to watch."""
        while True:
            await asyncio.sleep(_PROBE_CRDS_S)
            with suppress(ApiError):
                if await self._probe(client) != self._served:
                    log.warning("a watched kind came or went: ending, to start anew")
                    self.stopping.set()

    async def _serve(self, port: int, routes: list[web.RouteDef]) -> None:
        application = web.Application()
        application.add_routes(routes)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, port=port).start()

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(self._guarded(name, work), name=name))

    async def _guarded(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """A part that ends by itself is a fault of the whole process; one that may not write any more ends it at once."""
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            lost = _inner(error, LeadershipLost, NotLeading)
            if lost is not None:
                log.error("leadership lost: %s", lost)
            else:
                log.critical("part %s failed", name, exc_info=error)
            self.exit(1)


def _inner(error: BaseException, *kinds: type[BaseException]) -> BaseException | None:
    """The exception itself or one of its group that is of these kinds; None where there is none."""
    if isinstance(error, BaseExceptionGroup):
        return next((found for inner in error.exceptions if (found := _inner(inner, *kinds))), None)
    return error if isinstance(error, kinds) else None


async def _patiently(what: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await what()
        except ApiError as error:
            log.warning("the API server does not answer as it should: %s", error.message)
            await asyncio.sleep(_RETRY_S)
