"""The API server's audit log: who asked for what, when to the microsecond, and what the answer was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

OPERATOR, BENCH, KUBELET = "operator", "bench", "kubelet"
"""Users that the log tells apart."""

POLICY: dict[str, Any] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [
        {"level": "Metadata", "users": [OPERATOR]},
        # the name that a pod gets is nowhere in its request: whose it is says the body
        {"level": "Request", "verbs": ["create"], "resources": [{"group": "", "resources": ["pods"]}]},
        {"level": "Metadata", "users": [BENCH], "verbs": ["create"]},
        {"level": "None"},
    ],
}

_READS = frozenset({"get", "list", "watch"})


@dataclass(frozen=True)
class Call:
    """A request that was answered; moments are seconds of the API server's clock."""

    user: str
    verb: str
    resource: str
    """With its subresource: `finetunejobs/status`."""
    name: str
    owner: str
    """Name of the controller of the pod that was created."""
    code: int
    dry_run: bool
    received_at: float
    answered_at: float

    @property
    def reads(self) -> bool:
        return self.verb in _READS

    @property
    def persists(self) -> bool:
        return not self.reads and not self.dry_run and self.code < 300


@dataclass
class AuditLog:
    """The calls of a log that grows, each given out once."""

    path: Path
    _read: int = 0

    def news(self) -> list[Call]:
        """What was logged since the last time it was asked."""
        return list(self._lines())

    def _lines(self) -> Iterator[Call]:
        with self.path.open("rb") as log:
            log.seek(self._read)
            for line in log:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                yield _call(json.loads(line))


def _call(event: dict[str, Any]) -> Call:
    about = event.get("objectRef") or {}
    metadata = (event.get("requestObject") or {}).get("metadata") or {}
    return Call(
        user=event["user"]["username"],
        verb=event["verb"],
        resource="/".join(filter(None, (about.get("resource"), about.get("subresource")))),
        name=about.get("name", ""),
        owner=next((owner["name"] for owner in metadata.get("ownerReferences") or []), ""),
        code=event["responseStatus"].get("code", 0),
        dry_run="dryRun=All" in event["requestURI"],
        received_at=_seconds(event["requestReceivedTimestamp"]),
        answered_at=_seconds(event["stageTimestamp"]),
    )


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
