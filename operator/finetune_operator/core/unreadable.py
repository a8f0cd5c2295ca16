"""Objects of ours that do not parse: made by another release, or by hand, as the API server checks what we generate. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from finetune_api.outcome import Reason
from finetune_api.status import ConditionStatus, Loose
from pydantic import ValidationError

from finetune_operator.core.conditions import Condition, find, merge
from finetune_operator.core.names import Object
from finetune_operator.core.plan import Event

StatusT = TypeVar("StatusT", bound=Loose)


@dataclass(frozen=True)
class Unreadable:
    """An object of which a member does not parse, and what is wrong there."""

    object: Object
    reason: Reason
    problem: str


def problem_of(member: str, error: ValidationError) -> str:
    """The first fault by its path; the value is not told."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, (member, *first['loc'])))}: {first['msg']}"


def read_status(live: Object, model: type[StatusT], views: tuple[str, ...]) -> StatusT | Unreadable:
    """An object's status. `views` are written for people and columns: whatever another release wrote there, it is not read."""
    status = live.get("status") or {}
    if isinstance(status, dict):
        status = {name: member for name, member in status.items() if name not in views}
    try:
        return model.model_validate(status)
    except ValidationError as error:
        return Unreadable(live, Reason.INVALID_STATUS, problem_of("status", error))


def complaint(item: Unreadable, what_waits: str, now: datetime) -> tuple[Object, tuple[Event, ...]]:
    """The status as it was with the one complaint, and an Event where it is new.

    Other conditions stay as they are, readable or not: without one that says what was done, it would be done again.
    """
    status, generation = item.object.get("status") or {}, item.object["metadata"].get("generation", 0)
    listed = status.get("conditions") or []
    if not isinstance(listed, list):
        return status, ()
    message = f"{item.problem}: {what_waits}; {_mending(item)}"
    own = [Condition("Reconciling", "False", item.reason), Condition("Stalled", "True", item.reason, message)]
    before = [read for condition in listed if (read := _read(condition)) and read.type in ("Reconciling", "Stalled")]
    kept = [condition for condition in listed if _type(condition) not in ("Reconciling", "Stalled")]
    told = [condition.wire() for condition in merge(before, own, generation, now)]
    old = find(before, "Stalled")
    is_new = old is None or (old.status, old.reason) != ("True", item.reason)
    events = (Event("Warning", item.reason, message),) if is_new else ()
    return status | {"conditions": [*kept, *told], "observedGeneration": generation}, events


def _mending(item: Unreadable) -> str:
    """The command for it: a plain `kubectl edit` shows the status and drops what is changed there."""
    metadata, subresource = item.object["metadata"], " --subresource=status" if item.reason is Reason.INVALID_STATUS else ""
    return f"mend it with: kubectl edit {item.object['kind'].lower()}/{metadata['name']} -n {metadata['namespace']}{subresource}"


def _type(condition: Any) -> Any:
    return condition.get("type") if isinstance(condition, dict) else None


def _read(condition: Any) -> ConditionStatus | None:
    try:
        return ConditionStatus.model_validate(condition)
    except ValidationError:
        return None
