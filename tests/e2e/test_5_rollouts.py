"""Versions in the hands of people: too large, on a Gateway that is not there, aborted, retired, scaled and edited by others."""

from __future__ import annotations

import copy
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from hack import demo
from tests.e2e import cluster
from tests.e2e.cluster import GROUP, OPERATOR_NAMESPACE, KubectlFailed, Object, condition, kubectl, wait
from tests.e2e.load import Load

STEPS = [{"name": "canary", "stage": "Canary", "weight": 5, "hold": "10m"}, {"name": "production", "stage": "Production"}]
SERVING = {"artifact": "Q8_0", "llamaCpp": {"contextLength": 256}, "resources": {"cpu": "20m", "memory": "400Mi"}, "keepPrevious": "30s"}
ANYWHERE = {
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"operator": "Exists"}],
    "imagePullSecrets": [{"name": "regcred"}],
}


def gateway(model: str, name: str = "gateway") -> Object:
    where = {"gateway": {"name": name, "namespace": "gateway-system"}, "hostnames": [f"{model}.example.com"]}
    return {"traffic": {"type": "GatewayAPI", "gatewayAPI": where}}


NO_TRAFFIC = {"traffic": {"type": "None"}}


@pytest.fixture(scope="module")
def versions(example: Object, namespace: str) -> Iterator[None]:
    """All versions of this module, applied while the operator is away, as Git does it."""
    made = cluster.get("modelversion", example["status"]["modelVersionRef"]["name"], namespace)

    def version(model: str, number: int, rollout: Object, **serving: Any) -> Object:
        lineage = copy.deepcopy(made["spec"]["lineage"]) | {"runDigest": str(number) * 64}
        lineage.pop("jobRef", None)
        spec = {"model": model, "version": number, "artifacts": made["spec"]["artifacts"], "lineage": lineage}
        spec |= {"serving": SERVING | serving, "rollout": rollout}
        return {
            "apiVersion": made["apiVersion"],
            "kind": "ModelVersion",
            "metadata": {"name": f"{model}-v{number}", "namespace": namespace},
            "spec": spec,
        }

    everything = [
        version("huge", 1, NO_TRAFFIC, resources={"cpu": 64, "memory": "400Mi"}),
        version("scale", 1, NO_TRAFFIC),
        version("nogw", 1, gateway("nogw", "gatway")),
        version("nogws", 1, gateway("nogws", "gatway") | {"steps": STEPS}),
        version("abort", 1, gateway("abort"), replicas=2),
        version("both", 1, gateway("both") | {"steps": STEPS}),
        version("both", 2, gateway("both") | {"steps": STEPS}),
        version("back", 1, gateway("back")),
        version("gone", 1, gateway("gone"), keepPrevious="0s"),
        version("unset", 1, NO_TRAFFIC, **ANYWHERE),
    ]
    names = [*(item["metadata"]["name"] for item in everything), "gone-v2"]
    scale_operator(0)
    try:
        cluster.apply(*everything)
    finally:
        scale_operator(2)
    yield
    kubectl("delete", "modelversions", *names, "-n", namespace, "--ignore-not-found", "--wait", "--timeout=120s", timeout_s=130)


def scale_operator(replicas: int) -> None:
    kubectl("scale", "deployment/finetune-operator", "-n", OPERATOR_NAMESPACE, f"--replicas={replicas}")
    kubectl("rollout", "status", "deployment/finetune-operator", "-n", OPERATOR_NAMESPACE, "--timeout=120s")
    pods = f"{GROUP}/none" if replicas else "app.kubernetes.io/component=operator"
    wait(lambda: not cluster.items("pods", OPERATOR_NAMESPACE, pods), "the operator's pods are gone", 60)


def in_stage(name: str, namespace: str, stage: str, timeout_s: float = 120) -> Object:
    def reached() -> Object | None:
        item = cluster.get("modelversion", name, namespace)
        return item if (item.get("status") or {}).get("stage") == stage else None

    return wait(reached, f"{name} in {stage}", timeout_s)


