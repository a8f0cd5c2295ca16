"""A version in traffic of which something cannot be read: what is known of it keeps its place, so that the others can go on. Pure.

It is not moved, its pods and its share of traffic stay as they are, and no other version takes a step beside it. Versions that leave
(aborted, retired) or return do so, pods of the others follow their specs, and the route is written.
"""

from __future__ import annotations

from typing import Any

from finetune_api.modelversion import ModelVersionSpec, ModelVersionStatus, Stage
from finetune_api.sections.rollout import Rollout, StageName, Step, Traffic
from pydantic import ValidationError

from finetune_operator.core.unreadable import Unreadable
from finetune_operator.modelversion.observed import RouteFact
from finetune_operator.modelversion.policies.traffic import written_settings
from finetune_operator.modelversion.versions import Place, Version

_PROVEN = ("model", "version", "artifacts", "lineage")


def held_place(item: Unreadable, route: RouteFact | None) -> Version | None:
    """The version as the route has it; None where not even what it serves can be read."""
    raw, status = item.object["spec"], item.object["status"]
    try:
        spec = ModelVersionSpec.model_validate({name: raw[name] for name in _PROVEN if name in raw})
    except ValidationError:
        return None
    stage, index = Stage(status["stage"]), _number(status.get("stepIndex"), most=15) or 0
    asked, sent = _asked_weight(raw, index), _number(status.get("weight"), most=100)
    weight = (sent or 0) if asked is None else asked
    settings = written_settings(route, item.object["metadata"]["namespace"])
    traffic = Traffic(type="GatewayAPI", gateway_api=settings) if settings else Traffic()
    rollout = Rollout(traffic=traffic, steps=_steps(stage, index, weight))
    spec = spec.model_copy(update={"rollout": rollout})
    return Version(item.object, spec, ModelVersionStatus(stage=stage, step_index=index), Place(stage, index), is_unread=True)


def _asked_weight(raw: Any, index: int) -> int | None:
    """What its present step asks for, where that can be read: status has less while its pods do not answer."""
    try:
        return _number(raw["rollout"]["steps"][index]["weight"], most=100)
    except (KeyError, IndexError, TypeError):
        return None


def _number(value: Any, *, most: int) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most else None


def _steps(stage: Stage, index: int, weight: int) -> list[Step]:
    """Steps of which the one of that index is the present one."""
    present = StageName(stage.value)
    if present is StageName.PRODUCTION:
        return [Step(name="before", stage=StageName.CANARY, weight=0)] * index + [Step(name="present", stage=present)]
    return [Step(name="present", stage=present, weight=weight)] * (index + 1) + [Step(name="next", stage=StageName.PRODUCTION)]
