"""Objects of every watched kind that the API server accepts and nobody here made: no pass and no LIST stumbles over them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from finetune_operator.core import names
from finetune_operator.core.names import Object
from finetune_operator.core.settings import Settings
from finetune_operator.engine.store import MODEL, Key, Store
from finetune_operator.engine.world import Lookups, World
from finetune_operator.kube.client import Client
from finetune_operator.kube.resources import WATCHED
from finetune_operator.planners import PLANNERS
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.cluster import Cluster
from tests.sim.scenario import make_job
from tests.sim.test_rollout import PUBLISH

NOW = datetime(2026, 1, 1, 1, tzinfo=UTC)
JOB = Key(names.FINETUNEJOB, "team", "demo")
MOMENT = "2026-01-01T00:00:00Z"
OWNER = {"apiVersion": names.API_VERSION, "kind": names.FINETUNEJOB, "name": "demo", "uid": "job-uid", "controller": True}
STAGE_JOB = {"apiVersion": "batch/v1", "kind": "Job", "name": "demo-prepare-1", "uid": "stage-job-uid", "controller": True}
VERSION = {"apiVersion": names.API_VERSION, "kind": names.MODELVERSION, "name": "bot-v1", "uid": "version-uid"}
LABELS = {
    names.MANAGED_BY: names.MANAGED_BY_VALUE,
    names.JOB_LABEL: "demo",
    names.JOB_UID_LABEL: "job-uid",
    names.MODEL_LABEL: "bot",
    names.VERSION_LABEL: "1",
    names.STAGE_LABEL: "prepare",
    names.ATTEMPT_LABEL: "1",
    names.ARTIFACTS_LABEL: "Delete",
    "batch.kubernetes.io/job-completion-index": "0",
}
CONDITION = {"type": "Ready", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": MOMENT, "observedGeneration": 1}
TERMINATED = {"exitCode": 1, "reason": "Error", "message": "{}", "finishedAt": MOMENT}
CONTAINER = {
    "name": "trainer",
    "ready": True,
    "restartCount": 1,
    "image": "i",
    "state": {"waiting": {"reason": "ErrImagePull", "message": "m"}, "running": {"startedAt": MOMENT}, "terminated": TERMINATED},
    "lastState": {"terminated": TERMINATED},
}
TEMPLATE = {"metadata": {"labels": LABELS}, "spec": {"containers": [{"name": "server", "image": "i", "args": ["a"]}]}}
REFERENCE = {"name": "bot-v1", "namespace": "team", "group": "", "kind": "Service", "port": 80, "weight": 1}
PARENT = {"name": "gw", "namespace": "infra", "sectionName": "s"}


def conditions(*types: str) -> list[Object]:
    return [{**CONDITION, "type": type} for type in types]


EXAMPLES: dict[str, Object] = {
    "FineTuneJob": {"spec": make_job()["spec"], "status": {"conditions": conditions("Succeeded"), "phase": "x"}},
    "ModelVersion": {"spec": {"model": "bot", "version": 7, "artifacts": [], "lineage": {"jobRef": "demo"}}, "status": {"stage": "Canary"}},
    "Job": {
        "spec": {"suspend": True, "completions": 1, "parallelism": 1, "template": TEMPLATE},
        "status": {
            "conditions": conditions("Complete", "Failed", "FailureTarget"),
            "active": 1,
            "completionTime": MOMENT,
            "startTime": MOMENT,
        },
    },
    "Pod": {
        "spec": {"nodeName": "n", "containers": [{"name": "trainer", "image": "i"}]},
        "status": {
            "phase": "Pending",
            "reason": "Evicted",
            "message": "m",
            "startTime": MOMENT,
            "conditions": conditions("PodScheduled", "DisruptionTarget", "Ready"),
            "containerStatuses": [CONTAINER],
            "initContainerStatuses": [CONTAINER],
        },
    },
    "PersistentVolumeClaim": {
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "s", "resources": {"requests": {"storage": "1Gi"}}},
        "status": {
            "phase": "Bound",
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Gi"},
            "conditions": conditions("Resizing"),
        },
    },
    "Service": {"spec": {"ports": [{"name": "http", "port": 80}], "selector": LABELS}, "status": {"conditions": conditions("x")}},
    "Deployment": {
        "spec": {"replicas": 1, "selector": {"matchLabels": LABELS}, "template": TEMPLATE},
        "status": {
            "observedGeneration": 1,
            "replicas": 1,
            "updatedReplicas": 1,
            "readyReplicas": 1,
            "availableReplicas": 1,
            "conditions": conditions("Progressing", "Available", "ReplicaFailure"),
        },
    },
    "PodDisruptionBudget": {"spec": {"minAvailable": 1}, "status": {"currentHealthy": 1}},
    "HorizontalPodAutoscaler": {"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "bot-v1"}, "minReplicas": 1, "maxReplicas": 2}},
    "HTTPRoute": {
        "spec": {
            "parentRefs": [PARENT],
            "hostnames": ["h"],
            "rules": [
                {"name": "r", "matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "filters": [], "backendRefs": [REFERENCE]}
            ],
        },
        "status": {"parents": [{"parentRef": PARENT, "controllerName": "c", "conditions": conditions("Accepted", "ResolvedRefs")}]},
    },
    "Event": {
        "involvedObject": {"kind": "Job", "name": "demo-prepare-1", "namespace": "team", "uid": "stage-job-uid"},
        "reason": "FailedCreate",
        "message": "m",
        "firstTimestamp": MOMENT,
        "lastTimestamp": MOMENT,
        "eventTime": MOMENT,
        "count": 1,
        "series": {"count": 2, "lastObservedTime": MOMENT},
    },
}
"""By kind an object with every member that is looked at."""

REQUIRED = frozenset(
    {
        "metadata",
        "spec",
        "type",
        "kind",
        "name",
        "uid",
        "apiVersion",
        "parentRef",
        "template",
        "controllerName",
        "resourceVersion",
        "containers",
    }
)
"""Members that the API server's own validation demands wherever they stand. `spec` of a Pod or a Route is one."""
OPTIONAL_NAME = frozenset({"involvedObject", "rules", "ports"})
OF_A_VERSION = frozenset({"model", "version", "artifacts", "lineage"})
FIXED = frozenset({"apiVersion", "namespace", "uid", "resourceVersion", "type", "controller"})
STATUSES = ("True", "False", "Unknown")
WORDS = ("", "x", "-1", "²", "٣", "9" * 30, "demo-prepare-1", "demo-prepare-²", "bot-v1", "bot-v", "1.5", "a\nb")


