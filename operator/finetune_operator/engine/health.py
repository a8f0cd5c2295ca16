"""Whether this process still does its work: what the probes of its pod are told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.queue import Queue
from finetune_operator.engine.store import Store
from finetune_operator.engine.sync import Sync

_LAG_EVERY_S = 0.1
STUCK_PASS_S = 300.0
"""A key that waits or runs for longer: passes no longer get done."""
STUCK_LOOP_S = 30.0
MISSED_RESYNCS = 3


@dataclass
class Health:
    """`working` says whether this replica runs passes (it leads); a follower's queue is nobody's concern."""

    store: Store
    queue: Queue
    sync: Sync
    metrics: Metrics
    resync_s: float
    working: Callable[[], bool]
    monotonic: Callable[[], float] = time.monotonic
    _beat_at: float = 0.0

    async def measure_lag(self) -> None:
        """Wakes up ten times a second for ever, and records how late."""
        while True:
            due = self._beat_at = self.monotonic()
            await asyncio.sleep(_LAG_EVERY_S)
            self.metrics.loop_lag.observe(max(0.0, self.monotonic() - due - _LAG_EVERY_S))

    def alive(self) -> str:
        """Empty while the process works, else what is stuck."""
        now = self.monotonic()
        if self._beat_at and now - self._beat_at > STUCK_LOOP_S:
            return f"the event loop stood still for {now - self._beat_at:.0f} s"
        if self.working() and self.queue.oldest_s > STUCK_PASS_S:
            return f"a key waits for its pass for {self.queue.oldest_s:.0f} s"
        # watches of an idle cluster are silent: only our own LIST tells that the API is still heard
        if self.sync.last_at is not None and now - self.sync.last_at > MISSED_RESYNCS * self.resync_s:
            return f"the last resync was {now - self.sync.last_at:.0f} s ago"
        return ""

    def ready(self) -> str:
        return "" if self.store.synced else "not every watched kind was listed yet"

    def probes(self) -> list[web.RouteDef]:
        return [
            web.get("/healthz", self._alive),
            web.get("/readyz", self._ready),
        ]

    def metrics_route(self) -> web.RouteDef:
        return web.get("/metrics", self._metrics)

    async def _alive(self, request: web.Request) -> web.Response:
        return _answer(self.alive())

    async def _ready(self, request: web.Request) -> web.Response:
        return _answer(self.ready())

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _answer(problem: str) -> web.Response:
    return web.Response(status=503 if problem else 200, text=(problem or "ok") + "\n")
