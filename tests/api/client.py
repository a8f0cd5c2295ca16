"""The API in its own words: JSON in, JSON out, no typed client in between that could add or drop a member."""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
import yaml

Object = dict[str, Any]

CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
GROUP_PATH = "/apis/finetune-operator.io/v1alpha1"


@dataclass(frozen=True)
class Answer:
    code: int
    body: Any

    @property
    def ok(self) -> bool:
        return 200 <= self.code < 300

    @property
    def message(self) -> str:
        return str(self.body.get("message", "")) if isinstance(self.body, dict) else str(self.body)


class Api:
    """An API server as a kubeconfig names it (token or client certificate)."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.server = cluster["server"]
        self.headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        self.pool = urllib3.PoolManager(ssl_context=_context(cluster, user), retries=False)

    def call(self, method: str, path: str, body: Any = None, *, type: str = "application/json", **query: str) -> Answer:
        url = self.server + path + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body)
        headers = {**self.headers, "Content-Type": type, "Accept": "application/json"}
        reply = self.pool.request(method, url, body=data, headers=headers)
        try:
            return Answer(reply.status, json.loads(reply.data))
        except ValueError:
            return Answer(reply.status, reply.data.decode())

    def table(self, path: str) -> Answer:
        headers = {**self.headers, "Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
        reply = self.pool.request("GET", self.server + path, headers=headers)
        return Answer(reply.status, json.loads(reply.data))

    def apply(self, path: str, body: Object, **query: str) -> Answer:
        """Server-side apply, strict as kubectl's."""
        options = {"fieldManager": "test", "fieldValidation": "Strict"} | query
        return self.call("PATCH", path, body, type="application/apply-patch+yaml", **options)

    def create(self, path: str, body: Object) -> Answer:
        return self.call("POST", path, body, fieldValidation="Strict")


def _context(cluster: Object, user: Object) -> ssl.SSLContext:
    if "certificate-authority" in cluster:
        context = ssl.create_default_context(cafile=cluster["certificate-authority"])
    else:
        context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    if "client-certificate-data" in user:
        with tempfile.TemporaryDirectory() as folder:
            certificate = Path(folder) / "client.pem"
            certificate.write_bytes(b"".join(base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key")))
            context.load_cert_chain(certificate)
    return context
