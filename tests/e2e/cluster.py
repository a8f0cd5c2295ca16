"""The tests' hands on the cluster: kubectl with JSON, waiting with the reason of a failure, and what people see."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

Object = dict[str, Any]
T = TypeVar("T")
GROUP = "finetune-operator.io"
OPERATOR_NAMESPACE = "finetune-system"
GATEWAY = "http://127.0.0.1:30080"


class KubectlFailed(Exception):
    """kubectl's own words."""


def kubectl(*words: str, given: str | None = None, timeout_s: float = 120) -> str:
    done = subprocess.run(["kubectl", *words], input=given, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode != 0:
        raise KubectlFailed(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def apply(*objects: Object) -> str:
    """Strict: an unknown field is refused, as for a user."""
    listing = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    return kubectl("apply", "--validate=strict", "-f", "-", given=json.dumps(listing))


def server_side_apply(item: Object) -> None:
    """For objects too large for kubectl's own annotation."""
    kubectl("apply", "--server-side", "-f", "-", given=json.dumps(item))


def get(kind: str, name: str, namespace: str) -> Object:
    return dict(json.loads(kubectl("get", kind, name, "-n", namespace, "-o", "json")))


def find(kind: str, name: str, namespace: str) -> Object | None:
    shown = kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
    return dict(json.loads(shown)) if shown.strip() else None


def items(kind: str, namespace: str, selector: str = "") -> list[Object]:
    return list(json.loads(kubectl("get", kind, "-n", namespace, "-o", "json", "-l", selector))["items"])


def patch(kind: str, name: str, namespace: str, change: Object) -> None:
    kubectl("patch", kind, name, "-n", namespace, "--type=merge", "-p", json.dumps(change))


def delete(kind: str, name: str, namespace: str, *words: str) -> None:
    kubectl("delete", kind, name, "-n", namespace, "--ignore-not-found", *words)


def condition(item: Object | None, type: str) -> Object:
    conditions = ((item or {}).get("status") or {}).get("conditions", [])
    return next((found for found in conditions if found["type"] == type), {"type": type, "status": "Absent", "reason": "", "message": ""})


def wait(probe: Callable[[], T | None], what: str, timeout_s: float, every_s: float = 1.0) -> T:
    """The first value of `probe` that is true."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(every_s)


def wait_for_condition(
    kind: str, name: str, namespace: str, type: str, status: str = "True", timeout_s: float = 300, says: str = ""
) -> Object:
    """The object once the condition has the status, and its message says this; fails early, with what describe shows, where it has ended."""

    def probe() -> Object | None:
        item = get(kind, name, namespace)
        found = condition(item, type)
        if found["status"] == status and says in found["message"]:
            return item
        ended = condition(item, "Succeeded")
        if kind == "finetunejob" and ended["status"] in ("True", "False") and type != "Succeeded":
            raise AssertionError(f"{name} ended before {type}={status}: {ended['reason']}: {ended['message']}")
        if kind == "finetunejob" and type == "Succeeded" and ended["status"] not in ("Unknown", "Absent"):
            raise AssertionError(f"{name} ended: {ended['reason']}: {ended['message']}\n{stage_logs(name, namespace)}")
        return None

    what = f"{kind} {name}: {type}={status}" + (f" with a message that says {says!r}" if says else "")
    try:
        return wait(probe, what, timeout_s)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{kubectl('describe', kind, name, '-n', namespace)[-3000:]}") from None


def stage_logs(job: str, namespace: str) -> str:
    pods = items("pods", namespace, f"{GROUP}/finetunejob={job}")
    return "\n".join(f"--- {pod['metadata']['name']}\n" + _log(pod["metadata"]["name"], namespace) for pod in pods)[-4000:]


def _log(pod: str, namespace: str) -> str:
    try:
        return kubectl("logs", pod, "-n", namespace, "--tail=20")
    except KubectlFailed as error:
        return str(error)
