"""The probes tell what is stuck, and metrics are named and bounded."""

from __future__ import annotations

from finetune_operator.engine.health import MISSED_RESYNCS, STUCK_PASS_S, Health
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.queue import Queue
from finetune_operator.engine.store import Key, Store
from finetune_operator.engine.sync import Sync
from finetune_operator.kube.client import Client, Request, Response
from prometheus_client import generate_latest


async def never(request: Request) -> Response:
    raise AssertionError("probes ask nobody")


class Bench:
    def __init__(self) -> None:
        self.now = 1000.0
        self.leading = True
        self.store = Store()
        self.queue = Queue(monotonic=lambda: self.now)
        self.sync = Sync(Client(never), self.store, (), self.queue.add)
        self.metrics = Metrics()
        self.metrics.watch(self.store, self.queue)
        self.health = Health(self.store, self.queue, self.sync, self.metrics, 300, lambda: self.leading, monotonic=lambda: self.now)


async def test_ready_once_every_kind_was_listed() -> None:
    bench = Bench()
    assert "listed" in bench.health.ready()
    bench.store.synced = True
    assert bench.health.ready() == ""


async def test_alive_before_the_first_list() -> None:
    bench = Bench()
    bench.now += 10_000
    assert bench.health.alive() == ""


async def test_a_key_that_waits_for_ever_is_told_by_the_leader_only() -> None:
    bench = Bench()
    bench.queue.add(Key("FineTuneJob", "team", "demo"))
    bench.now += STUCK_PASS_S + 1
    assert "waits for its pass" in bench.health.alive()
    bench.leading = False
    assert bench.health.alive() == ""


async def test_a_resync_that_stopped_is_told() -> None:
    bench = Bench()
    bench.sync.last_at = bench.now
    bench.now += MISSED_RESYNCS * 300
    assert bench.health.alive() == ""
    bench.now += 1
    assert "resync" in bench.health.alive()


async def test_a_loop_that_stood_still_is_told() -> None:
    bench = Bench()
    bench.health._beat_at = bench.now
    bench.now += 31
    assert "event loop" in bench.health.alive()


async def test_no_metric_names_an_object() -> None:
    bench = Bench()
    metadata = {"name": "secret-name", "namespace": "secret-team", "uid": "u", "resourceVersion": "1"}
    bench.store.put({"apiVersion": "x", "kind": "FineTuneJob", "metadata": metadata, "status": {"phase": "Training"}})
    bench.queue.add(Key("FineTuneJob", "secret-team", "secret-name"))
    bench.metrics.count_call("patch", "finetunejobs/status", 200)
    text = generate_latest(bench.metrics.registry).decode()
    assert "secret" not in text
    assert 'finetune_operator_finetunejobs{phase="Training"} 1.0' in text
    assert 'finetune_operator_api_requests_total{code="200",resource="finetunejobs/status",verb="patch"} 1.0' in text
    assert "finetune_operator_queue_depth 1.0" in text
    assert all(line.split()[2].startswith("finetune_operator_") for line in text.splitlines() if line.startswith("# HELP"))
