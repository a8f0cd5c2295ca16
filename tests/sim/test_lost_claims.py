"""Claims that are lost and come back, empty or with their files, at any moment of a run."""

from __future__ import annotations

import asyncio
import copy
import random
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from finetune_api.answer import StageResult
from finetune_api.outcome import ExitCode
from finetune_api.run import Stage
from finetune_operator.core import names
from finetune_operator.core.names import Object
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.cluster import Id
from tests.sim.kubelet import Kubelet
from tests.sim.scenario import NAMESPACE, Life, make_job


@dataclass
class KeepingKubelet(Kubelet):
    """Its pods find on the claim what was left there, and leave what they do."""

    kept: dict[str, set[Stage]] = field(default_factory=lambda: defaultdict(set))
    """Stages whose results lie on a volume, by its name."""
    worked: list[Stage] = field(default_factory=list)
    """Stages that pods really worked on."""

    def _finish(self, id: Id) -> None:
        pod = self.cluster.objects[id]
        stage, kept = Stage(pod["metadata"]["labels"][names.STAGE_LABEL]), self.kept[self._volume(pod)]
        is_report = "--report" in pod["spec"]["containers"][0]["command"]
        earlier = set(list(Stage)[: list(Stage).index(stage)])
        if (is_report and stage not in kept) or (not is_report and not earlier <= kept):
            missing = StageResult(stage=stage, reason="StageMissing", message="nothing is there")
            self._set_phase(id, "Failed", ExitCode.STORAGE, missing.termination_message())
            return
        if stage not in kept:
            self.worked.append(stage)
        super()._finish(id)
        if self.cluster.objects[id]["status"]["phase"] == "Succeeded":
            kept.add(stage)

    def _volume(self, pod: Object) -> str:
        claims = [self.cluster.objects[claim] for claim in self._claims(pod) if claim[2] != "base"]
        return str(claims[0]["spec"].get("volumeName", ""))


@dataclass
class LifeWithClaims(Life):
    def __post_init__(self) -> None:
        super().__post_init__()
        self.kubelet = KeepingKubelet(self.cluster, self.rng)
        self.lost: Object | None = None
        self.was_told = False

    def has_a_waiting_pod(self) -> bool:
        """The scheduler tells of one whose claim is not there."""
        pods = [live for id, live in self.cluster.objects.items() if id[0] == "pods" and names.STAGE_LABEL in live["metadata"]["labels"]]
        return any(pod["status"]["phase"] == "Pending" for pod in pods)

    def claim(self) -> Id | None:
        return next((id for id in self.cluster.objects if id[0] == "persistentvolumeclaims" and id[2] != "base"), None)


def lose(life: Life) -> bool:
    """The claim is gone at once, and the pods that used it."""
    assert isinstance(life, LifeWithClaims)
    claim = life.claim()
    if claim is None or life.status().get("phase") in ("Succeeded", "Failed"):
        return True
    life.lost = copy.deepcopy(life.cluster.objects[claim])
    life.cluster.remove(claim)
    for id, pod in list(life.cluster.objects.items()):
        if id[0] == "pods" and pod["status"]["phase"] in ("Pending", "Running") and names.STAGE_LABEL in pod["metadata"]["labels"]:
            life.kubelet._set_phase(id, "Failed", ExitCode.TERMINATED, None, disruption="EvictionByEvictionAPI")
    return True


def bring_back(life: Life, *, empty: bool) -> bool:
    """By a person who reads that it is lost, or finds it missing when the run has ended."""
    assert isinstance(life, LifeWithClaims)
    if life.lost is None:
        return True
    told = any(condition["reason"] == "ClaimLost" for condition in life.status().get("conditions", [])) or life.has_a_waiting_pod()
    if life.claim() is None and not told and life.status().get("phase") != "Succeeded":
        return False
    life.was_told |= told
    if life.claim() is None:
        metadata = {**life.lost["metadata"], "namespace": NAMESPACE}
        for member in ("uid", "resourceVersion"):
            metadata.pop(member, None)
        volume = f"another-{random.Random(life.cluster.revision).random()}" if empty else life.lost["spec"].get("volumeName", "")
        life.cluster.put_new("persistentvolumeclaims", {"metadata": metadata, "spec": {**life.lost["spec"], "volumeName": volume}})
        life.cluster.set_status(("persistentvolumeclaims", NAMESPACE, metadata["name"]), {"phase": "Bound"})
    life.lost = None
    return True


def empty(life: Life) -> bool:
    return bring_back(life, empty=True)


def whole(life: Life) -> bool:
    return bring_back(life, empty=False)


def live_through(seed: int, returns: list[bool]) -> LifeWithClaims:
    life = LifeWithClaims(seed=seed, meddling=[deed for is_empty in returns for deed in (lose, empty if is_empty else whole)], haste=0.02)
    life.submit(make_job())
    asyncio.run(life.run(steps=6000))
    return life


@pytest.mark.parametrize("seed", range(12))
def test_a_claim_that_comes_back_with_its_files_costs_no_stage_twice(seed: int) -> None:
    life = live_through(seed, [False])
    assert life.status()["phase"] == "Succeeded"
    assert len(life.kubelet.worked) == len(set(life.kubelet.worked)) == 4
    assert not any(record["counted"] for record in life.status().get("attempts", []))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 1000))
def test_a_run_whose_claim_comes_back_empty_makes_anew_what_is_gone(seed: int) -> None:
    life = live_through(seed, [True])
    assert life.status()["phase"] == "Succeeded"
    (volume,) = [
        live["spec"].get("volumeName", "")
        for id, live in life.cluster.objects.items()
        if id[0] == "persistentvolumeclaims" and id[2] != "base"
    ]
    if life.was_told:
        assert life.kubelet.kept[volume] == set(Stage), "a result is registered whose files are not all there"
