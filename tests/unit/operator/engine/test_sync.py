"""Our own LISTs: nothing is synced before all kinds are in, and what watches lost is found again."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from finetune_operator.core import names
from finetune_operator.engine import sync as sync_module
from finetune_operator.engine.store import MODEL, Key, Store
from finetune_operator.engine.sync import Sync
from finetune_operator.kube.client import Client, Request, Response

from tests.sim.cluster import Cluster, Refusal

KEY = Key(names.FINETUNEJOB, "team", "demo")
LABELS = {names.MANAGED_BY: names.MANAGED_BY_VALUE, names.JOB_LABEL: "demo"}


class Bench:
    def __init__(self, namespaces: tuple[str, ...] = ()) -> None:
        self.cluster = Cluster()
        self.store = Store()
        self.marked: set[Key] = set()
        self.corrected: list[str] = []
        self.rewound = 0
        self.forbidden: set[tuple[str, str]] = set()
        self.sync = Sync(Client(self.send), self.store, namespaces, self.marked.add, self.corrected.append, self.rewind)

    def rewind(self) -> None:
        self.rewound += 1

    async def send(self, request: Request) -> Response:
        """As the cluster answers, but for LISTs of what is forbidden: (plural, namespace), `*` for all."""
        namespace = request.path.split("/namespaces/")[-1].split("/")[0] if "/namespaces/" in request.path else ""
        plural = request.path.rsplit("/", 1)[-1]
        if {(plural, namespace), (plural, "*"), ("*", namespace)} & self.forbidden:
            return Response(403, json.dumps({"reason": "Forbidden", "message": f"may not list {plural}"}).encode())
        return await self.cluster.send(request)

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


# ----------------------------------------------------------------------------------------------------- what cannot be listed


async def test_a_forbidden_namespace_stops_its_own_keys_only() -> None:
    bench = Bench(namespaces=("team", "closed"))
    bench.forbidden = {("*", "closed")}
    bench.add("jobs", "demo-train-1")
    await asyncio.wait_for(bench.sync.first(), 1)
    assert bench.store.synced
    assert bench.store.get("Job", "team", "demo-train-1") is not None
    assert bench.sync.sees(KEY)
    assert not bench.sync.sees(Key(names.FINETUNEJOB, "closed", "demo"))
    assert not bench.sync.sees(Key(MODEL, "closed", "bot"))


async def test_a_forbidden_kind_stops_what_needs_it_and_nothing_else() -> None:
    bench = Bench()
    bench.forbidden = {("deployments", "")}
    await asyncio.wait_for(bench.sync.first(), 1)
    assert bench.sync.sees(KEY)
    assert not bench.sync.sees(Key(MODEL, "team", "bot"))
    bench.forbidden = {("pods", "")}
    await bench.sync.again()
    assert not bench.sync.sees(KEY)


async def test_words_of_refused_pods_are_no_reason_to_stand_still() -> None:
    bench = Bench()
    bench.forbidden = {("events", "")}
    await asyncio.wait_for(bench.sync.first(), 1)
    assert bench.sync.sees(KEY)


async def test_what_can_be_listed_again_is_read_in_full_and_marked(warm: Bench) -> None:
    warm.forbidden = {("jobs", "")}
    await warm.sync.again()
    assert not warm.sync.sees(KEY)
    warm.cluster.set_status(("jobs", "team", "demo-train-1"), {"active": 1})
    warm.forbidden = set()
    warm.marked.clear()
    await warm.sync.again()
    assert warm.sync.sees(KEY)
    assert warm.marked == {KEY}
    live = warm.store.get("Job", "team", "demo-train-1")
    assert live is not None
    assert live["status"] == {"active": 1}


async def test_what_could_not_be_listed_is_tried_again_long_before_the_next_round(warm: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_module, "_RETRY_S", 0.001)
    warm.forbidden = {("jobs", "")}
    await warm.sync.again()
    rounds = asyncio.create_task(warm.sync.run(every_s=3600))
    await asyncio.sleep(0.02)
    warm.forbidden = set()
    async with asyncio.timeout(5):
        while warm.sync.blind:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    rounds.cancel()
    assert warm.marked == {KEY}


async def test_a_round_that_lost_its_connection_goes_on_where_it_was(warm: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_module, "_RETRY_S", 0.001)
    asked: list[str] = []

    def cut(request: Request) -> None:
        asked.append(request.path)
        if request.path.endswith("/pods") and asked.count(request.path) < 3:
            raise ConnectionResetError

    warm.cluster.before = cut
    await asyncio.wait_for(warm.sync.again(), 5)
    assert [path.rsplit("/", 1)[-1] for path in asked].count("pods") == 3
    assert [path.rsplit("/", 1)[-1] for path in asked].count("jobs") == 1


# ------------------------------------------------------------------------------------------------------------ restored backups


async def test_a_restored_backup_is_taken_as_it_is(warm: Bench) -> None:
    backup = warm.cluster.backup()
    warm.cluster.set_status(("jobs", "team", "demo-train-1"), {"active": 1})
    warm.store.put(warm.cluster.objects[warm.add("jobs", "demo-train-2")])
    warm.store.put(warm.cluster.objects["jobs", "team", "demo-train-1"])
    warm.cluster.restore(backup)
    warm.marked.clear()
    await warm.sync.again()
    assert warm.rewound == 1
    assert warm.store.get("Job", "team", "demo-train-2") is None
    live = warm.store.get("Job", "team", "demo-train-1")
    assert live is not None
    assert live["status"] == {}
    assert warm.marked == {KEY}
    warm.cluster.set_status(("jobs", "team", "demo-train-1"), {"active": 2})
    await warm.sync.again()
    assert warm.rewound == 1
    live = warm.store.get("Job", "team", "demo-train-1")
    assert live is not None
    assert live["status"] == {"active": 2}


async def test_one_list_that_lags_behind_is_no_restored_backup(warm: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    warm.cluster.set_status(("jobs", "team", "demo-train-1"), {"active": 1})
    warm.store.put(warm.cluster.objects["jobs", "team", "demo-train-1"])
    listed, lagging = warm.cluster._get, True

    def lag(plural: str, *rest: Any) -> Any:
        nonlocal lagging
        answer = listed(plural, *rest)
        if plural == "jobs" and lagging and answer["kind"] == "List":
            lagging = False
            answer["metadata"]["resourceVersion"] = "1"
        return answer

    monkeypatch.setattr(warm.cluster, "_get", lag)
    await warm.sync.again()
    assert warm.rewound == 0
    assert warm.store.get("Job", "team", "demo-train-1") is not None
