"""What Helm 4, Flux and Argo CD's kstatus make of every phase: their Go library asked about objects as the operator writes them."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from finetune_api.run import Stage

from hack.cluster.paths import cache_folder
from tests.api.client import Api
from tests.api.manifests import JOBS, VERSIONS, job, version
from tests.sim.scenario import JOB, make_job
from tests.sim.scenario import NAMESPACE as TEAM
from tests.sim.test_rollout import PUBLISH, RolloutLife

WANTED = {
    "Refused": {"Failed"},
    "Preparing": {"InProgress"},
    "Training": {"InProgress"},
    "Resuming": {"InProgress"},
    "Packaging": {"InProgress"},
    "Evaluating": {"InProgress"},
    "Publishing": {"InProgress"},
    "Suspended": {"Current", "InProgress"},  # InProgress: its pods are still saving
    "Succeeded": {"Current"},
    "Failed": {"Failed"},
    "Registered": {"InProgress"},
    "Canary": {"InProgress"},
    "Staging": {"InProgress"},
    "Production": {"Current", "InProgress"},  # InProgress: just promoted, the Gateway has not answered
    "Archived": {"Current", "InProgress"},  # InProgress: its pods are about to go
    "RolledBack": {"Current", "InProgress"},
}
"""Verdicts that an object may get in each phase or stage; each was seen, by the test."""

SETTLED = {
    "Suspended": "Current",
    "Succeeded": "Current",
    "Failed": "Failed",
    "Production": "Current",
    "Archived": "Current",
    "RolledBack": "Current",
}
"""The verdict once nothing moves any more: what `helm install --wait` would return on."""


@dataclass
class WatchedLife(RolloutLife):
    """Keeps each state of a job or version that differs from those before in what kstatus looks at."""

    seen: dict[str, Any] = field(default_factory=dict)

    def _check(self) -> None:
        super()._check()
        for id, live in self.cluster.objects.items():
            if id[0] in ("finetunejobs", "modelversions") and live.get("status"):
                self.seen.setdefault(_essence(live), copy.deepcopy(live))

    def set_spec(self, id: tuple[str, str, str], **members: Any) -> None:
        live = self.cluster.objects[id]
        self.cluster.replace(id, {**live, "spec": {**live["spec"], **members}})


def phase_of(live: Any) -> str:
    return str(live["status"].get("phase") or live["status"].get("stage") or "Pending")


def _essence(live: Any) -> str:
    """Phase, and the conditions that the library reads. Source: fluxcd/cli-utils pkg/kstatus/status/generic.go."""
    read = [(c["type"], c["status"]) for c in live["status"].get("conditions", []) if c["type"] in ("Reconciling", "Stalled", "Ready")]
    observed = live["status"].get("observedGeneration") == live["metadata"]["generation"]
    return json.dumps([live["kind"], phase_of(live), read, observed])


async def _two_versions_and_an_abort(life: WatchedLife) -> None:
    await life.run_both()
    spec = life.cluster.objects["modelversions", TEAM, "bot-v2"]["spec"]
    life.set_spec(("modelversions", TEAM, "bot-v2"), rollout={**spec["rollout"], "abort": True})
    await life.run()


async def _suspended_in_training(life: WatchedLife) -> None:
    life.submit(make_job(publish=PUBLISH))
    await life.run(until=lambda cluster: any(id[0] == "pods" and "-train-" in id[2] for id in cluster.objects))
    life.set_spec(JOB, suspend=True)
    await life.run()


async def _ended_by_bad_data(life: WatchedLife) -> None:
    life.submit()
    await life.run()


async def _refused(life: WatchedLife) -> None:
    life.submit(make_job(training={"args": {"learning_rat": 1}}))
    await life.run()


HISTORIES: dict[str, Any] = {
    "two versions, the second aborted": (_two_versions_and_an_abort, {Stage.TRAIN: ["crash"]}),
    "suspended in training": (_suspended_in_training, {}),
    "ended by bad data": (_ended_by_bad_data, {Stage.PREPARE: ["invalid"]}),
    "refused": (_refused, {}),
}


@cache
def lived(history: str) -> WatchedLife:
    act, script = HISTORIES[history]
    life = WatchedLife(script=script)
    asyncio.run(act(life))
    return life


def verdict(live: Any) -> str:
    program = cache_folder(os.environ) / "bin" / "kstatus"
    answer = subprocess.run([program], input=json.dumps(live), capture_output=True, text=True, check=True).stdout
    return str(json.loads(answer)["status"])


@pytest.mark.parametrize("history", HISTORIES)
def test_every_phase_gets_a_verdict_that_is_true(history: str) -> None:
    for live in lived(history).seen.values():
        assert verdict(live) in WANTED[phase_of(live)], json.dumps(live["status"], indent=1)


@pytest.mark.parametrize("history", HISTORIES)
def test_what_has_come_to_rest_is_current_or_failed(history: str) -> None:
    ends = [live for id, live in lived(history).cluster.objects.items() if id[0] in ("finetunejobs", "modelversions")]
    assert ends
    for live in ends:
        assert verdict(live) == SETTLED.get(phase_of(live), "Failed"), json.dumps(live["status"], indent=1)


def test_every_phase_and_verdict_was_seen() -> None:
    seen = defaultdict(set)
    for history in HISTORIES:
        for live in lived(history).seen.values():
            seen[phase_of(live)].add(verdict(live))
    assert dict(seen) == WANTED


@pytest.mark.parametrize(("path", "make"), [(JOBS, job), (VERSIONS, version)])
def test_an_object_that_no_operator_has_seen_is_in_progress(api: Api, path: str, make: Any) -> None:
    """Without any status the library would take it for finished, and `helm install --wait` would return at once."""
    assert verdict(api.create(path, make()).body) == "InProgress"
