"""Entries for `kubectl describe`: few, aggregated, never in the way of a pass."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from finetune_api.status import cut

from finetune_operator.core import names
from finetune_operator.core.names import Object
from finetune_operator.core.plan import Event
from finetune_operator.kube.client import Client
from finetune_operator.kube.errors import ApiError, NotFound
from finetune_operator.kube.resources import EVENT

log = logging.getLogger(__name__)

NOTE_CHARS = 1024
"""Longest note. Source: events.k8s.io/v1 Event.note."""
SERIES_WINDOW = timedelta(minutes=6)
"""Repeats within it are one Event with a count. Source: client-go tools/events, finishTime."""

_REMEMBERED = 2048
_PENDING = 1000


@dataclass
class _Series:
    name: str
    namespace: str
    count: int
    last: datetime


@dataclass
class Recorder:
    """Posts events.k8s.io/v1 Events in the background; what does not fit the queue is dropped and counted."""

    client: Client
    instance: str
    on_drop: Callable[[], None] = field(default=lambda: None)
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    _series: OrderedDict[tuple[str, str, str, str], _Series] = field(default_factory=OrderedDict)
    _pending: asyncio.Queue[tuple[Object, Event, datetime]] = field(default_factory=lambda: asyncio.Queue(_PENDING))

    def record(self, about: Object, event: Event) -> None:
        try:
            self._pending.put_nowait((about, event, self.now()))
        except asyncio.QueueFull:
            self.on_drop()

    async def run(self) -> None:
        """Posts until cancelled."""
        while True:
            await self._post(*await self._pending.get())

    async def flush(self) -> None:
        """Posts what is pending: before the process ends."""
        while not self._pending.empty():
            await self._post(*self._pending.get_nowait())

    async def _post(self, about: Object, event: Event, moment: datetime) -> None:
        key = (about["metadata"]["uid"], event.type, event.reason, event.message)
        series = self._series.get(key)
        try:
            if series is not None and moment - series.last < SERIES_WINDOW:
                await self._repeat(series, moment)
            else:
                body = _body(about, event, moment, self.instance)
                await self.client.create(body)
                series = _Series(body["metadata"]["name"], body["metadata"]["namespace"], 1, moment)
        except NotFound:  # the Event ran out, or its namespace is gone
            self._series.pop(key, None)
            return
        except ApiError as error:
            log.warning("an Event could not be posted: %s", error.message)
            self.on_drop()
            return
        self._series[key] = series
        self._series.move_to_end(key)
        if len(self._series) > _REMEMBERED:
            self._series.popitem(last=False)

    async def _repeat(self, series: _Series, moment: datetime) -> None:
        patch = {"series": {"count": series.count + 1, "lastObservedTime": _micro_time(moment)}}
        await self.client.merge_patch(EVENT, series.namespace, series.name, patch)
        series.count += 1
        series.last = moment


def _body(about: Object, event: Event, moment: datetime, instance: str) -> Object:
    metadata = about["metadata"]
    seed = f"{metadata['uid']}/{event.reason}/{event.message}/{moment.timestamp()}"
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {"name": f"{metadata['name']}.{hashlib.sha256(seed.encode()).hexdigest()[:16]}", "namespace": metadata["namespace"]},
        "eventTime": _micro_time(moment),
        "reportingController": f"{names.GROUP}/operator",
        "reportingInstance": instance[:128],
        "action": "Reconcile",
        "type": event.type,
        "reason": event.reason,
        "note": cut(event.message, NOTE_CHARS),
        "regarding": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        },
    }


def _micro_time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
