"""Releases of the chart on an API server of their own: beside each other, upgraded with odd values, gone, and installed anew."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_operator.core.names import owner_reference
from finetune_operator.status_server.endpoint import make_endpoint_slice

from hack.cluster.paths import cache_folder
from tests.api.client import CRD_PATH, Api
from tests.api.control_plane import Extras, control_plane
from tests.unit.chart.helm import CHART, helm

CRD = f"{CRD_PATH}/finetunejobs.finetune-operator.io"
NAMESPACED = (
    "/api/v1/namespaces/{}/services",
    "/api/v1/namespaces/{}/secrets",
    "/api/v1/namespaces/{}/configmaps",
    "/api/v1/namespaces/{}/serviceaccounts",
    "/apis/apps/v1/namespaces/{}/deployments",
    "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
    "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
    "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices",
)
CLUSTER_WIDE = ("clusterroles", "clusterrolebindings")


class Releases:
    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.api = Api(kubeconfig)

    def helm(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([helm(), f"--kubeconfig={self.kubeconfig}", *words], capture_output=True, text=True, timeout=180)

    def install(self, release: str, namespace: str, *values: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        chosen = [word for value in values for word in ("--set", value)]
        return self.helm("upgrade", "--install", release, str(CHART), "-n", namespace, "--create-namespace", *flags, *chosen)

    def ours(self, namespace: str) -> set[str]:
        """What is left of a release: everything in its namespace, and what has its name cluster-wide."""
        found = {path.format(namespace) for path in NAMESPACED if self.api.call("GET", path.format(namespace)).body["items"]}
        for plural in CLUSTER_WIDE:
            items = self.api.call("GET", f"/apis/rbac.authorization.k8s.io/v1/{plural}").body["items"]
            found |= {item["metadata"]["name"] for item in items if f".{namespace}." in item["metadata"]["name"]}
        return found


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Releases]:
    binaries = cache_folder(os.environ) / "bin"
    if not ((binaries / "k8s").exists() and (binaries / "etcd").exists()):
        pytest.skip("releases need an API server of their own: run `python3 -m hack.cluster up` first")
    extras = Extras(controllers=("garbage-collector-controller",))
    with control_plane(binaries, tmp_path_factory.mktemp("releases"), extras) as kubeconfig:
        made = Releases(kubeconfig)
        for name in ("team-a", "team-b"):
            made.api.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        yield made


def test_a_second_release_stands_beside_the_first_and_a_third_is_told_why_not(releases: Releases) -> None:
    first = releases.install("first", "sys-a", "watchNamespaces={team-a}")
    assert first.returncode == 0, first.stderr
    second = releases.install("second", "sys-b", "watchNamespaces={team-b}", "crds.enabled=false")
    assert second.returncode == 0, second.stderr
    third = releases.install("third", "sys-c", "watchNamespaces={team-b}", "crds.enabled=false")
    assert "release second in namespace sys-b watches team-b already" in third.stderr
    everything = releases.install("fourth", "sys-d", "crds.enabled=false")
    assert "watches team-a already" in everything.stderr or "watches team-b already" in everything.stderr


def test_nulls_are_upgraded_to(releases: Releases) -> None:
    nulls = (
        "policies",
        "resources",
        "terminationGracePeriodSeconds",
        "metrics",
        "serviceAccount",
        "podDisruptionBudget",
        "crds",
        "nodeSelector",
    )
    done = releases.install("first", "sys-a", "watchNamespaces={team-a}", *(f"{name}=null" for name in nulls))
    assert done.returncode == 0, done.stderr
    path = "/apis/apps/v1/namespaces/sys-a/deployments/finetune-operator"
    assert releases.api.call("GET", path).body["spec"]["replicas"] == 2


def _as_the_leader_does(api: Api, namespace: str) -> None:
    """Makes what the operator makes for itself in its own namespace."""
    secret = api.call("GET", f"/api/v1/namespaces/{namespace}/secrets/finetune-status-tls").body
    owners = [owner_reference(secret, controller=False)]
    endpoints = make_endpoint_slice(namespace, "finetune-status", "10.0.0.5", 8443, owners)
    lease: dict[str, Any] = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "finetune-operator", "ownerReferences": owners},
    }
    slices = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    assert api.apply(f"{slices}/finetune-status", endpoints).ok
    assert api.create(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases", lease).ok


def test_nothing_but_the_crds_outlives_a_release_and_another_takes_them_over(releases: Releases) -> None:
    _as_the_leader_does(releases.api, "sys-a")
    gone = releases.helm("uninstall", "first", "-n", "sys-a")
    assert gone.returncode == 0, gone.stderr
    deadline = time.monotonic() + 60
    while left := releases.ours("sys-a"):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    assert releases.api.call("GET", CRD).ok
    refused = releases.install("other", "sys-e", "watchNamespaces={team-a}")
    assert "cannot be imported" in refused.stderr
    taken = releases.install("other", "sys-e", "watchNamespaces={team-a}", flags=("--take-ownership",))
    assert taken.returncode == 0, taken.stderr
    assert releases.api.call("GET", CRD).body["metadata"]["annotations"]["meta.helm.sh/release-name"] == "other"
