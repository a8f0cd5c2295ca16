"""A pass against the simulated API server with a planner of the test's own: order, fences, one status write, problems, strangers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from finetune_operator.core import names
from finetune_operator.core.names import Object
from finetune_operator.core.plan import Action, ActionProblem, Apply, Create, Delete, Event, SetOwners
from finetune_operator.core.settings import Settings
from finetune_operator.engine.actions import DESIRED_ANNOTATION, Actor, NotLeading, is_ours
from finetune_operator.engine.queue import Outcome
from finetune_operator.engine.reconcile import Reconciler, Work
from finetune_operator.engine.recorder import Recorder
from finetune_operator.engine.store import Key, Store
from finetune_operator.engine.world import Lookups, World
from finetune_operator.kube.client import Client, Request, Response

from tests.sim.cluster import Cluster, Refusal

KEY = Key(names.FINETUNEJOB, "team", "demo")
ID = ("finetunejobs", "team", "demo")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Bench:
    """`plan` is called with the job and the problems known; whatever it answers is done."""

    plan: Callable[[Object, tuple[ActionProblem, ...]], Work] = lambda job, problems: Work({}, {})
    cluster: Cluster = field(default_factory=Cluster)
    leading: bool = True
    plans: int = 0
    now: datetime = NOW

    def __post_init__(self) -> None:
        self.store = Store()
        self.marked: set[Key] = set()
        self.requests: list[Request] = []
        self.cluster.before = self.requests.append
        client = Client(self.cluster.send)
        self.world = World(self.store, Lookups(client), Settings())
        self.recorder = Recorder(client, "test")
        actor = Actor(client, self.store, lambda: self.leading, self.marked.add)
        self.reconciler = Reconciler(actor, self.world, self.recorder, {names.FINETUNEJOB: self._plan}, now=lambda: self.now)
        self.job = self.cluster.put_new("finetunejobs", {"metadata": {"name": "demo", "namespace": "team"}, "spec": {}})
        self.store.put(self.job)

    async def _plan(self, key: Key, world: World, now: datetime) -> Work | None:
        self.plans += 1
        job = world.store.get(*key)
        return self.plan(job, world.problems.get(key, ())) if job else None

    async def run(self) -> Outcome:
        self.requests.clear()
        return await self.reconciler.reconcile(KEY)

    def sent(self) -> list[str]:
        return [f"{request.method} {request.path.split('/namespaces/team/')[-1]}" for request in self.requests]


def service(job: Object, name: str = "svc", **spec: Any) -> Object:
    metadata = {"name": name, "namespace": "team", "ownerReferences": [names.owner_reference(job)]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"name": "http", "port": 80}], **spec}}


def batch_job(job: Object, name: str = "demo-train-1") -> Object:
    metadata = {"name": name, "namespace": "team", "ownerReferences": [names.owner_reference(job)]}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": {}}}


def work(job: Object, status: Object | None = None, *actions: Action, **rest: Any) -> Work:
    return Work({"demo": job}, {"demo": status if status is not None else job.get("status") or {}}, actions, **rest)


async def test_actions_come_first_then_one_status_write_then_events() -> None:
    event = Event("Normal", "Started", "it runs")
    bench = Bench(lambda job, _: work(job, {"phase": "X"}, Create(batch_job(job)), events=(("demo", event),)))
    outcome = await bench.run()
    assert bench.sent() == ["POST jobs", "PATCH finetunejobs/demo/status"]
    assert outcome.again
    await bench.recorder.flush()
    assert [posted["reason"] for posted in bench.cluster.events] == ["Started"]


async def test_a_status_that_is_the_same_is_not_written_and_nothing_is_told() -> None:
    event = Event("Normal", "Started", "it runs")
    bench = Bench(lambda job, _: work(job, {"phase": "X", "absent": None}, events=(("demo", event),)))
    await bench.run()
    outcome = await bench.run()
    assert bench.sent() == []
    assert not outcome.again
    await bench.recorder.flush()
    assert len(bench.cluster.events) == 1


async def test_a_status_first_pass_acts_only_when_that_is_durable() -> None:
    bench = Bench(lambda job, _: work(job, {"attempt": 2}, Create(batch_job(job)), status_first=True))
    await bench.run()
    assert bench.sent() == ["PATCH finetunejobs/demo/status"]
    await bench.run()
    assert bench.sent() == ["POST jobs"]


async def test_a_member_that_is_no_longer_wanted_leaves_the_status() -> None:
    bench = Bench(lambda job, _: work(job, {"a": 1, "b": {"c": 1, "d": 2}}))
    await bench.run()
    bench.plan = lambda job, _: work(job, {"b": {"c": 1}})
    await bench.run()
    assert bench.cluster.objects[ID]["status"] == {"b": {"c": 1}}


async def test_a_conflict_means_read_again_and_another_pass() -> None:
    bench = Bench(lambda job, _: work(job, {"phase": job["spec"].get("x", "none")}))
    bench.cluster.replace(ID, {**bench.cluster.objects[ID], "spec": {"x": "changed"}})
    outcome = await bench.run()
    assert outcome == Outcome(again=True)
    assert "status" not in bench.cluster.objects[ID]
    await bench.run()
    assert bench.cluster.objects[ID]["status"] == {"phase": "changed"}


async def test_an_object_that_is_gone_is_forgotten() -> None:
    bench = Bench(lambda job, _: work(job, {"phase": "X"}))
    bench.cluster.remove(ID)
    await bench.run()
    assert bench.store.get(*KEY) is None
    assert await bench.run() == Outcome()


async def test_a_replica_that_does_not_lead_writes_nothing() -> None:
    bench = Bench(lambda job, _: work(job, {"phase": "X"}, Create(batch_job(job))))
    bench.leading = False
    with pytest.raises(NotLeading):
        await bench.run()
    assert bench.cluster.writes == []


async def test_leadership_lost_between_two_writes_stops_the_second() -> None:
    bench = Bench(lambda job, _: work(job, {"phase": "X"}, Create(batch_job(job))))

    def lose(request: Request, writes: int) -> None:
        bench.leading = False

    bench.cluster.after = lose
    with pytest.raises(NotLeading):
        await bench.run()
    assert [write.verb for write in bench.cluster.writes] == ["create"]


# ------------------------------------------------------------------------------------------------------------------- create


async def test_an_own_object_that_is_there_already_is_fine_and_becomes_known() -> None:
    bench = Bench(lambda job, _: work(job, None, Create(batch_job(job))))
    bench.cluster.put_new("jobs", batch_job(bench.job))
    await bench.run()
    assert bench.sent() == ["POST jobs", "GET jobs/demo-train-1"]
    assert bench.store.get("Job", "team", "demo-train-1") is not None
    assert bench.world.problems == {}


async def test_a_strangers_object_is_a_problem_that_status_tells_in_the_same_pass() -> None:
    bench = Bench(lambda job, problems: work(job, {"told": [p.reason for p in problems]}, Create(batch_job(job))))
    bench.cluster.put_new("jobs", {"metadata": {"name": "demo-train-1", "namespace": "team"}, "spec": {}})
    outcome = await bench.run()
    assert bench.cluster.objects[ID]["status"] == {"told": ["NotOwned"]}
    assert outcome.failed
    await bench.run()
    assert bench.sent() == [], "asked again at once"
    bench.now += timedelta(seconds=60)
    await bench.run()
    assert bench.sent() == ["POST jobs", "GET jobs/demo-train-1"], "the same problem was written again"


STRIPPED = {
    "no label at all": {},
    "managed by another": {names.MANAGED_BY: "Helm", names.JOB_LABEL: "demo"},
    "of no job": {names.MANAGED_BY: names.MANAGED_BY_VALUE},
}


@pytest.mark.parametrize("left", STRIPPED)
@pytest.mark.parametrize("kind", ["jobs", "persistentvolumeclaims"])
async def test_labels_that_were_taken_from_an_own_object_are_put_back(left: str, kind: str) -> None:
    def wanted(job: Object) -> Object:
        body = batch_job(job) if kind == "jobs" else {**batch_job(job), "apiVersion": "v1", "kind": "PersistentVolumeClaim"}
        return {**body, "metadata": {**body["metadata"], "labels": names.job_labels(job)}}

    bench = Bench(lambda job, _: work(job, None, Create(wanted(job))))
    await bench.run()
    id = (kind, "team", "demo-train-1")
    live = bench.cluster.objects[id]
    kept = {names.JOB_UID_LABEL: bench.job["metadata"]["uid"]} if kind == "persistentvolumeclaims" else {}
    bench.cluster.replace(id, {**live, "metadata": {**live["metadata"], "labels": STRIPPED[left] | kept}})
    bench.store.deleted(bench.cluster.objects[id])  # as a watch with a selector tells of it
    await bench.run()
    assert bench.cluster.objects[id]["metadata"]["labels"] == names.job_labels(bench.job)
    assert bench.store.of(KEY, wanted(bench.job)["kind"]), "a pass does not find it"
    assert bench.world.problems == {}


async def test_an_object_of_a_restored_backup_is_learnt_though_its_version_is_older() -> None:
    bench = Bench(lambda job, _: work(job, {"phase": job["spec"].get("x", "none")}))
    backup = bench.cluster.backup()
    bench.store.put(bench.cluster.replace(ID, {**bench.cluster.objects[ID], "spec": {"x": "later"}}))
    bench.cluster.restore(backup)
    assert await bench.run() == Outcome(again=True)
    await bench.run()
    assert bench.cluster.objects[ID]["status"] == {"phase": "none"}


async def test_what_a_former_owner_of_the_name_left_is_waited_for_and_not_a_strangers() -> None:
    """Deleted and applied again: the garbage collector has not come by yet."""
    bench = Bench(lambda job, problems: work(job, {"told": [p.reason for p in problems]}, Create(batch_job(job))))
    former = {**bench.job, "metadata": {**bench.job["metadata"], "uid": "former"}}
    bench.cluster.put_new("jobs", batch_job(former))
    await bench.run()
    assert bench.cluster.objects[ID]["status"] == {"told": ["WaitingForPreviousOwner"]}


async def test_a_refusal_whose_words_differ_each_time_is_asked_for_and_written_once_a_minute() -> None:
    bench = Bench(lambda job, problems: work(job, {"told": [p.message for p in problems]}, Create(batch_job(job))))
    tries: list[Object] = []

    def refuse(body: Object) -> None:
        tries.append(body)
        raise Refusal(403, "Forbidden", f'pods "demo-{len(tries)}" is forbidden: by a webhook that counts')

    bench.cluster.admit = refuse
    for second in range(600):
        bench.now = NOW + timedelta(seconds=second)
        outcome = await bench.run()
        assert outcome.recheck_at
        assert outcome.recheck_at <= bench.now + timedelta(seconds=60)
    assert len(tries) == 10
    assert len([write for write in bench.cluster.writes if write.resource == "finetunejobs/status"]) == 10


async def test_another_content_is_sent_at_once_and_so_is_the_same_after_it_was_wanted_no_more() -> None:
    bench = Bench()
    tries: list[Object] = []

    def refuse(body: Object) -> None:
        tries.append(body)
        raise Refusal(403, "Forbidden", "no")

    bench.cluster.admit = refuse
    for content in ({"a": 1}, {"a": 1}, {"a": 2}, None, {"a": 2}):
        body = batch_job(bench.job) | {"spec": content}
        bench.plan = lambda job, _, body=body: work(job, None, *([Create(body)] if body["spec"] else []))  # type: ignore[misc]
        await bench.run()
    assert [body["spec"] for body in tries] == [{"a": 1}, {"a": 2}, {"a": 2}]


async def test_a_failing_api_server_is_left_alone_for_as_long_as_it_asked() -> None:
    bench = Bench(lambda job, problems: work(job, {"told": [p.reason for p in problems]}, Create(batch_job(job))))
    send = bench.cluster.send
    tries: list[datetime] = []

    async def fail(request: Request) -> Response:
        if request.method != "POST":
            return await send(request)
        tries.append(bench.now)
        return Response(503, b'{"message": "overloaded"}', "90")

    bench.reconciler.actor.client.send = fail
    for _ in range(4):
        assert (await bench.run()).retry_after_s in (90, None)
    for second in range(90):
        bench.now = NOW + timedelta(seconds=second)
        await bench.run()
    assert len(tries) == 4
    bench.now = NOW + timedelta(seconds=90)
    await bench.run()
    assert len(tries) == 5


async def test_a_quota_is_asked_again_soon_at_first() -> None:
    bench = Bench(lambda job, problems: work(job, None, Create(batch_job(job))))
    tries: list[datetime] = []

    def refuse(body: Object) -> None:
        tries.append(bench.now)
        raise Refusal(403, "Forbidden", "exceeded quota: team")

    bench.cluster.admit = refuse
    for second in range(300):
        bench.now = NOW + timedelta(seconds=second)
        await bench.run()
    assert [(moment - NOW).seconds for moment in tries] == [0, 2, 6, 14, 30, 62, 122, 182, 242]


async def test_a_dying_object_of_a_former_owner_is_waited_for() -> None:
    bench = Bench(lambda job, problems: work(job, {"told": [p.reason for p in problems]}, Create(batch_job(job))))
    dying = {"name": "demo-train-1", "namespace": "team", "deletionTimestamp": "2026-01-01T00:00:00Z"}
    bench.cluster.put_new("jobs", {"metadata": dying, "spec": {}})
    await bench.run()
    assert bench.cluster.objects[ID]["status"] == {"told": ["WaitingForPreviousOwner"]}
    bench.cluster.remove(("jobs", "team", "demo-train-1"))
    bench.now += timedelta(seconds=2)
    await bench.run()
    assert bench.cluster.objects[ID]["status"] == {"told": []}
    assert bench.world.problems == {}


async def test_a_refused_dry_run_makes_no_job() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "p-", "namespace": "team"}}
    bench = Bench(lambda job, problems: work(job, {"told": [(p.kind, p.reason, p.message) for p in problems]}, Create(batch_job(job), pod)))

    def refuse(body: Object) -> None:
        if body["kind"] == "Pod":
            raise Refusal(403, "Forbidden", "violates PodSecurity")

    bench.cluster.admit = refuse
    await bench.run()
    assert "POST jobs" not in bench.sent()
    assert bench.cluster.objects[ID]["status"]["told"] == [["Job", "Forbidden", "violates PodSecurity"]]


REFUSALS = {
    "quota": (Refusal(403, "Forbidden", "exceeded quota: gpus"), "QuotaExceeded"),
    "rights": (Refusal(403, "Forbidden", "cannot create resource"), "Forbidden"),
    "malformed": (Refusal(422, "Invalid", "spec.x: Required value"), "Invalid"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_refusals_become_problems_in_the_servers_words(case: str) -> None:
    refusal, reason = REFUSALS[case]
    bench = Bench(lambda job, problems: work(job, None, Create(batch_job(job))))

    def refuse(body: Object) -> None:
        raise refusal

    bench.cluster.admit = refuse
    await bench.run()
    (problem,) = bench.world.problems[KEY]
    assert (problem.kind, problem.name, problem.reason, problem.message) == ("Job", "demo-train-1", reason, refusal.message)


async def test_a_problem_stops_only_its_own_concern() -> None:
    def plan(job: Object, _: object) -> Work:
        made = [Apply(service(job, name), concern) for name, concern in (("a1", "a"), ("a2", "a"), ("b1", "b"), ("c1", "c"), ("c2", "c"))]
        return work(job, None, *made)

    bench = Bench(plan)

    def admit(body: Object) -> None:
        if body["metadata"]["name"] in ("a1", "c2"):
            raise Refusal(403, "Forbidden", "exceeded quota")

    bench.cluster.admit = admit
    await bench.run()
    assert [name for kind, _, name in bench.cluster.objects if kind == "services"] == ["b1", "c1"]
    assert [problem.name for problem in bench.world.problems[KEY]] == ["a1", "c2"]


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_failure_of_the_server_on_one_child_is_told_after_everything_else_was_done(status: int) -> None:
    """An admission webhook that is down answers 500 for the kinds it looks at, and must not stand before the rest."""
    bench = Bench(lambda job, _: work(job, {"phase": "X"}, *(Apply(service(job, name), name) for name in ("a", "b", "c"))))

    def admit(body: Object) -> None:
        if body["metadata"]["name"] == "a":
            raise Refusal(status, "InternalError", "failed calling webhook")

    bench.cluster.admit = admit
    outcome = await bench.run()
    assert outcome.failed
    assert [name for kind, _, name in bench.cluster.objects if kind == "services"] == ["b", "c"]
    assert "status" not in bench.cluster.objects[ID]
    for _ in range(5):
        await bench.run()
    assert bench.cluster.objects[ID]["status"] == {"phase": "X"}


async def test_a_member_that_yields_keeps_the_value_that_somebody_else_gave_it() -> None:
    bench = Bench(lambda job, _: work(job, None, Apply(service(job, externalName="ours"), yields=("externalName",))))
    await bench.run()
    id = ("services", "team", "svc")
    bench.store.put(
        bench.cluster.replace(id, {**bench.cluster.objects[id], "spec": {**bench.cluster.objects[id]["spec"], "externalName": "x"}})
    )
    await bench.run()
    assert bench.sent() == []
    bench.plan = lambda job, _: work(job, None, Apply(service(job, externalName="ours", type="B"), yields=("externalName",)))
    await bench.run()
    assert bench.cluster.objects[id]["spec"]["externalName"] == "x"
    assert bench.requests[0].body is not None
    sent = bench.requests[0].body["metadata"]
    assert "resourceVersion" in sent, "what was set since must not be overwritten"
    bench.plan = lambda job, _: work(job, None, Apply(service(job, externalName="ours", type="B")))
    await bench.run()
    assert bench.cluster.objects[id]["spec"]["externalName"] == "ours"


async def test_an_exact_apply_that_changes_nothing_does_not_call_for_another_pass() -> None:
    bench = Bench(lambda job, _: work(job, None, Apply(service(job))))
    await bench.run()
    bench.plan = lambda job, _: work(job, None, Apply(service(job), exactly=True))
    outcome = await bench.run()
    assert bench.sent() == ["PATCH services/svc"]
    assert not outcome.again


async def test_after_a_problem_nothing_more_is_made_but_deletions_go_on() -> None:
    bench = Bench()
    old = bench.cluster.put_new("jobs", batch_job(bench.job, "demo-train-0"))
    bench.store.put(old)
    delete = Delete("batch/v1", "Job", "team", "demo-train-0", old["metadata"]["uid"])
    bench.plan = lambda job, _: work(job, None, Create(batch_job(job)), Apply(service(job)), delete)
    bench.cluster.put_new("jobs", {"metadata": {"name": "demo-train-1", "namespace": "team"}, "spec": {}})
    await bench.run()
    assert [f"{write.verb} {write.name}" for write in bench.cluster.writes] == ["delete demo-train-0"]


async def test_a_failing_api_server_is_told_only_when_it_lasts() -> None:
    bench = Bench(lambda job, problems: work(job, {"told": [p.reason for p in problems]}, Create(batch_job(job))))

    def fail(body: Object) -> None:
        raise Refusal(500, "InternalError", "failed calling webhook")

    bench.cluster.admit = fail
    for _ in range(3):
        assert (await bench.run()).failed
        assert "status" not in bench.cluster.objects[ID]
    await bench.run()
    assert bench.cluster.objects[ID]["status"] == {"told": ["ApiError"]}


async def test_no_answer_at_all_ends_the_pass_without_a_word() -> None:
    bench = Bench(lambda job, _: work(job, {"phase": "X"}, Create(batch_job(job))))

    def drop(request: Request) -> None:
        raise TimeoutError

    bench.cluster.before = drop
    assert await bench.run() == Outcome(failed=True)
    assert bench.world.problems == {}


# -------------------------------------------------------------------------------------------------------------------- apply


async def test_apply_writes_once_and_again_only_for_drift_or_a_new_wish() -> None:
    bench = Bench(lambda job, _: work(job, None, Apply(service(job))))
    await bench.run()
    assert bench.sent() == ["PATCH services/svc"]
    await bench.run()
    assert bench.sent() == []
    live = bench.cluster.objects["services", "team", "svc"]
    bench.store.put(bench.cluster.replace(("services", "team", "svc"), {**live, "spec": {"ports": [{"name": "http", "port": 81}]}}))
    await bench.run()
    assert bench.sent() == ["PATCH services/svc"]
    assert bench.cluster.objects["services", "team", "svc"]["spec"]["ports"][0]["port"] == 80


async def test_a_wish_that_only_drops_a_member_is_applied_too() -> None:
    bench = Bench(lambda job, _: work(job, None, Apply(service(job, externalName="x"))))
    await bench.run()
    bench.plan = lambda job, _: work(job, None, Apply(service(job)))
    await bench.run()
    assert bench.sent() == ["PATCH services/svc"]


async def test_what_was_seen_before_is_applied_with_its_uid_and_not_brought_back() -> None:
    bench = Bench(lambda job, _: work(job, None, Apply(service(job))))
    await bench.run()
    bench.cluster.remove(("services", "team", "svc"))
    bench.plan = lambda job, _: work(job, None, Apply(service(job, clusterIP="None")))
    assert (await bench.run()).again
    assert ("services", "team", "svc") not in bench.cluster.objects
    await bench.run()
    assert ("services", "team", "svc") in bench.cluster.objects, "it is made anew once its absence is known"


async def test_a_strangers_service_is_not_taken_over() -> None:
    bench = Bench(lambda job, _: work(job, None, Apply(service(job))))
    bench.cluster.put_new("services", {"metadata": {"name": "svc", "namespace": "team"}, "spec": {"ports": []}})
    await bench.run()
    assert bench.world.problems[KEY][0].reason == "NotOwned"
    assert bench.cluster.objects["services", "team", "svc"]["spec"] == {"ports": []}


async def test_the_applied_object_tells_what_was_wished() -> None:
    bench = Bench(lambda job, _: work(job, None, Apply(service(job))))
    await bench.run()
    assert len(bench.cluster.objects["services", "team", "svc"]["metadata"]["annotations"][DESIRED_ANNOTATION]) == 16


# --------------------------------------------------------------------------------------------------------- delete and owners


async def test_a_delete_spares_a_successor_of_the_same_name() -> None:
    bench = Bench()
    bench.cluster.put_new("jobs", batch_job(bench.job))
    bench.plan = lambda job, _: work(job, None, Delete("batch/v1", "Job", "team", "demo-train-1", "uid-of-its-predecessor"))
    assert (await bench.run()).again
    assert ("jobs", "team", "demo-train-1") in bench.cluster.objects


async def test_what_is_being_deleted_is_not_deleted_again() -> None:
    bench = Bench()
    live = bench.cluster.put_new("jobs", batch_job(bench.job))
    live["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    bench.store.put(live)
    bench.plan = lambda job, _: work(job, None, Delete("batch/v1", "Job", "team", "demo-train-1", live["metadata"]["uid"]))
    assert await bench.run() == Outcome()
    assert bench.sent() == []


async def test_owners_are_replaced_only_of_the_object_that_was_seen() -> None:
    bench = Bench()
    claim = {"name": "c", "namespace": "team", "ownerReferences": [names.owner_reference(bench.job)]}
    seen = bench.cluster.put_new("persistentvolumeclaims", {"metadata": claim, "spec": {}})
    action = SetOwners("v1", "PersistentVolumeClaim", "team", "c", seen["metadata"]["uid"], "1", ())
    bench.plan = lambda job, _: work(job, None, action)
    assert (await bench.run()).again
    assert bench.cluster.writes == []
    bench.plan = lambda job, _: work(job, None, SetOwners(*(*vars(action).values(),)[:5], seen["metadata"]["resourceVersion"], ()))
    await bench.run()
    assert not bench.cluster.objects["persistentvolumeclaims", "team", "c"]["metadata"].get("ownerReferences")


async def test_a_fault_of_our_own_is_counted_and_tried_again_later() -> None:
    def broken(job: Object, problems: tuple[ActionProblem, ...]) -> Work:
        raise ZeroDivisionError

    bench = Bench(broken)
    assert await bench.run() == Outcome(failed=True)
    assert bench.reconciler.metrics.pass_errors.labels(names.FINETUNEJOB, "Bug")._value.get() == 1


LABELS = {names.MANAGED_BY: names.MANAGED_BY_VALUE, names.MODEL_LABEL: "bot", names.JOB_UID_LABEL: "u1"}


def thing(kind: str, *, labels: Object | None = None, owner: str = "", spec: Object | None = None) -> Object:
    owners = [{"uid": owner}] if owner else []
    return {"kind": kind, "metadata": {"labels": labels or {}, "ownerReferences": owners}, "spec": spec or {}}


def lineage(uid: str) -> Object:
    return {"lineage": {"jobUid": uid, "runDigest": "d"}}


IDENTITIES = {
    "same owner": (thing("Job", owner="a"), thing("Job", owner="a"), True),
    "another owner": (thing("Job", owner="b"), thing("Job", owner="a"), False),
    "labels alone prove nothing": (thing("Job", labels=LABELS), thing("Job", labels=LABELS, owner="a"), False),
    "a claim whose owner changed": (
        thing("PersistentVolumeClaim", labels=LABELS, owner="version"),
        thing("PersistentVolumeClaim", labels=LABELS, owner="job"),
        True,
    ),
    "a claim without label": (
        thing("PersistentVolumeClaim", owner="job"),
        thing("PersistentVolumeClaim", labels=LABELS, owner="job"),
        False,
    ),
    "a version of this job": (thing("ModelVersion", spec=lineage("u")), thing("ModelVersion", spec=lineage("u")), True),
    "a version of another job": (thing("ModelVersion", spec=lineage("v")), thing("ModelVersion", spec=lineage("u")), False),
    "a route of the model": (thing("HTTPRoute", labels=LABELS, owner="v1"), thing("HTTPRoute", labels=LABELS, owner="v2"), True),
    "a route of a person": (thing("HTTPRoute"), thing("HTTPRoute", labels=LABELS, owner="v2"), False),
}


@pytest.mark.parametrize("case", IDENTITIES)
def test_whose_object_it_is(case: str) -> None:
    live, wanted, ours = IDENTITIES[case]
    assert is_ours(live, wanted) is ours


# --------------------------------------------------------------------------------------------------------------------------- logs


async def test_each_change_and_decision_is_one_line_of_the_log_and_a_pass_that_does_nothing_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "finetune_operator")
    event = Event("Warning", "Retrying", "stage train, attempt 1 ended: Crashed")
    bench = Bench(lambda job, _: work(job, {"phase": "Training"}, Create(batch_job(job)), events=(("demo", event),)))
    for _ in range(3):
        await bench.run()
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "Job demo-train-1 was created",
        "FineTuneJob demo is Training (was new)",
        "FineTuneJob demo: Retrying: stage train, attempt 1 ended: Crashed",
    ]
    assert {record.__dict__.get("key", "") for record in caplog.records[1:]} == {"FineTuneJob/team/demo"}
