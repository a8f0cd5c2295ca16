"""Rollouts under people and weather: versions made again, restored and refused, pods that flap, a Gateway that accepts late, routes edited
by hand, an operator that is away or killed. What users see must hold after every single write, and in the end everything comes to rest."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.core.names import Object
from finetune_operator.kube.client import Request

from tests.sim.cluster import Cluster, Id, Refusal
from tests.sim.kubelet import Kubelet
from tests.sim.operator_process import OperatorProcess
from tests.sim.scenario import NAMESPACE, Crash
from tests.unit.operator.modelversion.world import STEPS, model_version

ROUTE = ("httproutes", NAMESPACE, "bot")
NUMBERS = (1, 2, 3, 4)
_HOLDS = {"10m": timedelta(minutes=10), "0s": timedelta(0)}
"""In words of its own: whoever reads them wrong must not judge himself."""


class Broken(BaseException):
    """What must hold does not. No AssertionError: the operator would take that for a fault of its own and go on."""


class Weather(Kubelet):
    """A cluster whose Gateway and pods do as they are told: `accepts`, and names of versions that are `down`."""

    accepts = True
    down: frozenset[str] = frozenset()

    def _route(self, id: Id, route: Object) -> Callable[[], None] | None:
        return super()._route(id, route) if self.accepts else None

    def _server_pod(self, id: Id, pod: Object) -> Callable[[], None] | None:
        version = _version_of(pod)
        if "deletionTimestamp" in pod["metadata"] or version not in self.down:
            return super()._server_pod(id, pod)
        if pod["status"]["phase"] == "Pending":
            return None
        return lambda: self.cluster.set_status(id, {"phase": "Pending", "conditions": [{"type": "Ready", "status": "False"}]})

    def _deployment(self, id: Id, live: Object) -> Callable[[], None] | None:
        if id[2] not in self.down:
            return super()._deployment(id, live)
        status = {"observedGeneration": live["metadata"]["generation"], "replicas": 1, "updatedReplicas": 1, "availableReplicas": 0}
        return None if live.get("status") == status else lambda: self.cluster.set_status(id, status)


def _version_of(pod: Object) -> str:
    labels = pod["metadata"]["labels"]
    return f"{labels['finetune-operator.io/model']}-v{labels['finetune-operator.io/version']}"


class History:
    """One model's life. `refused`: versions whose Deployment the API server does not admit."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.cluster = Cluster(admit=self._admit, after=self._maybe_crash)
        self.kubelet = Weather(self.cluster, self.rng)
        self.refused: set[str] = set()
        self.operator: OperatorProcess | None = None
        self.crash_in: int | None = None
        self.served: dict[tuple[str, int | None], timedelta] = {}
        self.places: dict[str, tuple[str, int | None]] = {}
        self.said: list[str] = []
        self.services: set[str] = set()
        for number in NUMBERS:
            claim = {"metadata": {"name": f"files-{number}", "namespace": NAMESPACE}, "spec": {}, "status": {"phase": "Bound"}}
            self.cluster.put_new("persistentvolumeclaims", claim)

    def _admit(self, body: Object) -> None:
        if body["kind"] == "Deployment" and body["metadata"]["name"] in self.refused:
            raise Refusal(403, "Forbidden", "exceeded quota: team")

    def _maybe_crash(self, request: Request, writes: int) -> None:
        if writes:
            try:
                self.check()
            except AssertionError as error:
                raise Broken(str(error)) from error
        if writes and self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                self.crash_in, self.operator = None, None
                raise Crash

    # ------------------------------------------------------------------------------------------------------------- what happens

    def version(self, number: int) -> Object | None:
        return self.cluster.objects.get(_id(number))

    def create(self, number: int, steps: list[Object] | None = None) -> None:
        body = model_version(number, steps=self.rng.choice([STEPS, STEPS, []]) if steps is None else steps)
        body["spec"]["artifacts"][1]["sha256"] = f"{self.rng.randrange(3):064x}"
        self.cluster.put_new("modelversions", {"metadata": {"name": f"bot-v{number}", "namespace": NAMESPACE}, "spec": body["spec"]})
        self._forget(number)

    def _forget(self, number: int) -> None:
        self.places.pop(f"bot-v{number}", None)
        self.served = {key: time for key, time in self.served.items() if key[0] != f"bot-v{number}"}

    def publish(self) -> None:
        number = max((n for n in NUMBERS if self.version(n)), default=0) + 1
        if number in NUMBERS:
            self.create(number)

    def make_again(self) -> None:
        number = self.rng.choice(NUMBERS)
        if self.version(number):
            self.cluster.remove(_id(number))
            self.create(number)

    def delete(self) -> None:
        number = self.rng.choice(NUMBERS)
        if self.version(number):
            self.cluster.remove(_id(number))
            self._forget(number)

    def restore(self) -> None:
        """Statuses of some versions are lost, as by a backup that has none."""
        for number in NUMBERS:
            live = self.version(number)
            if live and "status" in live and self.rng.random() < 0.5:
                self.cluster.replace(_id(number), {key: value for key, value in live.items() if key != "status"})
                self._forget(number)

    def edit(self) -> None:
        number = self.rng.choice(NUMBERS)
        live = self.version(number)
        if live is None:
            return
        what = self.rng.choice(["abort", "pause", "go on", "retire", "activate"])
        if what in ("retire", "activate"):
            lifecycle = "Retired" if what == "retire" else "Active"
            self.cluster.replace(_id(number), {**live, "spec": {**live["spec"], "lifecycle": lifecycle}})
        else:
            self.roll(number, **({"abort": True} if what == "abort" else {"paused": what == "pause"}))

    def roll(self, number: int, **rollout: Any) -> None:
        live = self.cluster.objects[_id(number)]
        changed = {**live["spec"]["rollout"], **rollout}
        self.cluster.replace(_id(number), {**live, "spec": {**live["spec"], "rollout": changed}})

    def edit_route(self) -> None:
        route = self.cluster.objects.get(ROUTE)
        if route is None:
            return
        spec = {**route["spec"], "rules": [dict(rule) for rule in route["spec"]["rules"]]}
        what = self.rng.choice(["weights", "hostnames", "filters", "rule"])
        if what == "weights":
            spec["rules"][0]["backendRefs"] = [{**ref, "weight": 50} for ref in spec["rules"][0]["backendRefs"]]
        elif what == "hostnames":
            spec["hostnames"] = ["elsewhere.example"]
        elif what == "filters":
            spec["rules"][0]["filters"] = [{"type": "RequestHeaderModifier"}]
        else:
            spec["rules"].insert(0, {"matches": [{"headers": [{"name": "x", "value": "y"}]}], "backendRefs": []})
        self.cluster.replace(ROUTE, {**route, "spec": spec})

    def weather(self) -> None:
        down = self.rng.choice([frozenset(), frozenset({f"bot-v{self.rng.choice(NUMBERS)}"})])
        self.kubelet.down = down
        self.kubelet.accepts = self.rng.random() < 0.6
        self.refused = {f"bot-v{number}" for number in NUMBERS if self.rng.random() < 0.2}

    def clear_up(self) -> None:
        self.kubelet.down, self.kubelet.accepts, self.refused = frozenset(), True, set()

    # ------------------------------------------------------------------------------------------------------------------ turns

    async def some_passes(self, limit: int = 400) -> None:
        """The operator and the cluster by turns until nothing moves; a killed operator starts again."""
        for _ in range(limit):
            try:
                if self.operator is None:
                    self.operator = OperatorProcess(self.cluster, self.rng)
                    await self.operator.start()
                moved = await self._turn(self.operator)
                self.operator.check_view()
                if not moved:
                    self.operator.check_sees_all()
                    return
            except Crash:
                continue
        raise AssertionError(f"no rest after {limit} turns: {self.said[-5:]}")

    async def _turn(self, operator: OperatorProcess) -> bool:
        if self.rng.random() < 0.5:
            return await operator.one_pass() or self._step()
        return self._step() or await operator.one_pass()

    def _step(self) -> bool:
        """Of everything but the operator: the garbage collector takes no Service that the route sends to."""
        acted = self.kubelet.step()
        services = {id[2] for id in self.cluster.objects if id[0] == "services"}
        route = self.cluster.objects.get(ROUTE)
        if route and "deletionTimestamp" not in route["metadata"]:
            lost = {name for name, weight in _weights(route).items() if weight and name in self.services - services}
            if lost:
                raise Broken(f"{lost} went while the route sent there: {self.said[-5:]}")
        self.services = services
        return acted

    def time_passes(self, seconds: int = 0) -> None:
        dt = timedelta(seconds=seconds or self.rng.choice([5, 40, 300, 605, 3700]))
        for number in NUMBERS:
            if self._is_served(number):
                key = (f"bot-v{number}", self._place(number)[1])
                self.served[key] = self.served.get(key, timedelta(0)) + dt
        self.cluster.now += dt

    def _is_served(self, number: int) -> bool:
        name, route = f"bot-v{number}", self.cluster.objects.get(ROUTE)
        deployment = self.cluster.objects.get(("deployments", NAMESPACE, name))
        if route is None or deployment is None or not (deployment.get("status") or {}).get("availableReplicas"):
            return False
        rules, parents = route["spec"]["rules"], (route.get("status") or {}).get("parents", [])
        seen = [c["observedGeneration"] == route["metadata"]["generation"] for parent in parents for c in parent["conditions"]]
        plain = len(rules) == 1 and not route["spec"].get("hostnames")
        return plain and bool(seen) and all(seen) and any(ref["name"] == name and ref["weight"] > 0 for ref in rules[0]["backendRefs"])

    # --------------------------------------------------------------------------------------------------------- what must hold

    def _place(self, number: int) -> tuple[str, int | None]:
        live = self.version(number)
        status = (live or {}).get("status") or {}
        return status.get("stage", ""), status.get("stepIndex")

    def check(self) -> None:
        """After every write of the operator."""
        places = {f"bot-v{number}": self._place(number) for number in NUMBERS if self.version(number)}
        assert [stage for stage, _ in places.values()].count("Production") <= 1, places
        for name, (stage, index) in places.items():
            was = self.places.get(name)
            if was and was != (stage, index):
                self.said.append(f"{name}: {was} → {(stage, index)}")
                self._moved(name, was, (stage, index))
        self.places = places
        route = self.cluster.objects.get(ROUTE)
        if route and len(route["spec"]["rules"]) == 1:
            weights = [ref["weight"] for ref in route["spec"]["rules"][0]["backendRefs"]]
            assert sum(weights) in (100, 50 * len(weights)), weights

    def _moved(self, name: str, was: tuple[str, int | None], now: tuple[str, int | None]) -> None:
        (stage_before, before), (_, after) = was, now
        if before is not None and after == before + 1 and stage_before in ("Canary", "Staging"):
            steps = self.cluster.objects[_id(int(name[-1]))]["spec"]["rollout"]["steps"]
            served, hold = self.served.get((name, before), timedelta(0)), _HOLDS[steps[before]["hold"]]
            assert served >= hold, f"{name} left step {before} after {served} of {hold}: {self.said[-5:]}"
        assert stage_before not in ("RolledBack", "Rejected"), f"{name} came back from {stage_before}"
        self.served.pop((name, after), None)

    def at_rest(self) -> None:
        """What must be so once the weather is fine and everybody waits."""
        route = self.cluster.objects.get(ROUTE)
        weights = _weights(route)
        live = [number for number in NUMBERS if self._place(number)[0] in ("Canary", "Staging", "Production")]
        awaited = any(self._place(number)[0] == "Registered" for number in NUMBERS if self.version(number))
        assert bool(route) == bool(live) or (route and awaited), "a deleted one answers only until another does"
        for number in NUMBERS:
            version = self.version(number)
            if version is None:
                continue
            assert version["status"]["weight"] == weights.get(f"bot-v{number}", 0), "status tells another weight than the route has"
            aborted = version["spec"]["rollout"].get("abort", False)
            assert not aborted or weights.get(f"bot-v{number}", 0) == 0 or version["status"]["stage"] == "Production"
        assert not live or sum(weights.values()) == 100
        servers = {id[2] for id in self.cluster.objects if id[0] in ("deployments", "services") and id[2] not in weights}
        gone = {f"bot-v{number}" for number in NUMBERS if self.version(number) is None}
        assert not servers & gone, f"of deleted versions {servers & gone} are still there"


