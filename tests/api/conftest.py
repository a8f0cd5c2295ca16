"""One API server for all tests here: one of our own where its programs are built, else the cluster that KUBECONFIG names."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.cluster import gotools
from hack.cluster.paths import Paths, cache_folder
from tests.api.client import CRD_PATH, Api
from tests.api.control_plane import control_plane

CRDS = Path(__file__).resolve().parents[2] / "crds"
NAMESPACE = "finetune-api-test"


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    binaries = cache_folder(os.environ) / "bin"
    if (binaries / "k8s").exists() and (binaries / "etcd").exists():
        with control_plane(binaries, tmp_path_factory.mktemp("control-plane")) as config:
            yield config
    elif os.environ.get("KUBECONFIG"):
        yield Path(os.environ["KUBECONFIG"])
    else:
        pytest.fail("no API server: run `python3 -m hack.cluster up` first")


@pytest.fixture(scope="session")
def server(kubeconfig: Path) -> Api:
    return Api(kubeconfig)


@pytest.fixture(scope="session")
def crds(server: Api) -> Iterator[dict[str, Any]]:
    """The CRDs as the API server answered when they were applied, by kind; those that were not there before go afterwards."""
    answers, made = {}, []
    for file in sorted(CRDS.glob("*.yaml")):
        crd = yaml.safe_load(file.read_text())
        path = f"{CRD_PATH}/{crd['metadata']['name']}"
        if server.call("GET", path).code == 404:
            made.append(path)
        answers[crd["spec"]["names"]["kind"]] = server.apply(path, crd, force="true")
    yield answers
    for path in made:
        server.call("DELETE", path)


@pytest.fixture(scope="session")
def api(server: Api, crds: dict[str, Any]) -> Iterator[Api]:
    """The API with both kinds served and a namespace of our own."""
    assert all(answer.ok for answer in crds.values()), [answer.message for answer in crds.values()]
    server.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    deadline = time.monotonic() + 60
    while not all(server.call("GET", f"/apis/finetune-operator.io/v1alpha1/{plural}").ok for plural in ("finetunejobs", "modelversions")):
        assert time.monotonic() < deadline, "the kinds are not served"
        time.sleep(0.2)
    yield server
    server.call("DELETE", f"/api/v1/namespaces/{NAMESPACE}")


@pytest.fixture(scope="session")
def kubectl() -> Path:
    found = shutil.which("kubectl", path=f"{cache_folder(os.environ) / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}")
    assert found, "kubectl is not built: run `python3 -m hack.cluster up` first"
    return Path(found)


@pytest.fixture(scope="session")
def gateway_api(api: Api) -> Iterator[None]:
    """HTTPRoutes as the Gateway API's own CRD defines them; it goes afterwards unless it was there before."""
    folder = gotools.module_folder(Paths.from_environment(), "gateway", "sigs.k8s.io/gateway-api") / "config/crd/standard"
    crd = yaml.safe_load((folder / "gateway.networking.k8s.io_httproutes.yaml").read_text())
    path = f"{CRD_PATH}/{crd['metadata']['name']}"
    there = api.call("GET", path).ok
    assert there or api.apply(path, crd).ok
    deadline = time.monotonic() + 60
    while not api.call("GET", "/apis/gateway.networking.k8s.io/v1/httproutes").ok:
        assert time.monotonic() < deadline, "HTTPRoutes are not served"
        time.sleep(0.2)
    yield
    if not there:
        api.call("DELETE", path)
