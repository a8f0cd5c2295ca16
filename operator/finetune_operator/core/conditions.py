"""Conditions are the state; phase and columns are views of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

Status = Literal["True", "False", "Unknown"]

MESSAGE_CHARS = 1024
"""Longest condition message; the schema refuses a status with a longer one for ever."""

REASON_CHARS = 256


@dataclass(frozen=True)
class Condition:
    type: str
    status: Status
    reason: str
    message: str = ""


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, whole seconds: what the API server writes itself."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def cut(message: str, limit: int = MESSAGE_CHARS) -> str:
    return message if len(message) <= limit else message[: limit - 1] + "…"


def merge(previous: Iterable[Mapping[str, Any]], wanted: Iterable[Condition], generation: int, now: datetime) -> list[dict[str, Any]]:
    """The `status.conditions` to write: `wanted` in its order. lastTransitionTime moves only with `status`."""
    before = {condition["type"]: condition for condition in previous}
    merged = []
    for condition in wanted:
        old = before.get(condition.type)
        same = old is not None and old["status"] == condition.status
        merged.append(
            {
                "type": condition.type,
                "status": condition.status,
                "reason": str(condition.reason),
                "message": cut(condition.message),
                "observedGeneration": generation,
                "lastTransitionTime": old["lastTransitionTime"] if same and old else timestamp(now),
            }
        )
    return merged


def find(conditions: Iterable[Mapping[str, Any]], type: str) -> Mapping[str, Any] | None:
    return next((condition for condition in conditions if condition["type"] == type), None)
