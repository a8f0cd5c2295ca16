"""Two versions of a model behind a Gateway: one production at every moment, whatever crashes in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from finetune_operator.core.names import Object

from tests.sim.cluster import Cluster
from tests.sim.operator_process import OperatorProcess
from tests.sim.scenario import NAMESPACE, Life, Meddling, make_job

ROUTE = ("httproutes", NAMESPACE, "bot")
PUBLISH = {
    "model": "bot",
    "rollout": {
        "traffic": {"type": "GatewayAPI", "gatewayAPI": {"gateway": {"name": "gw", "namespace": "infra"}}},
        "steps": [
            {"name": "canary", "stage": "Canary", "weight": 5, "hold": "30s"},
            {"name": "staging", "stage": "Staging", "weight": 10, "hold": "30s"},
            {"name": "production", "stage": "Production"},
        ],
    },
}


@dataclass
class RolloutLife(Life):
    """Also notes every set of weights that the route ever had, and that production is never vacant once it was taken."""

    weights: list[dict[str, int]] = field(default_factory=list)
    was_in_production: bool = False

    def _check(self) -> None:
        super()._check()
        route = self.cluster.objects.get(ROUTE)
        if route:
            shares = {backend["name"]: backend["weight"] for backend in route["spec"]["rules"][0]["backendRefs"]}
            if not self.weights or self.weights[-1] != shares:
                self.weights.append(shares)
        self._check_production()

    def _check_production(self) -> None:
        """Between the two writes of a promotion the former version names the one that is about to take over; else somebody holds it."""
        statuses = {id[2]: live.get("status") or {} for id, live in self.cluster.objects.items() if id[0] == "modelversions"}
        stages = {name: status.get("stage") for name, status in statuses.items()}
        held = "Production" in stages.values()
        steps = {(status.get("stage"), stages.get(status.get("replacedBy", ""))) for status in statuses.values()}
        handing_over = steps & {("Archived", "Canary"), ("Archived", "Staging"), ("Archived", "Registered"), ("RolledBack", "Archived")}
        assert held or handing_over or not self.was_in_production, "production was vacated"
        self.was_in_production = self.was_in_production or held

    meddling_in_second: list[Meddling] = field(default_factory=list)
    """What people do once the second version is on its way."""

    async def run_both(self, until: Callable[[Cluster], bool] | None = None) -> OperatorProcess:
        self.submit(make_job("first", publish=PUBLISH))
        await self.run()
        self.submit(make_job("second", publish=PUBLISH, runId="two"))
        self.meddling += self.meddling_in_second
        return await self.run(until)


def stages(life: Life) -> dict[str, str]:
    return {id[2]: (live.get("status") or {}).get("stage", "") for id, live in life.cluster.objects.items() if id[0] == "modelversions"}


@cache
def undisturbed() -> tuple[Any, int]:
    life = RolloutLife()
    asyncio.run(life.run_both())
    return (stages(life), life.weights), len(life.cluster.writes)


def test_a_second_version_takes_over_step_by_step() -> None:
    (ends, weights), _ = undisturbed()
    assert ends == {"bot-v1": "Archived", "bot-v2": "Production"}
    assert weights[0] == {"bot-v1": 100}
    assert weights[-1].get("bot-v2") == 100
    assert [shares.get("bot-v2") for shares in weights if "bot-v2" in shares][:3] == [5, 10, 100]
    assert all(sum(shares.values()) == 100 for shares in weights)


@pytest.mark.parametrize("part", range(4))
def test_a_kill_after_any_write_of_a_rollout_ends_as_if_nothing_had_happened(part: int) -> None:
    (ends, weights), writes = undisturbed()
    for killed_at in range(1 + part, writes + 1, 4):
        life = RolloutLife(crash_after=killed_at)
        asyncio.run(life.run_both())
        assert life.crashes == 1, f"the kill after write {killed_at} never landed"
        assert stages(life) == ends, f"killed after write {killed_at}"
        assert life.weights == weights, f"killed after write {killed_at}"


def test_a_settled_rollout_writes_nothing() -> None:
    life = RolloutLife()

    async def settle() -> int:
        await life.run_both()
        before = len(life.cluster.asked)
        operator = OperatorProcess(life.cluster, life.rng)
        await operator.start()
        await operator.settle()
        return len(life.cluster.asked) - before

    assert asyncio.run(settle()) == 0


def test_abort_brings_the_former_back_with_its_pods_still_there() -> None:
    life = RolloutLife()

    async def abort() -> Object:
        await life.run_both()
        id = ("modelversions", NAMESPACE, "bot-v2")
        live = life.cluster.objects[id]
        pods = {pod[2] for pod in life.cluster.objects if pod[0] == "pods" and pod[2].startswith("bot-v1")}
        life.cluster.replace(id, {**live, "spec": {**live["spec"], "rollout": {**live["spec"]["rollout"], "abort": True}}})
        await life.run()
        assert pods <= {pod[2] for pod in life.cluster.objects if pod[0] == "pods"}
        return live

    asyncio.run(abort())
    assert stages(life) == {"bot-v1": "Production", "bot-v2": "RolledBack"}
    assert life.weights[-1].get("bot-v1") == 100


def test_a_route_changed_by_hand_is_set_right() -> None:
    life = RolloutLife()

    async def change() -> None:
        await life.run_both()
        route = life.cluster.objects[ROUTE]
        rule = route["spec"]["rules"][0]
        wrong = [{**backend, "weight": 50} for backend in rule["backendRefs"]]
        life.cluster.replace(ROUTE, {**route, "spec": {**route["spec"], "rules": [{**rule, "backendRefs": wrong}]}})
        await life.run()

    asyncio.run(change())
    assert life.weights[-1].get("bot-v2") == 100
