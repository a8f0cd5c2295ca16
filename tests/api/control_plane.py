"""A kube-apiserver with its etcd, alone: all that CRDs, CEL and admission need. Starts in seconds and shares nothing with a cluster."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import urllib3
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.api.client import Api

START_TIMEOUT_S = 120
TOKEN = "only-for-this-test"


@contextmanager
def control_plane(binaries: Path, folder: Path) -> Iterator[Path]:
    """The kubeconfig of a fresh API server; `binaries` holds etcd and k8s (all of Kubernetes in one program)."""
    etcd_port, peer_port, port = free_ports(3)
    certificates = folder / "certificates"
    key, tokens = folder / "service-account.pem", folder / "tokens.csv"
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    tokens.write_text(f"{TOKEN},test,test,system:masters\n")
    etcd = f"http://127.0.0.1:{etcd_port}"
    peer = f"http://127.0.0.1:{peer_port}"
    with ExitStack() as stack:
        stack.enter_context(
            _running(
                folder / "etcd.log",
                [
                    *(str(binaries / "etcd"), f"--data-dir={folder / 'etcd'}", f"--listen-client-urls={etcd}"),
                    *(f"--advertise-client-urls={etcd}", f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
                    *(f"--initial-cluster=default={peer}", "--unsafe-no-fsync"),
                ],
            )
        )
        server = stack.enter_context(
            _running(
                folder / "apiserver.log",
                [
                    *(str(binaries / "k8s"), "kube-apiserver", f"--etcd-servers={etcd}", f"--cert-dir={certificates}"),
                    *(f"--secure-port={port}", "--bind-address=127.0.0.1", f"--token-auth-file={tokens}"),
                    *("--service-account-issuer=https://test", f"--service-account-key-file={key}"),
                    *(f"--service-account-signing-key-file={key}", "--service-cluster-ip-range=10.0.0.0/24"),
                    *("--disable-admission-plugins=ServiceAccount", "--allow-privileged=true"),
                ],
            )
        )
        kubeconfig = _kubeconfig(folder, f"https://127.0.0.1:{port}", certificates / "apiserver.crt")
        _wait_until_ready(kubeconfig, server, folder / "apiserver.log")
        yield kubeconfig


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in sockets]


@contextmanager
def _running(log: Path, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _kubeconfig(folder: Path, server: str, authority: Path) -> Path:
    """`authority`: the certificate that the server makes for itself at its first start."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": str(authority)}}],
        "users": [{"name": "test", "user": {"token": TOKEN}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path


def _wait_until_ready(kubeconfig: Path, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        if is_ready(kubeconfig):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the API server did not start; its last words:\n{log.read_text()[-3000:]}")


def is_ready(kubeconfig: Path) -> bool:
    try:
        return Api(kubeconfig).call("GET", "/readyz").code == 200
    except (FileNotFoundError, urllib3.exceptions.HTTPError):
        return False
