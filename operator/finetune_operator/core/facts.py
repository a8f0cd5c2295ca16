"""Facts of the world that both kinds look at. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from finetune_operator.core.conditions import moment
from finetune_operator.core.names import Object

SCHEDULING_GRACE = timedelta(seconds=30)
"""How long a pod without a node, or without quota, is no news: another one is finishing, or a volume is being made."""


@dataclass(frozen=True)
class ClaimFact:
    """A PersistentVolumeClaim as it was last seen."""

    name: str
    uid: str
    resource_version: str
    owners: tuple[Object, ...] = ()
    labels: dict[str, str] | None = None
    phase: str = "Pending"
    access_modes: tuple[str, ...] = ()
    deleting: bool = False
    storage_class: str = ""


@dataclass(frozen=True)
class NodeFact:
    """A node by its label kubernetes.io/hostname, and what it can give to pods in all."""

    host: str
    allocatable: Mapping[str, str]


def number(text: str | None) -> int:
    """A label's number; 0 where it is missing or none: whoever may edit an object may write anything there."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else 0


def conditions_of(status: Mapping[str, Any]) -> dict[str, Object]:
    """The conditions of any object by type."""
    return {condition["type"]: condition for condition in status.get("conditions") or []}


def unschedulable(conditions: Mapping[str, Object]) -> tuple[str, datetime | None]:
    """The scheduler's words on why a pod has no node, and since when; empty where it has one, or was not looked at."""
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("reason") != "Unschedulable":
        return "", None
    return scheduled.get("message", ""), moment(scheduled.get("lastTransitionTime"))


def claim_fact(claim: Object) -> ClaimFact:
    metadata = claim["metadata"]
    return ClaimFact(
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata.get("resourceVersion", ""),
        owners=tuple(metadata.get("ownerReferences", [])),
        labels=metadata.get("labels", {}),
        phase=claim.get("status", {}).get("phase", "Pending"),
        access_modes=tuple(claim.get("spec", {}).get("accessModes", [])),
        deleting="deletionTimestamp" in metadata,
        storage_class=claim.get("spec", {}).get("storageClassName") or "",
    )


def node_fact(node: Object) -> NodeFact:
    metadata = node["metadata"]
    host = (metadata.get("labels") or {}).get("kubernetes.io/hostname") or metadata["name"]
    return NodeFact(host, (node.get("status") or {}).get("allocatable") or {})
