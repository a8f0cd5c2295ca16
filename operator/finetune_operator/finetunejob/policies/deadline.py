"""How long has the run been active, and is that too long? Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_api.finetunejob import FineTuneJobStatus


def active_seconds(status: FineTuneJobStatus, now: datetime) -> int:
    """Seconds since the start, suspended time not counted."""
    running = int((now - status.active_since).total_seconds()) if status.active_since else 0
    return (status.active_seconds or 0) + max(0, running)


def deadline_at(status: FineTuneJobStatus, limit_s: int | None, now: datetime) -> datetime | None:
    """The moment when the limit is reached; None without one or while suspended."""
    if limit_s is None or status.active_since is None:
        return None
    return now + timedelta(seconds=limit_s - active_seconds(status, now))
