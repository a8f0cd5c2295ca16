"""The status of a job as a pass reads it. Pure."""

from __future__ import annotations

from finetune_api.finetunejob import ConditionType, FineTuneJobStatus
from finetune_api.run import Stage

from finetune_operator.core import unreadable
from finetune_operator.core.names import Object
from finetune_operator.core.unreadable import Unreadable

CONDITION: dict[Stage, ConditionType] = {
    Stage.PREPARE: ConditionType.PREPARED,
    Stage.TRAIN: ConditionType.TRAINED,
    Stage.PACKAGE: ConditionType.PACKAGED,
    Stage.EVALUATE: ConditionType.EVALUATED,
}
"""Which condition tells of a stage."""


def read_status(job: Object) -> FineTuneJobStatus | Unreadable:
    return unreadable.read_status(job, FineTuneJobStatus, views=("phase", "display"))