def answer(model: str, path: str = "/v1/models") -> int:
    request = urllib.request.Request(demo.GATEWAY + path, headers={"Host": f"{model}.example.com"})
    try:
        with urllib.request.urlopen(request, timeout=10) as got:
            return int(got.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_two_versions_applied_while_nobody_watched_walk_their_steps(versions: None, namespace: str) -> None:
    for name, weight in (("both-v1", 95), ("both-v2", 5)):
        in_stage(name, namespace, "Canary")
        wait(lambda name=name, weight=weight: cluster.get("modelversion", name, namespace)["status"]["weight"] == weight, "its share", 60)
        history = cluster.get("modelversion", name, namespace)["status"]["history"]
        assert [entry["to"] for entry in history] == ["Canary"]


def test_a_server_that_fits_no_node_is_told_with_its_field(versions: None, namespace: str) -> None:
    version = cluster.wait_for_condition("modelversion", "huge-v1", namespace, "Stalled", says="Insufficient cpu")
    assert "spec.serving.resources.cpu" in condition(version, "Stalled")["message"]
    assert condition(version, "ArtifactsReachable")["status"] == "True"


@pytest.mark.parametrize("name", ["nogw-v1", "nogws-v1"])
def test_a_gateway_that_is_not_there_stalls_the_first_version_too(name: str, versions: None, namespace: str) -> None:
    version = cluster.wait_for_condition("modelversion", name, namespace, "Stalled", says="gateway-system/gatway")
    assert condition(version, "Progressing")["reason"] != "Completed"
    assert [entry["to"] for entry in version["status"]["history"]] == ["Production" if name == "nogw-v1" else "Canary"]


def test_an_autoscaler_has_the_replicas(versions: None, namespace: str) -> None:
    in_stage("scale-v1", namespace, "Production")
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "scale-v1"}
    cpu = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "scale", "namespace": namespace},
        "spec": {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 3, "metrics": [cpu]},
    }
    cluster.apply(scaler)
    try:
        wait(lambda: cluster.get("deployment", "scale-v1", namespace)["spec"]["replicas"] == 2, "the autoscaler's two replicas", 60)
        generation = cluster.get("deployment", "scale-v1", namespace)["metadata"]["generation"]
        kubectl("annotate", "modelversion", "scale-v1", "-n", namespace, "looked=at")  # and the operator looks again
        time.sleep(20)
        deployment = cluster.get("deployment", "scale-v1", namespace)
        assert (deployment["metadata"]["generation"], deployment["spec"]["replicas"]) == (generation, 2)
    finally:
        cluster.delete("hpa", "scale", namespace)


def test_an_abort_of_the_only_production_version_leaves_it_serving(versions: None, namespace: str) -> None:
    in_stage("abort-v1", namespace, "Production")
    wait(lambda: answer("abort") == 200, "it answers", 60)
    cluster.patch("modelversion", "abort-v1", namespace, {"spec": {"rollout": {"abort": True}}})
    version = cluster.wait_for_condition("modelversion", "abort-v1", namespace, "Stalled")
    print(condition(version, "Stalled"))
    time.sleep(5)
    assert answer("abort") == 200
    assert cluster.get("modelversion", "abort-v1", namespace)["status"]["stage"] == "Production"


def test_two_replicas_evicted_at_once_fail_no_request(versions: None, namespace: str) -> None:
    in_stage("abort-v1", namespace, "Production")
    wait(lambda: cluster.get("deployment", "abort-v1", namespace)["status"].get("readyReplicas") == 2, "two replicas", 120)
    mine = f"{GROUP}/model=abort"
    pods = [pod["metadata"]["name"] for pod in cluster.items("pods", namespace, mine)]
    assert len(pods) == 2
    with Load("abort.example.com") as load:
        left = set(pods)

        def evicted() -> bool:
            for pod in list(left):
                if evict(pod, namespace):
                    left.discard(pod)
            return not left

        wait(evicted, "both pods are evicted", 120)
        wait(lambda: not {pod["metadata"]["name"] for pod in cluster.items("pods", namespace, mine)} & set(pods), "and gone", 90)
    print(dict(load.answers))
    assert load.answers["200"] >= 20
    assert load.failed == 0


def evict(pod: str, namespace: str) -> bool:
    """Whether the API server took the eviction; it refuses one that the PodDisruptionBudget does not allow."""
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    try:
        kubectl("create", "--raw", path, "-f", "-", given=json.dumps(eviction))
    except KubectlFailed as error:
        if "disruption budget" in str(error):
            return False
        raise
    return True