@st.composite
def odd(draw: st.DrawFn, value: Any, name: str = "", within: str = "") -> Any:
    """A variant of a value of the same type: members are missing, lists shorter or longer, texts and numbers strange."""
    if isinstance(value, dict):
        must = value.keys() & OF_A_VERSION if "artifacts" in value else set()
        return {key: draw(odd(item, key, name)) for key, item in value.items() if draw(st.booleans()) or key in must or _must(key, name)}
    if isinstance(value, list):
        least = 1 if name == "containers" else 0
        return [draw(odd(item, "", name)) for item in value for _ in range(draw(st.integers(least, 2)))]
    if name in FIXED or value is None:
        return value
    if name.endswith(("Time", "Timestamp", "At")):
        return draw(st.sampled_from([value, None]))
    if name == "status":
        return draw(st.sampled_from(STATUSES))
    if isinstance(value, bool):
        return draw(st.booleans())
    if isinstance(value, int):
        return draw(st.sampled_from([value, 0, -1, 2**31 - 1]))
    return draw(st.sampled_from([value, value, *WORDS]))


def _must(key: str, parent: str) -> bool:
    if key == "name":
        return parent not in OPTIONAL_NAME
    return key in REQUIRED or (key == "status" and parent in ("conditions", ""))


@st.composite
def objects(draw: st.DrawFn) -> Object:
    resource = draw(st.sampled_from([resource for resource in WATCHED if resource.kind in EXAMPLES]))
    labels = {key: draw(st.sampled_from([value, value, *WORDS])) for key, value in LABELS.items() if draw(st.integers(0, 5))}
    number = draw(st.integers(1, 3))
    own = draw(st.sampled_from([f"demo-prepare-{number}", f"bot-v{number}", "bot", "other"]))
    metadata = {
        "name": own if resource.kind not in (names.FINETUNEJOB, names.MODELVERSION) else f"{own}-x",
        "namespace": "team",
        "uid": draw(st.sampled_from([f"uid-{resource.kind}-{own}", "stage-job-uid"]))
        if resource.kind == "Job"
        else f"uid-{resource.kind}-{own}",
        "resourceVersion": str(draw(st.integers(1, 50))),
        "creationTimestamp": MOMENT,
        **({"generation": draw(st.integers(0, 3))} if draw(st.booleans()) else {}),
        **({"labels": {**labels, names.MANAGED_BY: names.MANAGED_BY_VALUE}} if draw(st.integers(0, 5)) else {}),
        **({"annotations": {"finetune-operator.io/steps": draw(st.sampled_from(WORDS))}} if draw(st.booleans()) else {}),
        **({"deletionTimestamp": MOMENT} if draw(st.integers(0, 5)) == 0 else {}),
        **({"ownerReferences": draw(st.lists(st.sampled_from([OWNER, STAGE_JOB, VERSION]), max_size=2))} if draw(st.booleans()) else {}),
    }
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, **draw(odd(EXAMPLES[resource.kind]))}


