"""Whole processes against the simulated API server: they start, one leads, the other takes over, nobody is in two minds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from finetune_operator.core.settings import Settings
from finetune_operator.engine.leader import Timing
from finetune_operator.kube.client import Request, Response, Send
from finetune_operator.planners import PLANNERS
from finetune_operator.runtime import Options, Runtime
from finetune_operator.status_server.service import Listening

from tests.sim.cluster import SERVED, Cluster
from tests.sim.kubelet import Kubelet
from tests.sim.scenario import JOB, make_cluster, make_job

FAST = Timing(lease_s=3.0, renew_deadline_s=2.0, retry_s=0.1, request_s=0.3)


class World:
    """Several operator processes over one cluster; each sees the watch events until it ends."""

    def __init__(self) -> None:
        self.cluster: Cluster = make_cluster()
        self.cluster.put_new("secrets", {"metadata": {"name": "tls", "namespace": "system"}})
        self.cluster.watch = self._watch
        self.kubelet = Kubelet(self.cluster, random.Random(0))
        self.runtimes: dict[str, Runtime] = {}
        self.exits: dict[str, int] = {}
        self.cut_off: set[str] = set()
        self.silent = False
        """The API server answers nobody yet."""
        self.forbidden: set[str] = set()
        """Namespaces in which nothing may be listed."""
        self.stuck: set[str] = set()
        """What such paths end with is answered never."""
        self.writers: list[str] = []

    def _watch(self, type: str, live: Any) -> None:
        for runtime in self.runtimes.values():
            if live["kind"] not in ("Lease", "Secret", "EndpointSlice"):
                runtime.seen(type, live)

    def make(self, identity: str, namespaces: tuple[str, ...] = ()) -> Runtime:
        @asynccontextmanager
        async def connect() -> AsyncIterator[Send]:
            places = asyncio.Semaphore(8)  # as the connections of one pool are

            async def send(request: Request) -> Response:
                async with places:
                    return await answer(request)

            async def answer(request: Request) -> Response:
                await asyncio.sleep(0)
                if any(request.path.endswith(end) for end in self.stuck):
                    await asyncio.sleep(3600)
                if identity in self.cut_off or self.silent:
                    raise ConnectionResetError("cut off")
                if request.method == "GET" and any(f"/namespaces/{name}/" in request.path for name in self.forbidden):
                    return Response(403, b'{"reason": "Forbidden", "message": "may not list"}')
                if request.method != "GET" and "/leases" not in request.path:
                    self.writers.append(identity)
                return await self.cluster.send(request)

            yield send

        settings = Settings(
            namespace="system", identity=identity, status_url="https://status.system.svc:8443", resync_s=0.2, watch_namespaces=namespaces
        )
        options = Options(Listening(0, "10.0.0.1", "status", "tls"), health_port=0, metrics_port=0)
        runtime = Runtime(settings, options, connect, PLANNERS, FAST, exit=lambda code: self.exits.__setitem__(identity, code))
        self.runtimes[identity] = runtime
        return runtime

    async def start(self, identity: str, namespaces: tuple[str, ...] = ()) -> Runtime:
        runtime = self.make(identity, namespaces)
        await runtime.start()
        return runtime

    async def until(self, holds: Callable[[], bool], within_s: float = 60.0) -> None:
        async with asyncio.timeout(within_s):
            while not holds():
                self._check()
                self.kubelet.step()
                await asyncio.sleep(0.005)

    def _check(self) -> None:
        leading = [identity for identity, runtime in self.runtimes.items() if runtime.leading and identity not in self.exits]
        assert len(leading) <= 1, f"{leading} lead at once"

    def phase(self) -> str:
        return str((self.cluster.objects[JOB].get("status") or {}).get("phase", ""))

    @property
    def holder(self) -> str:
        lease = self.cluster.objects.get(("leases", "system", "finetune-operator"))
        return str(lease["spec"]["holderIdentity"]) if lease else ""


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    for runtime in made.runtimes.values():
        async with asyncio.timeout(30):
            await runtime.stop()


async def test_a_process_leads_serves_and_brings_a_job_to_its_end(world: World) -> None:
    runtime = await world.start("a")
    world.cluster.put_new("finetunejobs", make_job())
    await world.until(lambda: world.phase() == "Succeeded")
    assert world.cluster.objects["secrets", "system", "tls"]["data"]["ca.crt"]
    assert world.cluster.objects["endpointslices", "system", "status"]["endpoints"][0]["addresses"] == ["10.0.0.1"]
    stage_job = world.cluster.objects["jobs", "team", "demo-train-1"]
    assert "BEGIN CERTIFICATE" in str(stage_job["spec"]["template"]["metadata"]["annotations"])
    assert runtime.metrics.leader._value.get() == 1


async def test_a_follower_is_synced_and_writes_nothing_until_the_leader_goes(world: World) -> None:
    first = await world.start("a")
    await world.until(lambda: first.leading)
    second = await world.start("b")
    await world.until(lambda: second.store.synced)
    world.cluster.put_new("finetunejobs", make_job())
    await world.until(lambda: world.phase() == "Training")
    assert set(world.writers) == {"a"}
    await world.runtimes.pop("a").stop()
    assert world.holder == ""
    await world.until(lambda: world.phase() == "Succeeded")
    assert world.holder == "b"
    assert all(len(pods) == 1 for pods in world.kubelet.started.values())


@pytest.mark.parametrize("busy", [True, False], ids=["with a job", "with nothing to do"])
async def test_a_leader_that_hears_nothing_ends_before_another_leads(world: World, busy: bool) -> None:
    first = await world.start("a")
    await world.until(lambda: first.leading)
    second = await world.start("b")
    if busy:
        world.cluster.put_new("finetunejobs", make_job())
        await world.until(lambda: world.phase() == "Training")
    world.cut_off.add("a")
    await world.until(lambda: "a" in world.exits)
    assert world.exits["a"] == 1
    assert world.holder == "a", "another led before the old leader gave up"
    await world.until(lambda: second.leading)
    assert world.holder == "b"
    if busy:
        await world.until(lambda: world.phase() == "Succeeded")


async def test_a_crd_that_comes_or_goes_ends_the_process_cleanly(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_operator.runtime._PROBE_CRDS_S", 0.02)
    runtime = await world.start("a")
    await asyncio.sleep(0.1)
    assert not runtime.stopping.is_set()
    monkeypatch.delitem(SERVED, "httproutes")
    await asyncio.wait_for(runtime.stopping.wait(), 2)
    assert world.exits == {}


async def test_without_its_secret_the_operator_works_on_without_progress(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_operator.status_server.service._START_S", 0.05)
    world.cluster.remove(("secrets", "system", "tls"))
    await world.start("a")
    world.cluster.put_new("finetunejobs", make_job())
    await world.until(lambda: world.phase() == "Succeeded")


async def test_an_event_about_nothing_stops_nobody(world: World) -> None:
    odd = {"name": "odd", "namespace": "team"}
    world.cluster.put_new("events", {"metadata": odd, "reason": "FailedCreate", "involvedObject": {"kind": "Job"}})
    runtime = await world.start("a")
    world.cluster.put_new("events", {"metadata": {**odd, "name": "odder"}, "reason": "FailedCreate", "involvedObject": {"kind": "Job"}})
    world.cluster.put_new("finetunejobs", make_job())
    await world.until(lambda: world.phase() == "Succeeded")
    await runtime._sync.again()
    assert world.exits == {}
    assert runtime.store.unreadable == 0


async def test_probes_are_answered_before_the_api_server_is(world: World) -> None:
    world.silent = True
    runtime = world.make("a")
    probed: list[int] = []
    serve = runtime._serve

    async def note(port: int, routes: Any) -> None:
        await serve(port, routes)
        probed.append(len(routes))

    runtime._serve = note  # type: ignore[method-assign]
    starting = asyncio.create_task(runtime.start())
    async with asyncio.timeout(10):
        while not probed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not starting.done()
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)


async def test_a_forbidden_namespace_waits_and_the_others_work(world: World) -> None:
    world.forbidden = {"closed"}
    runtime = await world.start("a", ("team", "closed"))
    world.cluster.put_new("finetunejobs", make_job())
    closed = make_job()
    world.cluster.put_new("finetunejobs", {**closed, "metadata": {**closed["metadata"], "namespace": "closed"}})
    world.cluster.put_new("persistentvolumeclaims", {"metadata": {"name": "base", "namespace": "closed"}, "status": {"phase": "Bound"}})
    await world.until(lambda: world.phase() == "Succeeded")
    assert not [id for id in world.cluster.objects if id[0] == "jobs" and id[1] == "closed"], "decided without being seen"
    assert (runtime.metrics.registry.get_sample_value("finetune_operator_unlisted") or 0) > 0
    world.forbidden = set()
    await world.until(lambda: bool([id for id in world.cluster.objects if id[0] == "jobs" and id[1] == "closed"]))


async def test_a_restored_backup_ends_the_process_cleanly(world: World) -> None:
    runtime = await world.start("a")
    await world.until(lambda: runtime.leading)
    backup = world.cluster.backup()
    world.cluster.put_new("finetunejobs", make_job())
    await world.until(lambda: world.phase() == "Training")
    world.cluster.restore(backup)
    await world.until(runtime.stopping.is_set)
    assert world.exits == {}
    assert runtime.store.get("FineTuneJob", "team", "demo") is None


async def test_requests_that_are_never_answered_do_not_cost_the_lease(world: World) -> None:
    runtime = await world.start("a")
    await world.until(lambda: runtime.leading)
    world.stuck = {"/tokenreviews", "/jobs", "/pods"}
    tokens = [runtime._status.client.review_token(f"t{number}", "a") for number in range(50)]
    asking = [asyncio.create_task(token) for token in tokens]
    await asyncio.sleep(1.2 * FAST.lease_s)
    assert world.exits == {}
    assert runtime.leading
    assert world.holder == "a"
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


MADE = [("leases", "system", "finetune-operator"), ("endpointslices", "system", "status")]


async def test_what_the_operator_makes_for_itself_goes_with_the_release(world: World) -> None:
    runtime = await world.start("a")
    await world.until(lambda: runtime.leading)
    assert all(id in world.cluster.objects for id in MADE)
    await world.runtimes.pop("a").stop()
    assert not world.cluster.collect(), "and not before"
    world.cluster.remove(("secrets", "system", "tls"))
    world.cluster.collect()
    assert not any(id in world.cluster.objects for id in MADE)


@pytest.mark.parametrize("id", MADE)
async def test_what_is_deleted_by_hand_is_there_again(world: World, id: tuple[str, str, str]) -> None:
    runtime = await world.start("a")
    await world.until(lambda: runtime.leading)
    world.cluster.remove(id)
    await world.until(lambda: id in world.cluster.objects)
    assert world.exits == {}
