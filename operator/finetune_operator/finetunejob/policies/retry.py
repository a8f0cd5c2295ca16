"""What ended an attempt, does it count, and is another worth it? Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from finetune_api.answer import StageResult, read_answer
from finetune_api.finetunejob import AttemptRecord
from finetune_api.outcome import SIGNALLED, ExitCode, Reason, Retry, retry_of

from finetune_operator.finetunejob.observed import JobFact, PodFact
from finetune_operator.finetunejob.policies.refusal import memory_field

_FIRST_BACKOFF = timedelta(seconds=10)
_LONGEST_BACKOFF = timedelta(minutes=5)
_WATCH_LAG = timedelta(seconds=10)
_WORKED_FOR_A_WHILE = timedelta(minutes=10)
_UNSAID: dict[int, Reason] = {
    ExitCode.CRASH: Reason.CRASHED,
    ExitCode.OUT_OF_MEMORY: Reason.OUT_OF_MEMORY,
    ExitCode.GPU_NOT_VISIBLE: Reason.GPU_NOT_VISIBLE,
    ExitCode.STORAGE: Reason.STORAGE_ERROR,
}
"""What an exit code means whose pod said nothing."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt failed, and what follows; `reason` may be a word of an image of the user's own."""

    reason: str
    message: str
    retry: Retry
    exit_code: int | None = None
    node: str | None = None
    result: StageResult | None = None

    @property
    def counted(self) -> bool:
        """It uses up one of recovery.maxAttempts."""
        return self.retry is not Retry.UNCOUNTED

    @property
    def final(self) -> bool:
        """No further attempt can help."""
        return self.retry is Retry.NEVER


def ended(reason: Reason, message: str, **known: Any) -> Outcome:
    """An ending that the operator itself sees: what follows is in the reason's row."""
    assert reason.retry is not None, f"no attempt ends with {reason}"
    return Outcome(reason, message, reason.retry, **known)


def answer(job: JobFact) -> StageResult | None:
    """What rank 0's pod said when it ended; None where that cannot be read any more."""
    pod = _first(job)
    return read_answer(pod.message) if pod and pod.message else None


def last_words_by(job: JobFact) -> datetime | None:
    """Until when the pod of a Job that ended may still be seen to end: two watches bring the news, in any order. None: it has.

    One that was never seen may have vanished, or be news that is on its way.
    """
    ended = bool(job.pods) and all(pod.phase in ("Succeeded", "Failed") for pod in job.pods)
    return None if ended or job.state == "Active" or job.finished_at is None else job.finished_at + _WATCH_LAG


def _first(job: JobFact) -> PodFact | None:
    return min(job.pods, key=lambda pod: pod.index, default=None)


def outcome(job: JobFact) -> Outcome:
    """Why a failed Job failed: the trainer's own words where there are any, else what kubelet and Job controller say."""
    pod = next((pod for pod in job.pods if pod.phase == "Failed"), None) or _first(job)
    if pod is None:
        if job.reason == "PodFailurePolicy":
            return ended(Reason.STAGE_FAILED, f"stage {job.stage} ended with a final error, but its pod is gone: {job.message}")
        return ended(Reason.NODE_LOST, f"the pod of stage {job.stage} vanished with its node")
    result = answer(job)
    known: dict[str, Any] = {"exit_code": pod.exit_code, "node": pod.node, "result": result}
    told = _by_the_cluster(job, pod, known)
    if told:
        return told
    assert pod.exit_code is not None
    if pod.exit_code == ExitCode.TERMINATED:
        words = (result.message if result else "") or "stopped from outside"
        return Outcome(Reason.TERMINATED, f"pod {pod.name}: {words}", Retry.UNCOUNTED if pod.deleting else retry_of(pod.exit_code), **known)
    reason = result.reason if result and result.reason != Reason.COMPLETED else _reason(pod.exit_code)
    message = (result.message if result else "") or f"stage {job.stage} ended with exit code {pod.exit_code}; see the log of pod {pod.name}"
    return Outcome(reason, message, retry_of(pod.exit_code), **known)


def _by_the_cluster(job: JobFact, pod: PodFact, known: dict[str, Any]) -> Outcome | None:
    """What kubelet, scheduler or eviction ended, whatever the stage itself would have said; None: the stage ended by itself."""
    if pod.disruption:
        return ended(Reason.PREEMPTED, f"pod {pod.name} was stopped: {pod.disruption}", **known)
    if pod.terminated_reason == "OOMKilled":
        return ended(Reason.OUT_OF_MEMORY, f"stage {job.stage} went over its memory limit; raise {memory_field(job.stage)}", **known)
    if pod.terminated_reason == "ContainerStatusUnknown":
        return ended(Reason.NODE_LOST, f"the node of pod {pod.name} went down while it ran", **known)
    if pod.exit_code is None and not pod.began:
        words = pod.terminated_reason or job.message or "no reason is given"
        return ended(Reason.POD_REJECTED, f"node {pod.node} turned pod {pod.name} away before anything ran: {words}", **known)
    if pod.exit_code is None:
        return ended(
            Reason.POD_FAILED, f"pod {pod.name} failed without an exit code: {pod.terminated_reason or job.message or 'unknown'}", **known
        )
    return None


def _reason(exit_code: int) -> Reason:
    return _UNSAID.get(exit_code, Reason.KILLED if exit_code >= SIGNALLED else Reason.STAGE_FAILED)


def next_number(stage: str, jobs: Iterable[JobFact], records: Iterable[AttemptRecord]) -> int:
    """Of a stage's next attempt: 1, unless it was begun before. One that was suspended goes on under its number."""
    used = [job.attempt for job in jobs if job.stage == stage]
    used += [record.number for record in records if record.stage == stage and record.reason != Reason.SUSPENDED]
    return max(used, default=0) + 1


def failures(stage: str, records: Iterable[AttemptRecord]) -> int:
    """Attempts of a stage that count, of those that status tells of."""
    return sum(record.counted for record in records if record.stage == stage)


def was_made_anew(stage: str, records: Iterable[AttemptRecord]) -> bool:
    """Whether a report found nothing of a finished stage before."""
    return any(record.stage == stage and record.reason == Reason.STAGE_MISSING and not record.counted for record in records)


def interruptions(before: int, outcome: Outcome, job: JobFact, now: datetime) -> int:
    """Attempts in a row that were interrupted soon after their start, this one included; 0 after one that worked for a while."""
    worked = (job.finished_at or now) - job.created_at
    return 0 if outcome.counted or worked >= _WORKED_FOR_A_WHILE else before + 1


def backoff(failures: int, interrupted: int = 0) -> timedelta:
    """Wait before the next attempt: after `failures` counted ones 10 s, 20 s, … up to 5 min.

    An interruption costs no wait; of `interrupted` ones in a row the second and later do, as failures.
    """
    repeats = failures or interrupted - 1
    return timedelta() if repeats <= 0 else min(_FIRST_BACKOFF * 2 ** min(repeats - 1, 10), _LONGEST_BACKOFF)
