"""A job's whole life in the simulated cluster, with what may go wrong on the way."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

from finetune_operator.core.names import Object
from finetune_operator.kube.client import Request

from tests.sim.cluster import Cluster
from tests.sim.kubelet import Ending, Kubelet
from tests.sim.operator_process import OperatorProcess

NAMESPACE = "team"
JOB = ("finetunejobs", NAMESPACE, "demo")


class Crash(BaseException):
    """The operator is killed: nothing of it runs on, whatever it had in memory is gone."""


def make_job(name: str = "demo", **spec: Any) -> Object:
    wanted = {
        "model": {"source": "pvc://base/model"},
        "datasets": [{"name": "data", "source": "pvc://base/data.jsonl"}],
        "resources": {"gpusPerNode": 0},
        "export": {"gguf": ["F16"]},
        "storage": {"persistentVolumeClaim": {"size": "1Gi"}},
        "publish": {"model": "bot"},
    }
    return {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": {**wanted, **spec}}


def make_cluster() -> Cluster:
    cluster = Cluster()
    cluster.put_new(
        "persistentvolumeclaims", {"metadata": {"name": "base", "namespace": NAMESPACE}, "spec": {}, "status": {"phase": "Bound"}}
    )
    return cluster


Meddling = Callable[["Life"], bool]
"""What somebody else does once, at a moment that the seed chooses; False where there was nothing to do it to yet."""


@dataclass
class Life:
    """Runs operator and cluster by turns, in an order that the seed chooses, until nothing moves and nothing is due soon.

    `late`: how often watch events are held up. `slow`: how often the world goes on while an answer is on its way. `faults`: how often a
    request is lost, or its answer is. `resyncs`: how often the operator compares all it knows. `meddling` is done in its order. With
    `rival` a second operator works on after another took over from it, as one does whose Lease ran out while it was paused. `closed`
    are kinds that may not be listed at first, until nothing else is left to do.
    """

    seed: int = 0
    script: dict[Any, list[Ending]] = field(default_factory=dict)
    crash_after: int | None = None
    lose: float = 0.0
    late: float = 0.0
    slow: float = 0.0
    faults: float = 0.0
    resyncs: float = 0.0
    closed: frozenset[str] = frozenset()
    meddling: list[Meddling] = field(default_factory=list)
    haste: float = 0.1
    """The chance in each turn that the next meddling is done, once it can be."""
    rival: bool = False
    cluster: Cluster = field(default_factory=make_cluster)
    crashes: int = 0
    ends: dict[str, str] = field(default_factory=dict)
    """Status of condition Succeeded by uid, once it was not Unknown any more."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self._rival: OperatorProcess | None = None
        self.kubelet = Kubelet(self.cluster, self.rng, {stage: list(endings) for stage, endings in self.script.items()})
        self.cluster.closed = set(self.closed)
        self._processes: list[OperatorProcess] = []
        self._is_comparing = False
        self.cluster.before, self.cluster.after, self.cluster.meanwhile = self._lose_request, self._lose_answer, self._go_on

    def _lose_request(self, request: Request) -> None:
        self._fail_at_times(request)

    def _lose_answer(self, request: Request, writes: int) -> None:
        if writes and len(self.cluster.writes) == self.crash_after and not self.crashes:
            self.crashes += 1
            raise Crash
        self._fail_at_times(request)

    def _fail_at_times(self, request: Request) -> None:
        """Comparing waits such failures out in real time, so it is left alone."""
        if self.faults and not self._is_comparing and self.rng.random() < self.faults:
            raise self.rng.choice([TimeoutError("slow"), ConnectionResetError("reset")])

    def _go_on(self) -> None:
        """While an answer is on its way. What is lost while all is compared would be found by the next comparison only."""
        if self._is_comparing and self.lose:
            return
        if self.slow and self.rng.random() < self.slow:
            news = [process.hear for process in self._processes]
            self.rng.choice([self.kubelet.step, lambda: self._meddle(self.haste), *news])()

    def submit(self, job: Object | None = None) -> None:
        self.cluster.put_new("finetunejobs", job or make_job())

    async def run(self, until: Callable[[Cluster], bool] | None = None, steps: int = 3000) -> OperatorProcess:
        operator = await self._start()
        for _ in range(steps):
            self._check()
            operator.check_view()
            if until is not None and until(self.cluster):
                return operator
            if self._meddle(self.haste):
                continue
            try:
                moved = await self._turn(operator)
            except Crash:
                operator = await self._start()
                continue
            if not moved and not self._meddle(0.5) and not await self._advance(operator) and not self._meddle(1.0):
                self._check_rest(operator)
                return operator
        raise AssertionError(f"no end after {steps} steps at {self.cluster.now}")

    def _check(self) -> None:
        """What must hold at every moment, whatever went wrong before."""
        assert self.kubelet.most_live <= 1, "two attempts were alive at once"
        for id, live in self.cluster.objects.items():
            if id[0] == "finetunejobs":
                self._check_end(live)
        in_production = [id[2] for id, live in self.cluster.objects.items() if (live.get("status") or {}).get("stage") == "Production"]
        assert len(in_production) <= 1, f"{in_production} are in production at once"

    def _check_rest(self, operator: OperatorProcess) -> None:
        """Nothing moves any more: what the operator believes is what is."""
        operator.check_view()
        if not operator.deaf:
            operator.check_sees_all()

    def _check_end(self, job: Object) -> None:
        uid = job["metadata"]["uid"]
        conditions = (job.get("status") or {}).get("conditions", [])
        ended = next((c["status"] for c in conditions if c["type"] == "Succeeded" and c["status"] != "Unknown"), None)
        assert uid not in self.ends or self.ends[uid] == ended, "a terminal job left its end"
        if ended:
            self.ends[uid] = ended

    def _meddle(self, chance: float) -> bool:
        """Whether somebody else did something in this turn."""
        if not self.meddling or self.rng.random() >= chance or not self.meddling[0](self):
            return False
        del self.meddling[0]
        return True

    async def _start(self) -> OperatorProcess:
        while True:
            self._rival = OperatorProcess(self.cluster, self.rng, self.lose, late=max(self.late, 0.5)) if self.rival else None
            operator = OperatorProcess(self.cluster, self.rng, self.lose, late=self.late)
            each = [process for process in (self._rival, operator) if process is not None]
            self.cluster.watch = partial(_tell, each)
            self._processes = each
            try:
                for process in each:
                    await self._compare(process.start)
            except Crash:
                continue
            return operator

    async def _compare(self, compare: Callable[[], Awaitable[None]]) -> None:
        self._is_comparing = True
        await compare()
        self._is_comparing = False

    async def _turn(self, operator: OperatorProcess) -> bool:
        if self._rival is not None and self.rng.random() < 0.3 and (await self._rival.one_pass() or self._rival.hear()):
            return True
        if self.resyncs and self.rng.random() < self.resyncs:
            await self._compare(operator.resync)
        if operator.late and self.rng.random() < 0.3 and operator.hear():
            return True
        if self.rng.random() < 0.5:
            return await operator.one_pass() or self.kubelet.step() or operator.hear()
        return self.kubelet.step() or await operator.one_pass() or operator.hear()

    async def _advance(self, operator: OperatorProcess) -> bool:
        """Time goes on to the next thing that is due, losses are found by the resync. False where nothing is due within a day."""
        if self.cluster.closed:
            await self._open()
            return True
        if self.lose:
            await self._compare(operator.resync)
            if operator.queue.is_ready():
                return True
        if self.kubelet.free_lost_pods():
            return True
        due = min((moment for moment in (operator.due(), self.kubelet.due()) if moment), default=None)
        if due is None or due - self.cluster.now > timedelta(days=1):
            return False
        self.cluster.now = max(due, self.cluster.now + timedelta(seconds=1))
        return True

    async def _open(self) -> None:
        assert not self.cluster.asked, f"{self.cluster.asked} without having seen {self.cluster.closed}"
        self.cluster.closed.clear()
        for process in self._processes:
            await self._compare(process.resync)

    def status(self, id: tuple[str, str, str] = JOB) -> Object:
        status: Object = self.cluster.objects[id].get("status") or {}
        return status

    def condition(self, type: str, id: tuple[str, str, str] = JOB) -> Object:
        return next(condition for condition in self.status(id)["conditions"] if condition["type"] == type)


def _tell(operators: list[OperatorProcess], type: str, live: Object) -> None:
    for operator in operators:
        operator.seen(type, live)


def verdict(life: Life) -> Object:
    """What must not depend on faults: conditions without times and words, numbers of attempts, what was registered."""
    objects = life.cluster.objects
    return {
        "conditions": {c["type"]: (c["status"], c["reason"]) for c in life.status()["conditions"]},
        "phase": life.status()["phase"],
        "attempts": [(a["stage"], a["number"], a["reason"]) for a in life.status().get("attempts", [])],
        "artifacts": life.status().get("artifacts"),
        "version": life.status().get("modelVersionRef"),
        "versions": {id[2]: (live.get("status") or {}).get("stage") for id, live in objects.items() if id[0] == "modelversions"},
        "children": sorted(id[:1] + id[2:] for id in objects if id[0] in ("deployments", "services", "httproutes")),
    }
