"""One pass over all versions of one model: every stage, weight, child and condition. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from finetune_operator.core.names import Object
from finetune_operator.core.plan import Action, Event
from finetune_operator.core.settings import Settings
from finetune_operator.modelversion.observed import Observed


@dataclass(frozen=True)
class ModelPlan:
    """What a pass over a model decided.

    `actions` in this order, then each of `statuses` (whole status by version name, written where it differs, in this order: a version
    that gives Production up comes before the one that takes it), then `events` ((version name, event) each). A pass that moves a
    version has no actions: its decision is durable before the next pass acts upon it.
    """

    statuses: Mapping[str, Object]
    actions: tuple[Action, ...] = ()
    events: tuple[tuple[str, Event], ...] = ()
    recheck_at: datetime | None = None


def plan_model(versions: Sequence[Object], observed: Observed, settings: Settings, now: datetime) -> ModelPlan:
    """The plan for all ModelVersion objects of one model in one namespace; those under deletion get no status and no children."""
    raise NotImplementedError("being written")
