"""Conditions are the state; phase and columns are views of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from finetune_api.status import ConditionStatus

Status = Literal["True", "False", "Unknown"]


@dataclass(frozen=True)
class Condition:
    type: str
    status: Status
    reason: str
    message: str = ""


def parse_timestamp(text: str) -> datetime:
    """A moment as API objects have it (RFC 3339)."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def moment(text: str | None) -> datetime | None:
    return parse_timestamp(text) if text else None


def merge(previous: Sequence[ConditionStatus], wanted: Iterable[Condition], generation: int, now: datetime) -> list[ConditionStatus]:
    """The `status.conditions` to write: `wanted` in its order. lastTransitionTime moves only with `status`."""
    merged = []
    for condition in wanted:
        old = find(previous, condition.type)
        since = old.last_transition_time if old and old.status == condition.status else None
        merged.append(
            ConditionStatus(
                type=str(condition.type),
                status=condition.status,
                reason=str(condition.reason),
                message=condition.message,
                observed_generation=generation,
                last_transition_time=since or now,
            )
        )
    return merged


def find(conditions: Iterable[ConditionStatus], type: str) -> ConditionStatus | None:
    return next((condition for condition in conditions if condition.type == type), None)
