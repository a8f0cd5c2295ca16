"""Which phase do conditions and attempt show? Pure."""

from __future__ import annotations

from collections.abc import Callable

from finetune_api.finetunejob import ConditionType, FineTuneJobStatus, Phase
from finetune_api.outcome import Reason
from finetune_api.run import Stage

from finetune_operator.core.conditions import find
from finetune_operator.finetunejob.status import CONDITION


def phase_of(status: FineTuneJobStatus) -> Phase:
    """The first row that holds. Computed last and written for people: a job that is refused while it runs stands where it stood."""
    return next(phase for phase, holds in _ROWS if holds(status))


def _is(status: FineTuneJobStatus, type: ConditionType, wanted: str) -> bool:
    condition = find(status.conditions, type)
    return condition is not None and condition.status == wanted


def _waits_for_its_start(status: FineTuneJobStatus) -> bool:
    return status.start_time is None and not (_is(status, ConditionType.VALIDATED, "True") and _is(status, ConditionType.SUSPENDED, "True"))


def _is_refused(status: FineTuneJobStatus) -> bool:
    return status.start_time is None and _is(status, ConditionType.VALIDATED, "False") and _is(status, ConditionType.STALLED, "True")


def _is_suspended(status: FineTuneJobStatus) -> bool:
    condition = find(status.conditions, ConditionType.SUSPENDED)
    return condition is not None and (condition.status == "True" or condition.reason == Reason.SUSPENDING)


def _is_tried_again(status: FineTuneJobStatus) -> bool:
    """Not the stage's first attempt, and no pod of this one has reported yet."""
    stage, attempt = _present_stage(status), status.attempt
    return any(record.stage == stage for record in status.attempts) and not (attempt and attempt.progress_seen)


def _present_stage(status: FineTuneJobStatus) -> Stage | None:
    """The first one that is not done; None: all are."""
    return next((stage for stage in Stage if not _is(status, CONDITION[stage], "True")), None)


_ROWS: tuple[tuple[Phase, Callable[[FineTuneJobStatus], bool]], ...] = (
    (Phase.SUCCEEDED, lambda status: _is(status, ConditionType.SUCCEEDED, "True")),
    (Phase.FAILED, lambda status: _is(status, ConditionType.SUCCEEDED, "False")),
    (Phase.REFUSED, _is_refused),
    (Phase.PENDING, _waits_for_its_start),
    (Phase.SUSPENDED, _is_suspended),
    (Phase.PUBLISHING, lambda status: _present_stage(status) is None),
    (Phase.RESUMING, _is_tried_again),
    (Phase.PREPARING, lambda status: _present_stage(status) is Stage.PREPARE),
    (Phase.TRAINING, lambda status: _present_stage(status) is Stage.TRAIN),
    (Phase.PACKAGING, lambda status: _present_stage(status) is Stage.PACKAGE),
    (Phase.EVALUATING, lambda status: True),
)
