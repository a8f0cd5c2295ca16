"""Helm as it renders the chart, against no cluster or against an API server that has other releases."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.cluster.paths import cache_folder

CHART = Path(__file__).resolve().parents[3] / "charts" / "finetune-operator"
_RBAC = "rbac.authorization.k8s.io"


@cache
def helm() -> str:
    found = shutil.which("helm", path=f"{cache_folder(os.environ) / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}")
    return found or pytest.skip("no helm: `python3 -m hack.cluster up` builds it")


def template(
    *values: str, release: str = "finetune-operator", namespace: str = "finetune-system", chart: Path = CHART, server: str = ""
) -> subprocess.CompletedProcess[str]:
    """`values` as for --set; `server`: the address of an API server that `lookup` asks."""
    command = [helm(), "template", release, str(chart), "--namespace", namespace, *(word for value in values for word in ("--set", value))]
    if server:
        command += ["--dry-run=server", "--disable-openapi-validation", f"--kube-apiserver={server}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "KUBECONFIG": os.devnull})


def rendered(*values: str, **where: Any) -> str:
    done = template(*values, **where)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def cluster_with(bindings: Sequence[dict[str, Any]], operators: Mapping[str, str]) -> Iterator[str]:
    """Address of an API server that knows every kind of the chart, and has these ClusterRoleBindings and nothing else but an operator
    in each namespace of `operators`, of the release named there."""
    answers = _discovery(sorted({(item["apiVersion"], item["kind"]) for item in objects(rendered())})) | {
        f"/apis/{_RBAC}/v1/clusterrolebindings": {
            "kind": "ClusterRoleBindingList",
            "apiVersion": f"{_RBAC}/v1",
            "metadata": {},
            "items": list(bindings),
        },
        **{f"/apis/apps/v1/namespaces/{where}/deployments/finetune-operator": _deployment(where, of) for where, of in operators.items()},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            body = json.dumps(found or {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404})
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _deployment(namespace: str, release: str) -> dict[str, Any]:
    metadata = {
        "name": "finetune-operator",
        "namespace": namespace,
        "labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": {"meta.helm.sh/release-name": release, "meta.helm.sh/release-namespace": namespace},
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata}


def objects(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if document]


def _discovery(kinds: Sequence[tuple[str, str]]) -> dict[str, Any]:
    answers: dict[str, Any] = {"/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"}}
    for version in {version for version, _ in kinds}:
        resources = [
            {"name": f"{kind.lower()}s", "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": ["get", "list"]}
            for its, kind in kinds
            if its == version
        ]
        path = f"/apis/{version}" if "/" in version else f"/api/{version}"
        answers[path] = {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
    groups = [version for version, _ in dict(kinds).items() if "/" in version]
    return answers | {
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(version) for version in groups]},
    }


def _group(group_version: str) -> dict[str, Any]:
    group, _, version = group_version.partition("/")
    known = {"groupVersion": group_version, "version": version}
    return {"name": group, "versions": [known], "preferredVersion": known}
