"""Dry runs are few: an acceptance is believed for a while, a refusal for a minute, a failure of the API server not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from finetune_operator.engine.admission import Admission
from finetune_operator.engine.store import Key
from finetune_operator.kube.client import Client, Request
from finetune_operator.kube.errors import Retryable, Unreachable

from tests.sim.cluster import Cluster, Refusal

KEY = Key("FineTuneJob", "team", "demo")


def pods(memory: str = "1Gi") -> dict[str, Any]:
    return {
        stage: {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"demo-{stage}-1", "namespace": "team"}, "spec": {"memory": memory}}
        for stage in ("prepare", "train", "package")
    }


@dataclass
class Bench:
    refuses: dict[str, Refusal] = field(default_factory=dict)
    now: float = 0.0
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cluster = Cluster(admit=self._admit)
        self.admission = Admission(Client(self.cluster.send), lambda: self.now)

    def _admit(self, body: Any) -> None:
        stage = body["metadata"]["name"].split("-")[1]
        self.asked.append(stage)
        if stage in self.refuses:
            raise self.refuses[stage]

    async def refused(self, **spec: Any) -> dict[str, str]:
        return {stage: problem.reason.value for stage, problem in (await self.admission.refused(KEY, pods(**spec))).items()}


async def test_all_are_asked_once_and_believed_for_a_while() -> None:
    bench = Bench()
    for _ in range(3):
        assert await bench.refused() == {}
    assert bench.asked == ["prepare", "train", "package"]
    assert [id for id in bench.cluster.objects if id[0] == "pods"] == [], "something was made"
    bench.now = 601
    await bench.refused()
    assert len(bench.asked) == 6


async def test_other_pods_are_asked_for_at_once() -> None:
    bench = Bench({"prepare": Refusal(403, "Forbidden", "no")})
    assert await bench.refused() == {"prepare": "Forbidden"}
    bench.refuses = {}
    assert await bench.refused(memory="2Gi") == {}


async def test_all_refusals_are_told_and_one_dry_run_a_minute_asks_again() -> None:
    bench = Bench({"train": Refusal(403, "Forbidden", "no"), "package": Refusal(422, "Invalid", "odd")})
    for second in range(600):
        bench.now = float(second)
        assert await bench.refused() == {"train": "Forbidden", "package": "Invalid"}
    assert len(bench.asked) == 3 + 9
    assert set(bench.asked[3:]) == {"train"}
    del bench.refuses["train"]
    bench.now = 660
    assert await bench.refused() == {"package": "Invalid"}


async def test_a_strangers_pod_of_the_name_is_no_refusal() -> None:
    bench = Bench({"train": Refusal(409, "AlreadyExists", "there")})
    assert await bench.refused() == {}


async def test_a_failure_of_the_api_server_is_told_only_when_it_lasts() -> None:
    bench = Bench({"prepare": Refusal(500, "InternalError", "failed calling webhook")})
    for _ in range(3):
        with pytest.raises(Retryable):
            await bench.refused()
    assert await bench.refused() == {"prepare": "ApiError"}


async def test_too_many_requests_and_no_answer_are_never_told() -> None:
    bench = Bench({"prepare": Refusal(429, "TooManyRequests", "later")})
    for _ in range(9):
        with pytest.raises(Retryable):
            await bench.refused()

    def drop(request: Request) -> None:
        raise TimeoutError

    bench.cluster.before = drop
    for _ in range(9):
        with pytest.raises(Unreachable):
            await bench.refused()
