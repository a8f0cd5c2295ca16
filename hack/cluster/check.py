"""Proves that a cluster is more than Ready: a pod with storage, DNS and a GPU, and a route through the gateway."""

import time
import urllib.error
import urllib.request

from . import addons, kind
from .paths import MANIFESTS, Paths
from .progress import CommandFailed, say, step

NAMESPACE = "cluster-check"
HOST = "check.example"


def check(paths: Paths) -> None:
    remove(paths)
    try:
        with step("a pod with a claim, a GPU and a Service's name"):
            addons.apply(paths, [MANIFESTS / "check.yaml"])
            _wait_for_pod(paths)
            for line in kind.kubectl(paths, "logs", "-n", NAMESPACE, "client").splitlines():
                say(f"    {line}")
        with step(f"a route through {addons.GATEWAY_ADDRESS}"):
            _wait_for_route()
    finally:
        remove(paths)


def remove(paths: Paths) -> None:
    kind.kubectl(paths, "delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=60s", timeout_s=70)


def _wait_for_pod(paths: Paths) -> None:
    phase = ["wait", "-n", NAMESPACE, "pod/client", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s"]
    try:
        kind.kubectl(paths, *phase, timeout_s=70)
    except CommandFailed as error:
        described = kind.kubectl(paths, "describe", "pods,pvc", "-n", NAMESPACE)
        raise CommandFailed(f"{error}\n{described[-3000:]}") from error


def _wait_for_route(timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            request = urllib.request.Request(addons.GATEWAY_ADDRESS, headers={"Host": HOST})
            with urllib.request.urlopen(request, timeout=5) as answer:
                say(f"    {answer.status}: {answer.read().decode().strip()}")
                return
        except (urllib.error.HTTPError, OSError) as error:
            if time.monotonic() > deadline:
                raise CommandFailed(f"no answer through the gateway: {error}") from error
            time.sleep(0.5)