def test_a_version_deleted_in_production_fails_no_request_while_the_former_one_starts(versions: None, namespace: str) -> None:
    first = in_stage("gone-v1", namespace, "Production")
    lineage = first["spec"]["lineage"] | {"runDigest": "2" * 64}
    second = {"metadata": {"name": "gone-v2", "namespace": namespace}, "spec": first["spec"] | {"version": 2, "lineage": lineage}}
    cluster.apply({key: first[key] for key in ("apiVersion", "kind")} | second)
    in_stage("gone-v2", namespace, "Production")
    wait(lambda: cluster.find("deployment", "gone-v1", namespace) is None, "the former one's pods are gone", 120)
    with Load("gone.example.com") as load:
        cluster.delete("modelversion", "gone-v2", namespace)
        cluster.wait_for_condition("modelversion", "gone-v1", namespace, "Ready")
        wait(lambda: cluster.find("deployment", "gone-v2", namespace) is None, "the deleted one's pods are gone", 60)
        time.sleep(5)
    print(dict(load.answers))
    assert cluster.get("modelversion", "gone-v1", namespace)["status"]["stage"] == "Production"
    assert load.answers["200"] >= 20
    assert load.failed == 0


def test_what_people_change_in_a_route_is_put_right_or_kept(versions: None, namespace: str) -> None:
    in_stage("back-v1", namespace, "Production")
    wait(lambda: answer("back") == 200, "it answers", 60)
    route = cluster.get("httproute", "back", namespace)
    rule = copy.deepcopy(route["spec"]["rules"][0])
    right = copy.deepcopy(rule["matches"])
    rule["matches"][0]["headers"] = [{"name": "x-team", "value": "a"}]
    rule["timeouts"] = {"request": "300s"}
    cluster.patch("httproute", "back", namespace, {"spec": {"rules": [rule]}})
    wait(lambda: cluster.get("httproute", "back", namespace)["spec"]["rules"][0]["matches"] == right, "the match is put right", 60)
    assert cluster.get("httproute", "back", namespace)["spec"]["rules"][0]["timeouts"] == {"request": "300s"}
    wait(lambda: "RoutePutRight" in kubectl("get", "events", "-n", namespace), "an Event says so", 30)
    wait(lambda: answer("back") == 200, "it answers again", 30)


@pytest.mark.parametrize("path", ["/slots", "/props", "/metrics"])
def test_a_servers_own_pages_are_not_reachable_through_the_gateway(path: str, versions: None, namespace: str) -> None:
    in_stage("back-v1", namespace, "Production")
    wait(lambda: answer("back") == 200, "it answers", 60)
    assert answer("back", path) == 404


def test_a_retired_version_comes_back(versions: None, namespace: str) -> None:
    in_stage("back-v1", namespace, "Production")
    cluster.patch("modelversion", "back-v1", namespace, {"spec": {"lifecycle": "Retired"}})
    in_stage("back-v1", namespace, "Archived")
    cluster.patch("modelversion", "back-v1", namespace, {"spec": {"lifecycle": "Active"}})
    in_stage("back-v1", namespace, "Production")
    wait(lambda: answer("back") == 200, "it answers again", 60)


def test_an_image_that_is_taken_away_again_is_the_charts(versions: None, namespace: str) -> None:
    in_stage("unset-v1", namespace, "Production")
    pod = cluster.get("deployment", "unset-v1", namespace)["spec"]["template"]["spec"]
    assert {name: pod[name] for name in ANYWHERE} == ANYWHERE
    image = pod["containers"][0]["image"]
    wrong = image.rsplit(":", 1)[0] + ":not-there"
    cluster.patch("modelversion", "unset-v1", namespace, {"spec": {"serving": {"image": wrong}}})
    cluster.wait_for_condition("modelversion", "unset-v1", namespace, "Stalled", says="not-there", timeout_s=90)
    cluster.patch("modelversion", "unset-v1", namespace, {"spec": {"serving": {"image": None}}})
    cluster.wait_for_condition("modelversion", "unset-v1", namespace, "Stalled", "False", timeout_s=90)
    assert cluster.get("deployment", "unset-v1", namespace)["spec"]["template"]["spec"]["containers"][0]["image"] == image
