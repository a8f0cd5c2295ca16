"""The status of a job as a pass reads it. Pure."""

from __future__ import annotations

from finetune_api.finetunejob import ConditionType, FineTuneJobStatus
from finetune_api.outcome import Reason
from finetune_api.run import Stage
from pydantic import ValidationError

from finetune_operator.core.names import Object
from finetune_operator.core.unreadable import Unreadable, problem_of

CONDITION: dict[Stage, ConditionType] = {
    Stage.PREPARE: ConditionType.PREPARED,
    Stage.TRAIN: ConditionType.TRAINED,
    Stage.PACKAGE: ConditionType.PACKAGED,
    Stage.EVALUATE: ConditionType.EVALUATED,
}
"""Which condition tells of a stage."""

_VIEWS = ("phase", "display")
"""Written for people and columns: whatever another release wrote there, it is not read."""


def read_status(job: Object) -> FineTuneJobStatus | Unreadable:
    status = job.get("status") or {}
    if isinstance(status, dict):
        status = {name: member for name, member in status.items() if name not in _VIEWS}
    try:
        return FineTuneJobStatus.model_validate(status)
    except ValidationError as error:
        return Unreadable(job, Reason.INVALID_STATUS, problem_of("status", error))
