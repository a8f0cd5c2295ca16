"""Everything at once: watches that lag, kills, gateways that take their time, pods that flap, people who meddle, two leaders."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
from finetune_api.run import Stage
from finetune_operator.core import names

from tests.sim.cluster import Cluster, Id
from tests.sim.operator_process import OperatorProcess
from tests.sim.scenario import JOB, NAMESPACE, Life, Meddling, make_job, verdict
from tests.sim.test_rollout import ROUTE, RolloutLife, stages

SEEDS = range(6)


@cache
def undisturbed() -> Any:
    life = Life()
    life.submit()
    asyncio.run(life.run())
    return verdict(life)


def found(life: Life, plural: str, name: str = "") -> list[Id]:
    return [id for id in sorted(life.cluster.objects) if id[0] == plural and id[2].startswith(name) and id[2] != "base"]


def strip_label(plural: str, name: str = "", while_active: str = "") -> Meddling:
    """`kubectl label … app.kubernetes.io/managed-by-` of some object of a kind that lives, while a stage Job of that name is under way."""

    def strip(life: Life) -> bool:
        own = [id for id in found(life, plural, name) if "deletionTimestamp" not in life.cluster.objects[id]["metadata"]]
        job = life.cluster.objects.get(("jobs", NAMESPACE, while_active))
        if not own or (while_active and (job is None or "conditions" in (job.get("status") or {}))):
            return False
        labels = life.cluster.objects[own[-1]]["metadata"]["labels"]
        life.cluster.set_labels(own[-1], {key: value for key, value in labels.items() if key != names.MANAGED_BY})
        return True

    return strip


def annotate(plural: str) -> Meddling:
    """Somebody writes what is nobody's business, so every resourceVersion that was read before is over."""

    def write(life: Life) -> bool:
        for id in found(life, plural):
            live = life.cluster.objects[id]
            life.cluster.replace(id, {**live, "metadata": {**live["metadata"], "annotations": {"note": str(life.cluster.revision)}}})
        return bool(found(life, plural))

    return write


def delete(plural: str, name: str = "") -> Meddling:
    def act(life: Life) -> bool:
        own = [id for id in found(life, plural, name) if "deletionTimestamp" not in life.cluster.objects[id]["metadata"]]
        if own:
            life.cluster.delete(own[-1], foreground=plural in ("jobs", "pods"))
        return bool(own)

    return act


def pods_per_attempt(life: Life) -> set[int]:
    return {len(pods) for pods in life.kubelet.started.values()}


# --------------------------------------------------------------------------------------------------------------------- one job


@pytest.mark.parametrize("seed", SEEDS)
def test_events_of_different_kinds_overtake_each_other(seed: int) -> None:
    life = Life(seed=seed, late=0.8, script={Stage.TRAIN: ["crash", "preempted"]})
    life.submit()
    asyncio.run(life.run())
    assert [attempt["counted"] for attempt in life.status()["attempts"]] == [True, False]
    assert life.status()["phase"] == "Succeeded"
    assert pods_per_attempt(life) == {1}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_leader_that_works_on_after_it_was_replaced_does_nothing_twice(seed: int) -> None:
    life = Life(seed=seed, rival=True, late=0.5)
    life.submit()
    asyncio.run(life.run())
    assert verdict(life) == undisturbed()
    assert pods_per_attempt(life) == {1}


STRIPPED = {
    "jobs": strip_label("jobs", "demo-train-1", "demo-train-1"),
    "persistentvolumeclaims": strip_label("persistentvolumeclaims", "", "demo-train-1"),
    "deployments": strip_label("deployments"),
    "services": strip_label("services"),
}


@pytest.mark.parametrize("plural", STRIPPED)
@pytest.mark.parametrize("seed", range(3))
def test_a_label_that_somebody_takes_away_is_put_back_and_nothing_runs_twice(plural: str, seed: int) -> None:
    life = Life(seed=seed, meddling=[STRIPPED[plural]], haste=1.0)
    life.submit()
    asyncio.run(life.run())
    assert not life.meddling
    assert verdict(life) == undisturbed()
    assert pods_per_attempt(life) == {1}
    if plural != "persistentvolumeclaims":  # a claim is found by its name once it was made
        assert all(names.MANAGED_BY in life.cluster.objects[id]["metadata"]["labels"] for id in found(life, plural))
    written = len(life.cluster.writes)
    asyncio.run(life.run())
    assert len(life.cluster.writes) == written


