"""Facts of the world that both kinds look at. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

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