def _weights(route: Object | None) -> dict[str, int]:
    rules = route["spec"]["rules"] if route else []
    ours = next((rule for rule in rules if rule["backendRefs"]), {"backendRefs": []})  # somebody's own may stand before it
    return {ref["name"]: ref["weight"] for ref in ours["backendRefs"]}


def _id(number: int) -> Id:
    return ("modelversions", NAMESPACE, f"bot-v{number}")


async def live(history: History, rounds: int = 40) -> int:
    """A random history, then fine weather; returns how much an operator that starts anew still writes: nothing."""
    history.publish()
    events = [
        history.publish,
        history.edit,
        history.edit_route,
        history.weather,
        history.weather,
        history.make_again,
        history.delete,
        history.restore,
    ]
    for _ in range(rounds):
        history.rng.choice([*events, history.time_passes, history.time_passes, history.time_passes])()
        away = history.rng.random() < 0.15
        if away:
            history.operator = None
            while history.kubelet.step():
                pass
            continue
        history.crash_in = history.rng.choice([None, None, None, 0, 1, 2])
        await history.some_passes()
        history.crash_in = None
    history.clear_up()
    for _ in range(12):
        await history.some_passes()
        history.time_passes(61)
    await history.some_passes()
    history.at_rest()
    before = len(history.cluster.writes)
    history.operator = None
    await history.some_passes()
    return len(history.cluster.writes) - before


@pytest.mark.parametrize("seed", range(30))
def test_whatever_people_and_pods_do(seed: int) -> None:
    history = History(seed)
    assert asyncio.run(live(history)) <= 4, "only what counted of a hold is taken down anew"


def test_a_refused_server_of_the_next_version_does_not_hold_up_the_rollback_of_this_one() -> None:
    history = History(0)

    async def run() -> None:
        history.create(1, steps=[])
        await history.some_passes()
        history.create(2, steps=STEPS)
        await history.some_passes()
        assert history._place(2) == ("Canary", 0)
        history.refused = {"bot-v3"}
        history.create(3)
        await history.some_passes()
        history.roll(2, abort=True)
        history.time_passes(2)
        await history.some_passes()

    asyncio.run(run())
    backends = history.cluster.objects[ROUTE]["spec"]["rules"][0]["backendRefs"]
    assert [(ref["name"], ref["weight"]) for ref in backends] == [("bot-v1", 100)]
    third = history.version(3)
    assert third
    assert next(c for c in third["status"]["conditions"] if c["type"] == "Stalled")["reason"] == "QuotaExceeded"
