"""What is made for a version, as golden files. `make golden` writes them; the diff is the review."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api.sections.rollout import GatewayAPI
from finetune_operator.core.names import Object
from finetune_operator.core.settings import NamespacePolicy, Settings
from finetune_operator.modelversion.checks import first_finding, repository_of
from finetune_operator.modelversion.observed import Observed, deployment_fact, format_notes, parse_steps, pod_fact, route_fact
from finetune_operator.modelversion.resources.deployment import claim_label, make_deployment, make_template, owners_of_server
from finetune_operator.modelversion.resources.disruption_budget import make_disruption_budget
from finetune_operator.modelversion.resources.http_route import make_http_route
from finetune_operator.modelversion.resources.service import make_service
from finetune_operator.modelversion.versions import Version, duration_of, read_versions

from tests.unit.operator.modelversion.world import SHA, model_version

GOLDEN = Path(__file__).resolve().parents[3] / "golden"


def version(number: int = 1, serving: Object | None = None, status: Object | None = None) -> Version:
    body = model_version(number)
    body["spec"]["serving"] |= serving or {}
    body["metadata"]["labels"] = {"app.kubernetes.io/instance": "argo-app"}
    body["metadata"]["annotations"] = {"argocd.argoproj.io/tracking-id": "x"}
    if status:
        body["status"] = status
    return read_versions([body])[0][0]


def deployment(item: Version, *, one_node: bool) -> Object:
    assert item.artifact
    template = make_template(item, item.artifact, "finetune-operator/server:dev", one_node=one_node, settings=Settings())
    return make_deployment(item, template, owners_of_server(item, None))


def route() -> Object:
    live = [version(1, status={"stage": "Production", "stepIndex": 2}), version(2, status={"stage": "Canary", "stepIndex": 0})]
    gateway = GatewayAPI.model_validate({"gateway": {"name": "gw", "namespace": "infra"}, "hostnames": ["bot.example"]})
    return make_http_route(live, {"bot-v1": 95, "bot-v2": 5}, gateway)


PLACED = {
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "team", "operator": "Equal", "value": "ml", "effect": "NoSchedule"}, {"operator": "Exists"}],
    "affinity": {
        "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []},
        "podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {"matchLabels": {"a": "b"}}, "topologyKey": "zone"}]
        },
    },
    "priorityClassName": "serving",
    "runtimeClassName": "nvidia",
    "imagePullSecrets": [{"name": "regcred"}],
    "resources": {"cpu": "1", "cpuLimit": "4", "memory": "2Gi"},
}

MADE: dict[str, Callable[[], Object]] = {
    "mver_deployment_one_node": lambda: deployment(version(), one_node=True),
    "mver_deployment_shared_gpu": lambda: deployment(
        version(serving={"replicas": 3, "resources": {"gpus": 1}, "llamaCpp": {"parallel": 8}}), one_node=False
    ),
    "mver_deployment_placed": lambda: deployment(version(serving=PLACED), one_node=True),
    "mver_disruption_budget": lambda: make_disruption_budget(version()),
    "mver_service": lambda: make_service(version(), owners_of_server(version(), None)),
    "mver_http_route": route,
}


@pytest.mark.parametrize("name", MADE)
def test_made_object_is_the_golden_one(name: str) -> None:
    path, made = GOLDEN / f"{name}.yaml", MADE[name]()
    if os.environ.get("FINETUNE_WRITE_GOLDEN"):
        path.write_text(yaml.safe_dump(made, sort_keys=False))
    assert made == yaml.safe_load(path.read_text())


@pytest.mark.parametrize("name", MADE)
def test_nothing_of_argo_cd_is_copied(name: str) -> None:
    assert "argo" not in yaml.safe_dump(MADE[name]())


def test_drain_fits_into_the_grace_period() -> None:
    """The pod answers until the preStop sleep is over, and is not killed before."""
    pod = deployment(version(), one_node=True)["spec"]["template"]["spec"]
    assert pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"] < pod["terminationGracePeriodSeconds"]


def test_long_claim_names_become_labels() -> None:
    assert claim_label("x" * 63) == "x" * 63
    assert len(claim_label("x" * 64)) == 32
    assert claim_label("x" * 64) != claim_label("x" * 65)


@pytest.mark.parametrize(("text", "seconds"), [("0s", 0), ("10m", 600), ("1h30m", 5400), ("1500ms", 1.5), ("1h1m1s1ms", 3661.001)])
def test_duration(text: str, seconds: float) -> None:
    assert duration_of(text).total_seconds() == seconds


@pytest.mark.parametrize(
    ("image", "repository"),
    [
        ("server", "server"),
        ("server:1", "server"),
        ("host:5000/a/server", "host:5000/a/server"),
        ("host:5000/a/server:1", "host:5000/a/server"),
        ("host:5000/a/server@sha256:ab", "host:5000/a/server"),
    ],
)
def test_repository_of(image: str, repository: str) -> None:
    assert repository_of(image) == repository


@pytest.mark.parametrize(
    ("image", "prefixes", "allowed"),
    [
        ("finetune-operator/server:older", (), True),
        ("finetune-operator/serverless:1", (), False),
        ("elsewhere/server:1", (), False),
        ("elsewhere/server:1", ("elsewhere/",), True),
        ("finetune-operator/server.evil/x:1", (), False),
    ],
)
def test_image_policy(image: str, prefixes: tuple[str, ...], allowed: bool) -> None:
    settings = Settings(policies={"*": NamespacePolicy(images=prefixes)})
    assert (first_finding(version(serving={"image": image}), Observed(), settings) is None) is allowed


@pytest.mark.parametrize("path", ["", "/", "a/../b", "../b", "a/..", "a//b", "./a", "a/."])
def test_artifact_paths_that_are_not_plain_are_refused(path: str) -> None:
    body = model_version(1)
    body["spec"]["artifacts"][1]["uri"] = f"pvc://files/{path}"
    read, unreadable = read_versions([body])
    assert unreadable or first_finding(read[0], Observed(), Settings())


@pytest.mark.parametrize(
    ("available", "updated", "observed", "ready", "serving"),
    [
        (2, 2, 3, True, True),
        (1, 2, 3, False, True),
        (2, 1, 3, False, True),
        (2, 2, 2, False, True),
        (0, 2, 3, False, False),
    ],
)
def test_deployment_fact(available: int, updated: int, observed: int, ready: bool, serving: bool) -> None:
    status = {"observedGeneration": observed, "replicas": 2, "updatedReplicas": updated, "availableReplicas": available}
    body = deployment(version(serving={"replicas": 2}), one_node=True) | {"status": status}
    body["metadata"] |= {"uid": "u", "generation": 3}
    fact = deployment_fact(body)
    assert (fact.ready, fact.serving, fact.image) == (ready, serving, "finetune-operator/server:dev")


def test_deployment_that_still_has_pods_of_another_template_is_not_ready() -> None:
    status = {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 1, "availableReplicas": 1}
    body = deployment(version(), one_node=True) | {"status": status}
    body["metadata"] |= {"uid": "u", "generation": 1}
    assert not deployment_fact(body).ready


def test_pod_fact_of_an_ended_container() -> None:
    ended = {"exitCode": 78, "message": "not served"}
    containers = [{"restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": ended}}]
    labels = {"finetune-operator.io/model": "bot", "finetune-operator.io/version": "3"}
    fact = pod_fact({"metadata": {"name": "p", "labels": labels}, "status": {"containerStatuses": containers}})
    assert (fact.version, fact.ready, fact.restarts, fact.last_exit_code, fact.last_message) == ("bot-v3", False, 1, 78, "not served")
    assert fact.waiting == "CrashLoopBackOff"


def parent(generation: int, **statuses: str) -> Object:
    conditions = [{"type": type, "status": status, "reason": "R", "observedGeneration": generation} for type, status in statuses.items()]
    return {"parentRef": {"name": "gw"}, "conditions": conditions}


@pytest.mark.parametrize(
    ("parents", "accepted", "generation"),
    [
        ([parent(4, Accepted="True", ResolvedRefs="True")], True, 4),
        ([parent(3, Accepted="True", ResolvedRefs="True")], True, 3),
        ([parent(4, Accepted="True", ResolvedRefs="False")], False, 4),
        ([parent(4, Accepted="False", ResolvedRefs="True")], False, 4),
        ([parent(4, Accepted="True")], False, 0),
    ],
)
def test_route_fact(parents: list[Any], accepted: bool, generation: int) -> None:
    body = route() | {"status": {"parents": parents}}
    body["metadata"] |= {"uid": "u", "generation": 4}
    fact = route_fact(body)
    assert fact.weights == {"bot-v1": 95, "bot-v2": 5}
    assert fact.steps == {"bot-v1": 2, "bot-v2": 0}
    found = fact.parent("gw", "team")
    assert found is not None
    assert (found.accepted, found.generation) == (accepted, generation)


def test_steps_annotation_is_read_leniently() -> None:
    assert parse_steps(format_notes({"bot-v1": 2, "bot-v10": 0})) == {"bot-v1": 2, "bot-v10": 0}
    assert parse_steps("bot-v1=2,nonsense,bot-v2=x,=3,bot-v3=-1") == {"bot-v1": 2}


def test_served_artifact_is_the_one_named_else_the_first_gguf() -> None:
    body = model_version(1)
    body["spec"]["artifacts"].append({"name": "F16", "format": "GGUF", "uri": "pvc://c/f16.gguf", "sha256": SHA, "bytes": 1})
    chosen = []
    for wanted in ("F16", "Q8_0", None):
        body["spec"]["serving"]["artifact"] = wanted
        artifact = read_versions([body])[0][0].artifact
        chosen.append(artifact and artifact.name)
    assert chosen == ["F16", "Q8_0", "Q8_0"]
