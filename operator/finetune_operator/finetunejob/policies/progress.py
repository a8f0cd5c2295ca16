"""What of a pod's report goes to status, and when? Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from finetune_api.finetunejob import Display, ProgressStatus
from finetune_api.progress import TrainerStatus
from finetune_api.run import Stage
from finetune_api.status import LARGEST_INTEGER

_NUMBERS: dict[str, type] = {
    "step": int,
    "total_steps": int,
    "epoch": float,
    "loss": float,
    "eval_loss": float,
    "learning_rate": float,
    "tokens_per_second": float,
    "gpu_memory_bytes": int,
}
"""Training's own numbers, as pods and status call them: they stay in status when a later stage reports."""


def kept(previous: ProgressStatus | None) -> dict[str, Any]:
    """What a new stage's progress begins with."""
    return previous.model_dump(include=set(_NUMBERS), exclude_none=True) if previous else {}


def next_write_at(previous: ProgressStatus | None, every_s: float) -> datetime | None:
    """When progress may be written again; None: now."""
    last = previous.last_update_time if previous else None
    return last + timedelta(seconds=every_s) if last else None


def to_status(stage: str, report: TrainerStatus, previous: ProgressStatus | None, now: datetime) -> ProgressStatus:
    """`status.progress` from a report; numbers that do not parse, are not finite or too large for an integer are left out."""
    eta_s = report.estimated_remaining_seconds
    told = {metric.name: _number(metric.value, _NUMBERS[metric.name]) for metric in report.metrics if metric.name in _NUMBERS}
    return ProgressStatus(
        stage=stage,
        percent=report.progress_percentage,
        eta_seconds=min(eta_s, LARGEST_INTEGER) if eta_s is not None else None,
        last_update_time=now,
        **kept(previous) | {name: value for name, value in told.items() if value is not None},
    )


def same_but_for_time(one: ProgressStatus | None, other: ProgressStatus) -> bool:
    return one is not None and one.model_copy(update={"last_update_time": other.last_update_time}) == other


def _number(text: str, kind: type) -> Any:
    try:
        number = float(text)
    except ValueError:
        return None
    # NaN compares False as well
    return kind(number) if abs(number) <= (LARGEST_INTEGER if kind is int else 1e300) else None


def display(progress: ProgressStatus | None, *, ended: bool = False) -> Display:
    """The strings of the columns: `42%`, `1h24m`, `1.23`. The loss of training is shown beside it and at the end, not beside other stages."""
    if progress is None:
        return Display()
    return Display(
        progress=f"{progress.percent}%" if progress.percent is not None else "",
        eta=short_duration(progress.eta_seconds) if progress.eta_seconds is not None else "",
        loss=f"{progress.loss:.3g}" if progress.loss is not None and (ended or progress.stage in (None, Stage.TRAIN)) else "",
    )


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
