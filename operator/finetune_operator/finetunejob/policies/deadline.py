"""How long has the run been active, and is that too long? Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_operator.core.conditions import parse_timestamp
from finetune_operator.core.names import Object


def active_seconds(status: Object, now: datetime) -> int:
    """Seconds since the start, suspended time not counted."""
    since = status.get("activeSince")
    running = int((now - parse_timestamp(since)).total_seconds()) if since else 0
    return int(status.get("activeSeconds", 0)) + max(0, running)


def deadline_at(status: Object, limit_s: int | None, now: datetime) -> datetime | None:
    """The moment when the limit is reached; None without one or while suspended."""
    if limit_s is None or not status.get("activeSince"):
        return None
    return now + timedelta(seconds=limit_s - active_seconds(status, now))
