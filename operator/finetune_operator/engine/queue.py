"""Dirty keys: many events make one pass, a key has at most one pass at a time, failures back off, and known moments wake it."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime

from finetune_operator.engine.store import Key

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
LONGEST_RETRY_AFTER_S = 120.0
TOUCHED_BACKOFF_S = 1.0
_STALE_ENTRIES = 64
"""So many more entries than keys a heap may hold until it is made anew."""
_FREE_REPEATS = 8
"""Passes in a row that may each ask for another at once; more of them are a sign that two writers disagree."""


@dataclass(frozen=True)
class Outcome:
    """What a pass asks of the queue. `again`: it wrote something, so look once more. `failed`: back off."""

    again: bool = False
    failed: bool = False
    recheck_at: datetime | None = None
    retry_after_s: float | None = None


Pass = Callable[[Key], Awaitable[Outcome]]


@dataclass
class _Waiting:
    """Keys by a moment in monotonic seconds; the heap keeps stale entries, `due` says which hold."""

    due: dict[Key, float] = field(default_factory=dict)
    heap: list[tuple[float, Key]] = field(default_factory=list)

    def set(self, key: Key, moment: float) -> None:
        if self.due.get(key) == moment:
            return
        self.due[key] = moment
        heapq.heappush(self.heap, (moment, key))
        if len(self.heap) > 2 * len(self.due) + _STALE_ENTRIES:
            self.heap = [(moment, key) for key, moment in self.due.items()]
            heapq.heapify(self.heap)

    def clear(self, key: Key) -> None:
        self.due.pop(key, None)

    def next(self) -> float | None:
        while self.heap and self.due.get(self.heap[0][1]) != self.heap[0][0]:
            heapq.heappop(self.heap)
        return self.heap[0][0] if self.heap else None

    def pop(self) -> Key:
        _, key = heapq.heappop(self.heap)
        del self.due[key]
        return key


class Queue:
    """Dirty keys with timers. Lives in one event loop. A key is at most one of: ready, running, backing off."""

    def __init__(
        self,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._jitter = jitter
        self._ready: dict[Key, float] = {}
        self._running: dict[Key, float] = {}
        self._touched: set[Key] = set()
        self._rechecks = _Waiting()
        self._backoffs = _Waiting()
        self._asked: dict[Key, float] = {}
        """Until when the API server asked to be left alone about a key, in monotonic seconds: no event cuts that short."""
        self._failures: dict[Key, int] = {}
        self._repeats: dict[Key, int] = {}
        self._changed = asyncio.Event()

    def add(self, key: Key) -> None:
        """Marks a key dirty: something about it changed. One that backs off is tried again within a second: it may be healed."""
        if key in self._running:
            self._touched.add(key)
        elif key in self._backoffs.due:
            soon = max(self._monotonic() + TOUCHED_BACKOFF_S, self._asked.get(key, 0.0))
            self._backoffs.set(key, min(self._backoffs.due[key], soon))
            self._changed.set()
        elif key not in self._ready:
            self._ready[key] = self._monotonic()
            self._changed.set()

    def add_after(self, key: Key, delay_s: float) -> None:
        """Marks a key dirty in a while, or earlier where it was to be so anyway."""
        moment = self._monotonic() + delay_s
        if self._rechecks.due.get(key, moment + 1) > moment:
            self._rechecks.set(key, moment)
            self._changed.set()

    @property
    def depth(self) -> int:
        """Keys that wait for their pass; those that back off don't count."""
        return len(self._ready)

    @property
    def oldest_s(self) -> float:
        """Seconds since the key that waits or runs for longest began to."""
        since = [*list(self._ready.values())[:1], *self._running.values()]
        return max((self._monotonic() - moment for moment in since), default=0.0)

    async def run(self, process: Pass, workers: int) -> None:
        """Processes keys until cancelled, or until `process` raises: it answers for its own failures."""
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._work(process))

    async def _work(self, process: Pass) -> None:
        while True:
            key = await self.take()
            self.done(key, await process(key))
            # a pass that did no I/O never yielded: without this a burst of them would starve the watches
            await asyncio.sleep(0)

    async def take(self) -> Key:
        """The key that has waited for longest, once there is one."""
        while not self.is_ready():
            self._changed.clear()
            due = self.next_due()
            timeout = None if due is None else max(0.0, due - self._monotonic())
            # not wait_for: in Python 3.11 it swallows a cancellation that comes with what was waited for, and the group of workers never ends
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
        key = next(iter(self._ready))
        del self._ready[key]
        self._asked.pop(key, None)
        self._rechecks.clear(key)
        self._running[key] = self._monotonic()
        return key

    def is_ready(self) -> bool:
        """Whether `take` would return at once."""
        self._wake()
        return bool(self._ready)

    def next_due(self) -> float | None:
        """The monotonic moment at which the next key that waits for one gets ready."""
        return min((moment for moment in (self._rechecks.next(), self._backoffs.next()) if moment is not None), default=None)

    def done(self, key: Key, outcome: Outcome) -> None:
        """A key taken is free again, and comes back as its pass asked."""
        del self._running[key]
        touched = key in self._touched
        self._touched.discard(key)
        if outcome.failed:
            self._failures[key] = self._failures.get(key, 0) + 1
            self._back_off(key, self._failures[key], outcome.retry_after_s)
        else:
            self._failures.pop(key, None)
            self._repeats[key] = self._repeats.get(key, 0) + 1 if outcome.again else 0
            if self._repeats[key] > _FREE_REPEATS:
                self._back_off(key, self._repeats[key] - _FREE_REPEATS, None)
            elif outcome.again:
                touched = True
            else:
                del self._repeats[key]
        if touched:
            self.add(key)
        if outcome.recheck_at is not None:
            self.add_after(key, max(0.0, outcome.recheck_at.timestamp() - self._wall()))
        self._changed.set()

    def _back_off(self, key: Key, count: int, at_least_s: float | None) -> None:
        delay = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(count - 1, 16)) * self._jitter(0.8, 1.0)
        asked_s = min(at_least_s or 0.0, LONGEST_RETRY_AFTER_S)
        if asked_s:
            self._asked[key] = self._monotonic() + asked_s
        self._backoffs.set(key, self._monotonic() + max(delay, asked_s))

    def _wake(self) -> None:
        now = self._monotonic()
        while (moment := self._backoffs.next()) is not None and moment <= now:
            self._ready.setdefault(self._backoffs.pop(), now)
        while (moment := self._rechecks.next()) is not None and moment <= now:
            self.add(self._rechecks.pop())