@pytest.mark.parametrize("seed", SEEDS)
def test_another_writer_on_every_object_is_no_obstacle(seed: int) -> None:
    kinds = ["finetunejobs", "jobs", "persistentvolumeclaims", "finetunejobs", "modelversions", "deployments", "finetunejobs"]
    life = Life(seed=seed, late=0.5, meddling=[annotate(plural) for plural in kinds])
    life.submit()
    asyncio.run(life.run())
    assert verdict(life) == undisturbed()
    assert pods_per_attempt(life) == {1}
    for plural in ("finetunejobs", "modelversions", "persistentvolumeclaims"):
        assert all("note" in life.cluster.objects[id]["metadata"]["annotations"] for id in found(life, plural)), "an edit was lost"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pod_deleted_by_hand_costs_no_attempt_of_the_recovery(seed: int) -> None:
    life = Life(seed=seed, late=0.3, meddling=[delete("pods", "demo-prepare")])
    life.submit()
    asyncio.run(life.run())
    assert life.status()["phase"] == "Succeeded"
    assert not [attempt for attempt in life.status().get("attempts", []) if attempt["counted"]]
    assert pods_per_attempt(life) == {1}


@pytest.mark.parametrize("seed", SEEDS)
def test_servers_deleted_by_hand_are_made_again(seed: int) -> None:
    life = Life(seed=seed, late=0.3)
    life.submit()
    asyncio.run(life.run())
    for plural in ("deployments", "services"):
        assert delete(plural)(life)
    asyncio.run(life.run())
    assert verdict(life) == undisturbed()


@pytest.mark.parametrize("down", [True, False], ids=["while it is down", "while it watches"])
@pytest.mark.parametrize("after", [1, 3, 6, 9, 12, 16])
def test_a_job_deleted_and_made_again_at_any_moment_ends_as_if_it_were_the_first(after: int, down: bool) -> None:
    life = Life(seed=after, late=0.3)
    life.submit()

    async def replace() -> None:
        operator = await life.run(until=lambda cluster: len(cluster.writes) >= after)
        operator.deaf = down
        life.cluster.delete(JOB)
        life.cluster.put_new("finetunejobs", make_job())
        await life.run()

    asyncio.run(replace())
    assert life.status()["phase"] == "Succeeded"
    assert life.kubelet.most_live <= 1
    uids = {live["metadata"]["uid"] for id, live in life.cluster.objects.items() if id[0] in ("finetunejobs", "modelversions")}
    for id, live in life.cluster.objects.items():
        owners = {
            owner["uid"] for owner in live["metadata"].get("ownerReferences") or () if owner["kind"] in ("FineTuneJob", "ModelVersion")
        }
        assert owners <= uids, f"{id} is owned by one that is gone"


def test_a_backup_that_is_restored_while_the_operator_watches_is_worked_on() -> None:
    life = Life()
    life.submit()

    async def restore() -> None:
        await life.run(until=lambda cluster: ("jobs", NAMESPACE, "demo-prepare-1") in cluster.objects)
        backup = life.cluster.backup()
        operator = await life.run(until=lambda cluster: ("jobs", NAMESPACE, "demo-package-1") in cluster.objects)
        operator.deaf = True
        life.cluster.restore(backup)
        await operator.resync()
        assert operator.rewound
        assert operator.store.get("Job", NAMESPACE, "demo-package-1") is None
        operator.deaf = False
        for _ in range(3000):
            if not (life.kubelet.step() or await operator.one_pass() or await life._advance(operator)):
                return

    asyncio.run(restore())
    assert verdict(life) == undisturbed()


def test_refused_pods_are_told_in_the_words_of_the_job_controller() -> None:
    life = Life()
    life.submit()

    async def refuse() -> None:
        await life.run(until=lambda cluster: ("jobs", NAMESPACE, "demo-prepare-1") in cluster.objects)
        job = life.cluster.objects["jobs", NAMESPACE, "demo-prepare-1"]
        about = {"kind": "Job", "name": "demo-prepare-1", "namespace": NAMESPACE, "uid": job["metadata"]["uid"]}
        told = {
            "reason": "FailedCreate",
            "message": "violates PodSecurity",
            "involvedObject": about,
            "lastTimestamp": "2026-01-01T00:00:00Z",
        }
        life.cluster.put_new("events", {"metadata": {"name": "refusal", "namespace": NAMESPACE}, **told})
        operator = OperatorProcess(life.cluster, random.Random(0))
        await operator.start()
        life.cluster.now += timedelta(minutes=2)
        for _ in range(20):
            await operator.one_pass()

    asyncio.run(refuse())
    assert "violates PodSecurity" in life.condition("Prepared")["message"]


# -------------------------------------------------------------------------------------------------------------------- rollouts


HOLD = timedelta(seconds=30)


def disturbed(seed: int, **rest: Any) -> RolloutLife:
    life = RolloutLife(seed=seed, **rest)
    life.kubelet.flaps = 4
    life.kubelet.gateway_delay = timedelta(seconds=20)
    return life


def hours(number: int) -> Callable[[Cluster], bool]:
    """That long after the world began: what waits for somebody looks again and again, and never comes to rest."""
    return lambda cluster: cluster.now >= Cluster().now + timedelta(hours=number)