def test_every_watched_kind_has_its_example() -> None:
    assert {resource.kind for resource in WATCHED} <= set(EXAMPLES)


@given(st.lists(objects(), max_size=8))
def test_nothing_that_is_listed_stops_the_store(found: list[Object]) -> None:
    store = Store()
    for live in found:
        store.put(live)
    for live in found:
        store.deleted(live)
    assert store.unreadable == 0


def make_world(found: list[Object], status: Object) -> World:
    cluster, store = Cluster(), Store()
    job = make_job(publish=PUBLISH)
    own = {"name": "demo", "namespace": "team", "uid": "job-uid", "resourceVersion": "60", "generation": 1, "creationTimestamp": MOMENT}
    store.put({**job, "apiVersion": names.API_VERSION, "kind": names.FINETUNEJOB, "metadata": own, "status": status})
    artifact = {"name": "F16", "format": "GGUF", "uri": "pvc://data/x.gguf", "sha256": "a" * 64, "bytes": 1}
    lineage = {"jobRef": "demo", "jobUid": "job-uid", "runDigest": "d" * 64, "baseModel": {"source": "pvc://base/model"}}
    spec = {"model": "bot", "version": 1, "artifacts": [artifact], "lineage": lineage, "rollout": PUBLISH["rollout"]}
    version = {
        "name": "bot-v1",
        "namespace": "team",
        "uid": "version-uid",
        "resourceVersion": "60",
        "generation": 1,
        "creationTimestamp": MOMENT,
    }
    store.put({"apiVersion": names.API_VERSION, "kind": names.MODELVERSION, "metadata": version, "spec": spec})
    for live in found:
        store.put(live)
    return World(store, Lookups(Client(cluster.send)), Settings())


STARTED = {"startTime": MOMENT, "attempt": {"stage": "prepare", "number": 1, "failures": 0}}


@pytest.mark.parametrize("status", [{}, STARTED], ids=["new", "started"])
@given(found=st.lists(objects(), max_size=6))
def test_no_pass_stumbles_over_them(found: list[Object], status: Object) -> None:
    world = make_world(found, status)
    for key in (JOB, Key(MODEL, "team", "bot")):
        assert asyncio.run(PLANNERS[key.kind](key, world, NOW)) is not None  # type: ignore[arg-type]
