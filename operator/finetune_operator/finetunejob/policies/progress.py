"""What of a pod's report goes to status, and when? Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from finetune_api.progress import TrainerStatus

from finetune_operator.core.conditions import parse_timestamp, timestamp
from finetune_operator.core.names import Object

_NUMBERS = {
    "step": ("step", int),
    "total_steps": ("totalSteps", int),
    "epoch": ("epoch", float),
    "loss": ("loss", float),
    "eval_loss": ("evalLoss", float),
    "learning_rate": ("learningRate", float),
    "tokens_per_second": ("tokensPerSecond", float),
    "gpu_memory_bytes": ("gpuMemoryBytes", int),
}


_KEPT = ("step", "totalSteps", "epoch", "loss", "evalLoss", "learningRate", "tokensPerSecond", "gpuMemoryBytes")
"""What stays in status when a later stage reports: training's own numbers."""

_LARGEST_INTEGER = 2**53
"""The API server takes a larger integer for a real number and refuses the status."""


def kept(previous: Object | None) -> Object:
    """What a new stage's progress begins with."""
    return {member: value for member, value in (previous or {}).items() if member in _KEPT}


def next_write_at(previous: Object | None, every_s: float) -> datetime | None:
    """When progress may be written again; None: now."""
    if not previous or not previous.get("lastUpdateTime"):
        return None
    return parse_timestamp(previous["lastUpdateTime"]) + timedelta(seconds=every_s)


def to_status(stage: str, report: TrainerStatus, previous: Object | None, now: datetime) -> Object:
    """`status.progress` from a report; numbers that do not parse, are not finite or too large for an integer are left out."""
    progress: Object = {**kept(previous), "stage": stage, "lastUpdateTime": timestamp(now)}
    if report.progress_percentage is not None:
        progress["percent"] = report.progress_percentage
    if report.estimated_remaining_seconds is not None:
        progress["etaSeconds"] = min(report.estimated_remaining_seconds, _LARGEST_INTEGER)
    for metric in report.metrics:
        if metric.name in _NUMBERS:
            member, kind = _NUMBERS[metric.name]
            value = _number(metric.value, kind)
            if value is not None:
                progress[member] = value
    return progress


def _number(text: str, kind: type) -> Any:
    try:
        number = float(text)
    except ValueError:
        return None
    # NaN compares False as well
    return kind(number) if abs(number) <= (_LARGEST_INTEGER if kind is int else 1e300) else None


def display(progress: Object | None) -> Object:
    """The strings of the columns: `42%`, `1h24m`, `1.23`."""
    if not progress:
        return {"progress": "", "eta": "", "loss": ""}
    return {
        "progress": f"{progress['percent']}%" if "percent" in progress else "",
        "eta": short_duration(progress["etaSeconds"]) if "etaSeconds" in progress else "",
        "loss": f"{progress['loss']:.3g}" if "loss" in progress else "",
    }


def short_duration(seconds: int) -> str:
    """`45s`, `12m`, `1h24m`, `3d4h`: what kubectl's AGE looks like."""
    if seconds < 120:
        return f"{seconds}s"
    minutes = seconds // 60
    if minutes < 60:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes}m"
    return f"{hours // 24}d{hours % 24}h"
