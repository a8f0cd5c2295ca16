"""The kinds: how a pass over each key observes and plans."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from finetune_operator.core import names
from finetune_operator.engine.reconcile import Planner, Work
from finetune_operator.engine.store import MODEL, Key
from finetune_operator.engine.world import World
from finetune_operator.finetunejob import plan as finetunejob_plan
from finetune_operator.finetunejob.observe import observe as observe_job
from finetune_operator.modelversion import plan as modelversion_plan
from finetune_operator.modelversion.observe import observe as observe_model
from finetune_operator.modelversion.observe import with_successors


async def plan_job(key: Key, world: World, now: datetime) -> Work | None:
    job = world.store.get(key.kind, key.namespace, key.name)
    if job is None:
        return None
    plan = finetunejob_plan.plan(job, await observe_job(job, world), world.settings, now)
    return Work(
        subjects={key.name: job},
        statuses={key.name: plan.status},
        actions=plan.actions,
        events=tuple((key.name, event) for event in plan.events),
        recheck_at=plan.recheck_at,
        status_first=plan.status_first,
    )


async def plan_model(key: Key, world: World, now: datetime) -> Work | None:
    seen = world.store.of(key, names.MODELVERSION)
    if not seen:
        world.planned_since.pop(key, None)
        return None
    versions = await with_successors(key, seen, world)
    world.planned_since.setdefault(key, now.replace(microsecond=0))
    plan = modelversion_plan.plan_model(versions, await observe_model(key, versions, world), world.settings, now)
    return Work(
        subjects={version["metadata"]["name"]: version for version in versions},
        statuses=plan.statuses,
        actions=plan.actions,
        events=plan.events,
        recheck_at=plan.recheck_at,
    )


PLANNERS: Mapping[str, Planner] = {names.FINETUNEJOB: plan_job, MODEL: plan_model}
