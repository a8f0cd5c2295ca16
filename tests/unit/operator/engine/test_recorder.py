"""Events are few: repeats become one with a count, and a flood is cut."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_operator.core.plan import Event
from finetune_operator.engine import recorder as recorder_module
from finetune_operator.engine.recorder import Recorder
from finetune_operator.kube.client import Client, Request, Response

ABOUT: dict[str, Any] = {
    "apiVersion": "finetune-operator.io/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "demo", "namespace": "team", "uid": "u", "resourceVersion": "1"},
}
STARTED = Event("Normal", "Started", "it runs")


class Bench:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.requests: list[Request] = []
        self.status = 201
        self.dropped = 0
        self.recorder = Recorder(Client(self.send), "operator-0", self.drop, now=lambda: self.now)

    async def send(self, request: Request) -> Response:
        self.requests.append(request)
        return Response(self.status, json.dumps({"reason": "x", "message": "x"}).encode())

    def drop(self) -> None:
        self.dropped += 1

    async def post(self, event: Event = STARTED, about: dict[str, Any] = ABOUT) -> Request:
        self.recorder.record(about, event)
        await self.recorder.flush()
        return self.requests[-1]


async def test_an_event_says_what_whom_and_by_whom() -> None:
    body = (await Bench().post()).body
    assert body is not None
    assert (body["type"], body["reason"], body["note"]) == ("Normal", "Started", "it runs")
    assert body["regarding"]["uid"] == "u"
    assert body["reportingController"] == "finetune-operator.io/operator"
    assert body["action"]
    assert body["eventTime"] == "2026-01-01T00:00:00.000000Z"


async def test_a_repeat_is_counted_on_the_first() -> None:
    bench = Bench()
    name = ((await bench.post()).body or {})["metadata"]["name"]
    bench.now += timedelta(minutes=5)
    again = await bench.post()
    assert again.method == "PATCH"
    assert again.path.endswith(name)
    assert (again.body or {})["series"]["count"] == 2
    assert ((await bench.post()).body or {})["series"]["count"] == 3


async def test_after_a_while_it_is_a_new_event() -> None:
    bench = Bench()
    await bench.post()
    bench.now += timedelta(minutes=7)
    assert (await bench.post()).method == "POST"


async def test_other_words_or_another_object_are_another_event() -> None:
    bench = Bench()
    await bench.post()
    assert (await bench.post(Event("Normal", "Started", "again"))).method == "POST"
    other = {**ABOUT, "metadata": {**ABOUT["metadata"], "uid": "v"}}
    assert (await bench.post(about=other)).method == "POST"


async def test_an_event_that_ran_out_is_posted_anew() -> None:
    bench = Bench()
    await bench.post()
    bench.status = 404
    await bench.post()
    bench.status = 201
    assert (await bench.post()).method == "POST"


async def test_long_words_are_cut() -> None:
    body = (await Bench().post(Event("Warning", "Failed", "x" * 5000))).body
    assert body is not None
    assert len(body["note"]) == recorder_module.NOTE_CHARS


async def test_what_cannot_be_posted_or_kept_is_counted() -> None:
    bench = Bench()
    bench.status = 403
    await bench.post()
    assert bench.dropped == 1
    for _ in range(recorder_module._PENDING + 5):
        bench.recorder.record(ABOUT, STARTED)
    assert bench.dropped == 6
