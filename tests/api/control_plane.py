"""A kube-apiserver with its etcd, alone: all that CRDs, CEL and admission need. Starts in seconds and shares nothing with a cluster.

A benchmark adds an audit log, users of its own and controllers; see Extras.
"""

from __future__ import annotations

import ctypes
import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.api.client import Api

START_TIMEOUT_S = 120
TOKEN = "only-for-this-test"
CONTROLLER_MANAGER = "controller-manager"
AUDIT_LOG = "audit.log"

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h


@dataclass(frozen=True)
class Extras:
    """What an API server alone does not need. The audit log is AUDIT_LOG in the control plane's folder."""

    users: tuple[str, ...] = ()
    """Further users, all of them masters, so that the audit log tells them apart: `kubeconfig_of` has their kubeconfigs."""
    audit_policy: Mapping[str, Any] | None = None
    controllers: tuple[str, ...] = ()
    """What a kube-controller-manager runs, as user CONTROLLER_MANAGER; without any there is none."""
    controller_qps: int = 20
    """Requests per second and controller. Default: kube-controller-manager's own."""


@contextmanager
def control_plane(binaries: Path, folder: Path, extras: Extras = Extras()) -> Iterator[Path]:
    """The kubeconfig of a fresh API server; `binaries` holds etcd and k8s (all of Kubernetes in one program)."""
    etcd_port, peer_port, port = free_ports(3)
    certificates = folder / "certificates"
    key, tokens = folder / "service-account.pem", folder / "tokens.csv"
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    users = ("test", *extras.users, *([CONTROLLER_MANAGER] if extras.controllers else []))
    tokens.write_text("".join(f"{_token(user)},{user},{user},system:masters\n" for user in users))
    etcd = f"http://127.0.0.1:{etcd_port}"
    peer = f"http://127.0.0.1:{peer_port}"
    with ExitStack() as stack:
        stack.enter_context(
            running(
                folder / "etcd.log",
                [
                    *(str(binaries / "etcd"), f"--data-dir={folder / 'etcd'}", f"--listen-client-urls={etcd}"),
                    *(f"--advertise-client-urls={etcd}", f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
                    *(f"--initial-cluster=default={peer}", "--unsafe-no-fsync"),
                ],
            )
        )
        server = stack.enter_context(
            running(
                folder / "apiserver.log",
                [
                    *(str(binaries / "k8s"), "kube-apiserver", f"--etcd-servers={etcd}", f"--cert-dir={certificates}"),
                    *(f"--secure-port={port}", "--bind-address=127.0.0.1", f"--token-auth-file={tokens}"),
                    *("--service-account-issuer=https://test", f"--service-account-key-file={key}"),
                    *(f"--service-account-signing-key-file={key}", "--service-cluster-ip-range=10.0.0.0/24"),
                    *("--disable-admission-plugins=ServiceAccount", "--allow-privileged=true"),
                    *_audit_flags(folder, extras),
                ],
            )
        )
        for user in users:
            _write_kubeconfig(folder, user, f"https://127.0.0.1:{port}", certificates / "apiserver.crt")
        kubeconfig = kubeconfig_of(folder, "test")
        _wait_until_ready(kubeconfig, server, folder / "apiserver.log")
        if extras.controllers:
            stack.enter_context(running(folder / "controller-manager.log", _controller_manager(binaries, folder, extras)))
        yield kubeconfig


def kubeconfig_of(folder: Path, user: str) -> Path:
    """Where the kubeconfig of a control plane's user lies; `folder` is the control plane's."""
    return folder / ("kubeconfig" if user == "test" else f"{user}.kubeconfig")


def _token(user: str) -> str:
    return TOKEN if user == "test" else f"{TOKEN}-{user}"


def _audit_flags(folder: Path, extras: Extras) -> list[str]:
    if extras.audit_policy is None:
        return []
    policy = folder / "audit-policy.json"
    policy.write_text(json.dumps(extras.audit_policy))
    return [f"--audit-policy-file={policy}", f"--audit-log-path={folder / AUDIT_LOG}", "--audit-log-maxsize=4000"]


def _controller_manager(binaries: Path, folder: Path, extras: Extras) -> list[str]:
    """Without a port: it would listen on every interface."""
    return [
        *(str(binaries / "k8s"), "kube-controller-manager", f"--kubeconfig={kubeconfig_of(folder, CONTROLLER_MANAGER)}"),
        *(f"--controllers={','.join(extras.controllers)}", "--leader-elect=false", "--secure-port=0"),
        *(f"--kube-api-qps={extras.controller_qps}", f"--kube-api-burst={extras.controller_qps * 3 // 2}"),
    ]


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in sockets]


@contextmanager
def running(log: Path, command: list[str], environment: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is ended with the block, and by the kernel should this process be killed. `environment` None: ours."""
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, preexec_fn=_end_with_parent) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _write_kubeconfig(folder: Path, user: str, server: str, authority: Path) -> None:
    """`authority`: the certificate that the server makes for itself at its first start."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": str(authority)}}],
        "users": [{"name": "test", "user": {"token": _token(user)}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }
    kubeconfig_of(folder, user).write_text(json.dumps(config))


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
