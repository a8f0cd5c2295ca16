"""Our own LISTs: nothing is synced before all kinds are in, and what watches lost is found again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from finetune_operator.core import names
from finetune_operator.engine import sync as sync_module
from finetune_operator.engine.store import Key, Store
from finetune_operator.engine.sync import Sync
from finetune_operator.kube.client import Client, Request

from tests.sim.cluster import Cluster, Refusal

KEY = Key(names.FINETUNEJOB, "team", "demo")
LABELS = {names.MANAGED_BY: names.MANAGED_BY_VALUE, names.JOB_LABEL: "demo"}


class Bench:
    def __init__(self, namespaces: tuple[str, ...] = ()) -> None:
        self.cluster = Cluster()
        self.store = Store()
        self.marked: set[Key] = set()
        self.corrected: list[str] = []
        self.sync = Sync(Client(self.cluster.send), self.store, namespaces, self.marked.add, self.corrected.append)

    def add(self, plural: str, name: str, namespace: str = "team", labels: dict[str, str] | None = LABELS) -> tuple[str, str, str]:
        metadata = {"name": name, "namespace": namespace, "labels": labels or {}}
        self.cluster.put_new(plural, {"metadata": metadata, "spec": {}, "status": {}})
        return plural, namespace, name


async def test_everything_is_in_after_the_first_round_and_nothing_foreign() -> None:
    bench = Bench()
    bench.add("finetunejobs", "demo", labels=None)
    bench.add("jobs", "demo-train-1")
    bench.add("jobs", "somebody-elses", labels=None)
    await bench.sync.first()
    assert bench.store.synced
    assert len(bench.store) == 2
    assert bench.corrected == []


async def test_a_kind_that_cannot_be_listed_holds_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_module, "_RETRY_S", 0.001)
    bench = Bench()
    refusals = 3

    def refuse(request: Request) -> None:
        nonlocal refusals
        if request.path.endswith("/deployments") and refusals:
            refusals -= 1
            assert not bench.store.synced
            raise ConnectionResetError

    bench.cluster.before = refuse
    await asyncio.wait_for(bench.sync.first(), 1)
    assert bench.store.synced


async def test_a_missing_gateway_api_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()

    def missing(plural: str, *rest: Any) -> Any:
        raise Refusal(404, "NotFound", "the server could not find the requested resource")

    listed = bench.cluster._get
    monkeypatch.setattr(bench.cluster, "_get", lambda plural, *rest: (missing if plural == "httproutes" else listed)(plural, *rest))
    await asyncio.wait_for(bench.sync.first(), 1)
    assert bench.store.synced


@pytest.fixture
async def warm() -> Bench:
    bench = Bench()
    bench.add("finetunejobs", "demo", labels=None)
    bench.add("jobs", "demo-train-1")
    await bench.sync.first()
    bench.marked.clear()
    bench.cluster.reads.clear()
    return bench


async def test_a_round_without_differences_reads_and_marks_nothing(warm: Bench) -> None:
    await warm.sync.again()
    assert (warm.marked, warm.corrected, warm.cluster.reads) == (set(), [], [])


async def test_a_missed_deletion_is_found(warm: Bench) -> None:
    warm.cluster.remove(("jobs", "team", "demo-train-1"))
    await warm.sync.again()
    assert warm.marked == {KEY}
    assert warm.corrected == ["Job"]
    assert warm.store.get("Job", "team", "demo-train-1") is None


async def test_a_missed_change_is_read_by_name(warm: Bench) -> None:
    warm.cluster.set_status(("jobs", "team", "demo-train-1"), {"active": 1})
    await warm.sync.again()
    assert warm.marked == {KEY}
    assert warm.cluster.reads == ["jobs/demo-train-1"]
    live = warm.store.get("Job", "team", "demo-train-1")
    assert live is not None
    assert live["status"] == {"active": 1}


async def test_a_missed_successor_replaces_its_predecessor(warm: Bench) -> None:
    warm.cluster.remove(("jobs", "team", "demo-train-1"))
    warm.add("jobs", "demo-train-1")
    await warm.sync.again()
    assert warm.store.uid("Job", "team", "demo-train-1") == warm.cluster.objects["jobs", "team", "demo-train-1"]["metadata"]["uid"]


async def test_what_was_made_while_the_list_ran_is_not_taken_for_gone(warm: Bench) -> None:
    def make_meanwhile(request: Request, writes: int) -> None:
        if request.path.endswith("/jobs") and request.method == "GET":
            warm.cluster.after = lambda request, writes: None
            warm.store.put(warm.cluster.objects[warm.add("jobs", "demo-train-2")])

    warm.cluster.after = make_meanwhile
    await warm.sync.again()
    assert warm.store.get("Job", "team", "demo-train-2") is not None


async def test_long_lists_come_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_operator.kube.client._PAGE", 3)
    bench = Bench()
    for number in range(10):
        bench.add("jobs", f"demo-train-{number}")
    await bench.sync.first()
    await bench.sync.again()
    assert len(bench.store) == 10
    assert bench.corrected == []


async def test_only_watched_namespaces_are_listed() -> None:
    bench = Bench(namespaces=("team",))
    bench.add("jobs", "demo-train-1")
    bench.add("jobs", "demo-train-1", namespace="elsewhere")
    await bench.sync.first()
    await bench.sync.again()
    assert list(bench.store.versions("Job")) == [("Job", "team", "demo-train-1")]
