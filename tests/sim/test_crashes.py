"""The operator is killed after any write: it goes on where it was, nothing twice, nothing lost."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

import pytest
from finetune_api.run import Stage

from tests.sim.kubelet import Ending
from tests.sim.scenario import Life, verdict

SCRIPTS: dict[str, dict[Stage, list[Ending]]] = {
    "undisturbed": {},
    "train fails once, then is preempted": {Stage.TRAIN: ["crash", "preempted"]},
    "an answer vanishes with its node": {Stage.PACKAGE: ["vanished"]},
    "a final error": {Stage.PREPARE: ["invalid"]},
    "errors without end": {Stage.TRAIN: ["crash"] * 9},
}


@cache
def undisturbed(script: str, seed: int = 0) -> tuple[Any, int, Any]:
    life = Life(seed=seed, script=SCRIPTS[script])
    life.submit()
    asyncio.run(life.run())
    return verdict(life), len(life.cluster.writes), {attempt: len(pods) for attempt, pods in life.kubelet.started.items()}


@pytest.mark.parametrize(("script", "seed"), [*((script, 0) for script in SCRIPTS), ("undisturbed", 1)])
def test_a_kill_after_any_write_ends_as_if_nothing_had_happened(script: str, seed: int) -> None:
    wanted, writes, pods = undisturbed(script, seed)
    for killed_at in range(1, writes + 1):
        life = Life(seed=seed, script=SCRIPTS[script], crash_after=killed_at)
        life.submit()
        asyncio.run(life.run())
        assert life.crashes == 1, f"the kill after write {killed_at} never landed"
        assert verdict(life) == wanted, f"killed after write {killed_at}"
        assert {attempt: len(names) for attempt, names in life.kubelet.started.items()} == pods, f"killed after write {killed_at}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_writes_are_few(script: str) -> None:
    _, writes, _ = undisturbed(script)
    assert writes <= {"undisturbed": 22, "a final error": 5}.get(script, 32)


def test_registration_takes_at_most_fifteen_writes() -> None:
    life = Life()
    life.submit()
    asyncio.run(life.run())
    kinds = [write.resource for write in life.cluster.writes]
    assert kinds.index("modelversions") + 1 <= 15
    assert len([kind for kind in kinds if not kind.startswith(("deployments", "services", "modelversions/"))]) <= 15
    assert len(life.cluster.dry_runs) == 3 + 3, (
        "of the claim and both shapes of pods before the start, and of each later stage before its Job"
    )
    assert len(life.cluster.events) <= 10
