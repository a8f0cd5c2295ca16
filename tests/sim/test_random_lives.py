"""Whole lives of a job in which whatever may go wrong does, by chance: each must end as its script says, nothing twice and nothing lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from finetune_api.run import Stage

from tests.sim.kubelet import Ending
from tests.sim.scenario import JOB, Life, Meddling, make_job, verdict
from tests.sim.test_deletion import left_over
from tests.sim.test_faults import idle_writes
from tests.sim.test_histories import annotate, delete, strip_label, undisturbed

MAX_ATTEMPTS = 3
NEEDED_OF_A_JOB = ("pods", "jobs", "persistentvolumeclaims", "modelversions")
"""What is decided without having seen them would be made a second time."""
ENDINGS: tuple[Ending, ...] = ("ok", "crash", "crash", "crash", "preempted", "node-lost", "vanished", "invalid")


def touch(plural: str) -> Meddling:
    """A write that only the API server's own notes tell of, as an apply of what is there already."""

    def write(life: Life) -> bool:
        for id, live in list(life.cluster.objects.items()):
            if id[0] == plural:
                noted = [{"manager": "kubectl", "time": str(life.cluster.revision)}]
                life.cluster.replace(id, {**live, "metadata": {**live["metadata"], "managedFields": noted}})
        return True

    return write


def make_again(life: Life) -> bool:
    """`kubectl delete` and `kubectl apply` of the job, one right after the other."""
    if JOB not in life.cluster.objects:
        return False
    life.cluster.delete(JOB)
    life.cluster.put_new("finetunejobs", make_job())
    return True


WRITERS: tuple[Callable[[], Meddling], ...] = tuple(
    lambda write=write, plural=plural: write(plural)  # type: ignore[misc]
    for write in (touch, touch, annotate)
    for plural in ("finetunejobs", "jobs", "pods", "persistentvolumeclaims", "modelversions", "deployments")
)
HANDS: tuple[Callable[[], Meddling], ...] = (
    lambda: delete("jobs"),
    lambda: delete("pods"),
    lambda: delete("deployments"),
    lambda: delete("services"),
    lambda: strip_label("jobs", "demo"),
    lambda: strip_label("deployments"),
    lambda: strip_label("services"),
)


def disturbed(seed: int, **rest: Any) -> Life:
    """A life in which news and answers are late or lost, requests fail, kinds cannot be listed, others write, and the operator is killed:
    what of it, the seed says."""
    draw = random.Random(seed)
    rival = draw.random() < 0.2
    return Life(
        seed=seed,
        crash_after=draw.choice([None, draw.randrange(1, 24)]),
        # a leader that was replaced has no time left to miss much
        lose=0.0 if rival else draw.choice([0.0, 0.0, 0.3]),
        late=draw.choice([0.0, 0.5, 0.8]),
        slow=draw.choice([0.0, 0.5, 0.9]),
        faults=draw.choice([0.0, 0.0, 0.1]),
        resyncs=draw.choice([0.0, 0.05]),
        closed=draw.choice([frozenset(), frozenset(), *(frozenset({kind}) for kind in NEEDED_OF_A_JOB)]),
        rival=rival,
        haste=draw.choice([0.1, 0.5]),
        **rest,
    )


def make_script(seed: int) -> dict[Stage, list[Ending]]:
    draw = random.Random(seed)
    return {stage: [draw.choice(ENDINGS) for _ in range(draw.choice([0, 1, 2, 6]))] for stage in Stage if draw.random() < 0.5}


def what_runs(script: dict[Stage, list[Ending]]) -> tuple[list[tuple[Stage, Ending]], bool]:
    """Which pods run and how they end, and whether the job succeeds: a stage that is done never runs again, a crash uses up an attempt,
    an interruption does not, and a final error is final."""
    ran: list[tuple[Stage, Ending]] = []
    for stage in Stage:
        crashes = 0
        for ending in (*script.get(stage, ()), "ok"):
            ran.append((stage, ending))
            crashes += ending == "crash"
            if ending == "invalid" or crashes == MAX_ATTEMPTS:
                return ran, False
            if ending in ("ok", "vanished"):
                break
    return ran, True


def asked_in_calm(life: Life) -> int:
    """What an operator that starts anew asks to be changed once all is done."""
    life.faults = life.slow = 0.0
    return idle_writes(life.cluster)


@pytest.mark.parametrize("seed", range(60))
def test_every_life_ends_as_its_script_says(seed: int) -> None:
    script, draw = make_script(seed), random.Random(seed)
    ran, succeeds = what_runs(script)
    life = disturbed(seed, script=script, meddling=[draw.choice(WRITERS)() for _ in range(draw.choice([0, 8]))])
    life.submit()
    asyncio.run(life.run())
    assert life.kubelet.ran == ran
    assert life.status()["phase"] == ("Succeeded" if succeeds else "Failed")
    assert [record["counted"] for record in life.status().get("attempts", [])].count(True) == len(
        [ending for _, ending in ran if ending in ("crash", "invalid")]
    )
    if succeeds:
        assert {**verdict(life), "attempts": []} == undisturbed()
    else:
        assert verdict(life)["versions"] == {}
    assert asked_in_calm(life) == 0


@pytest.mark.parametrize("seed", range(30))
def test_whatever_people_take_away_is_there_in_the_end(seed: int) -> None:
    draw = random.Random(seed)
    meddling = [draw.choice([*HANDS, lambda: make_again, draw.choice(WRITERS)])() for _ in range(draw.choice([1, 3]))]
    life = disturbed(seed, meddling=meddling)
    life.submit()
    asyncio.run(life.run())
    assert life.status()["phase"] == "Succeeded"
    assert verdict(life)["versions"] == {"bot-v1": "Production"}
    assert verdict(life)["children"] == [("deployments", "bot-v1"), ("services", "bot-v1")]
    assert asked_in_calm(life) == 0


def is_handed_over(life: Life) -> bool:
    """The job let go of its claim for a version that was never made: files that are proven are rather left than lost."""
    (claim,) = [live for id, live in life.cluster.objects.items() if id[0] == "persistentvolumeclaims" and id[2] != "base"]
    return len(left_over(life)) == 1 and not claim["metadata"].get("ownerReferences")


@pytest.mark.parametrize("seed", range(20))
def test_of_a_job_that_is_deleted_at_any_moment_nothing_is_left(seed: int) -> None:
    life = disturbed(seed, meddling=[delete("finetunejobs")])
    life.haste = random.Random(seed).choice([0.02, 0.05, 0.2])
    life.submit()

    async def to_its_end() -> None:
        await life.run(until=lambda cluster: JOB not in cluster.objects)
        await life.run()

    asyncio.run(to_its_end())
    published = any(id[0] == "modelversions" for id in life.cluster.objects)
    assert published or left_over(life) == [] or is_handed_over(life), left_over(life)
    assert asked_in_calm(life) == 0