ENDS = {"bot-v1": "Archived", "bot-v2": "Production"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rollout_over_pods_that_flap_and_a_gateway_that_is_late_ends_the_same(seed: int) -> None:
    life = disturbed(seed, late=0.3)
    asyncio.run(life.run_both())
    assert stages(life) == ENDS
    assert life.weights[-1]["bot-v2"] == 100
    assert all(sum(shares.values()) == 100 for shares in life.weights)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("part", range(4))
def test_and_so_it_does_when_the_operator_is_killed_on_the_way(part: int, seed: int) -> None:
    for killed_at in range(20 + 3 * part, 80, 12):
        life = disturbed(seed, crash_after=killed_at)
        asyncio.run(life.run_both())
        assert stages(life) == ENDS, f"killed after write {killed_at}"
        assert life.weights[-1]["bot-v2"] == 100


@pytest.mark.parametrize("seed", range(3))
def test_no_traffic_goes_to_a_version_whose_pods_never_answer(seed: int) -> None:
    life = RolloutLife(seed=seed, late=0.3)
    life.kubelet.never_ready.add("bot-v2")
    asyncio.run(life.run_both())
    assert stages(life) == {"bot-v1": "Production", "bot-v2": "Registered"}
    assert all(not shares.get("bot-v2") for shares in life.weights)


@pytest.mark.parametrize("seed", range(3))
def test_a_gateway_that_never_takes_the_canary_keeps_it_where_it_is(seed: int) -> None:
    life = RolloutLife(seed=seed)

    def takes(route: Any) -> bool:
        return len([backend for backend in route["spec"]["rules"][0]["backendRefs"] if backend["weight"]]) < 2

    life.kubelet.gateway_accepts = takes
    asyncio.run(life.run_both(until=hours(2)))
    assert stages(life) == {"bot-v1": "Production", "bot-v2": "Canary"}
    life.kubelet.gateway_accepts = lambda route: True
    asyncio.run(life.run())
    assert stages(life) == ENDS


@pytest.mark.parametrize("seed", SEEDS)
def test_no_step_is_shorter_than_its_hold(seed: int) -> None:
    life = disturbed(seed)
    moved: dict[str, tuple[str, Any]] = {}
    check = life._check

    def watch() -> None:
        check()
        for name, stage in stages(life).items():
            before = moved.get(name)
            if before and before[0] != stage and before[0] in ("Canary", "Staging") and stage in ("Staging", "Production"):
                assert life.cluster.now - before[1] >= HOLD, f"{name} left {before[0]} early"
            if before is None or before[0] != stage:
                moved[name] = stage, life.cluster.now

    life._check = watch  # type: ignore[method-assign]
    asyncio.run(life.run_both())
    assert stages(life) == ENDS


def set_weights(life: Life) -> bool:
    route = life.cluster.objects.get(ROUTE)
    if route is None or len(route["spec"]["rules"][0]["backendRefs"]) < 2:
        return False
    rule = route["spec"]["rules"][0]
    wrong = [{**backend, "weight": 50} for backend in rule["backendRefs"]]
    life.cluster.replace(ROUTE, {**route, "spec": {**route["spec"], "rules": [{**rule, "backendRefs": wrong}]}})
    return True


def remove_route(life: Life) -> bool:
    if not set_weights(life):
        return False
    life.cluster.remove(ROUTE)
    return True


PEOPLE: dict[str, Callable[[], list[Meddling]]] = {
    "edit the weights": lambda: [set_weights, set_weights],
    "delete the route": lambda: [remove_route],
    "delete a server": lambda: [delete("deployments", "bot-v2")],
    "delete a Service": lambda: [delete("services", "bot-v2")],
    "take labels away": lambda: [strip_label("deployments"), strip_label("httproutes"), strip_label("services")],
    "write notes": lambda: [annotate("modelversions"), annotate("deployments"), annotate("modelversions")],
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("what", PEOPLE)
def test_people_who_meddle_with_a_rollout_do_not_change_its_end(what: str, seed: int) -> None:
    life = disturbed(seed, meddling=[])
    life.meddling_in_second = PEOPLE[what]()
    asyncio.run(life.run_both())
    assert not life.meddling, "nobody came to meddle"
    assert stages(life) == ENDS
    assert life.weights[-1]["bot-v2"] == 100
    assert life.cluster.objects[ROUTE]["metadata"]["labels"][names.MANAGED_BY] == names.MANAGED_BY_VALUE


@pytest.mark.parametrize("seed", range(3))
def test_two_leaders_of_a_rollout_agree(seed: int) -> None:
    life = RolloutLife(seed=seed, rival=True)
    asyncio.run(life.run_both())
    assert stages(life) == ENDS
    assert life.weights[-1]["bot-v2"] == 100


def test_a_version_deleted_in_production_is_replaced_by_its_predecessor() -> None:
    life = RolloutLife()

    async def remove() -> None:
        await life.run_both()
        life.was_in_production = False
        life.cluster.delete(("modelversions", NAMESPACE, "bot-v2"))
        await life.run()

    asyncio.run(remove())
    assert stages(life) == {"bot-v1": "Production"}
    assert life.weights[-1] == {"bot-v1": 100}
