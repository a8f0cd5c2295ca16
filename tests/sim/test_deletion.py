"""Deletion and suspension at any moment of the path."""

from __future__ import annotations

import asyncio

import pytest

from tests.sim.scenario import JOB, Life, verdict

CHILDREN = ("jobs", "pods", "persistentvolumeclaims")


def left_over(life: Life) -> list[str]:
    return sorted(f"{id[0]}/{id[2]}" for id in life.cluster.objects if id[0] in CHILDREN and id[2] != "base")


@pytest.mark.parametrize("after", range(1, 11))
def test_a_job_deleted_at_any_moment_leaves_nothing(after: int) -> None:
    life = Life(seed=after)
    life.submit()

    async def delete_in_between() -> None:
        await life.run(until=lambda cluster: len(cluster.writes) >= after)
        life.cluster.delete(JOB, foreground=after % 2 == 0)
        await life.run()
        while life.kubelet.step():
            pass

    asyncio.run(delete_in_between())
    assert left_over(life) == []


def test_a_job_of_a_version_in_production_can_go() -> None:
    life = Life()
    life.submit()
    asyncio.run(life.run())
    life.cluster.delete(JOB)
    while life.kubelet.step():
        pass
    assert [name for name in left_over(life) if name.startswith("persistentvolumeclaims")], "the version lost its files"
    assert life.status(("modelversions", "team", "bot-v1"))["stage"] == "Production"


@pytest.mark.parametrize("after", [2, 3, 5, 7, 9])
def test_suspended_at_any_moment_and_resumed_it_ends_the_same(after: int) -> None:
    undisturbed = Life()
    undisturbed.submit()
    asyncio.run(undisturbed.run())
    life = Life(seed=after)
    life.submit()

    def set_suspend(value: bool) -> None:
        job = life.cluster.objects[JOB]
        life.cluster.replace(JOB, {**job, "spec": {**job["spec"], "suspend": value}})

    async def suspend_in_between() -> None:
        await life.run(until=lambda cluster: len(cluster.writes) >= after)
        set_suspend(True)
        await life.run()
        live = [id for id, pod in life.cluster.objects.items() if id[0] == "pods" and pod["status"]["phase"] in ("Pending", "Running")]
        assert live == [], "pods are left while suspended"
        assert life.condition("Suspended")["status"] == "True"
        set_suspend(False)
        await life.run()

    asyncio.run(suspend_in_between())
    got, wanted = verdict(life), verdict(undisturbed)
    assert got["conditions"] == wanted["conditions"]
    assert got["versions"] == wanted["versions"]
