"""The only file that sequences I/O: observe → plan → act → one status write → events."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from finetune_operator.core.containment import merge_patch, without_nulls
from finetune_operator.core.names import Object
from finetune_operator.core.plan import Action, ActionProblem, Delete, Event
from finetune_operator.engine.actions import Actor, Done, NotLeading, Stale, problem_of
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.queue import Outcome
from finetune_operator.engine.recorder import Recorder
from finetune_operator.engine.refusals import Refusals
from finetune_operator.engine.store import Key
from finetune_operator.engine.world import World
from finetune_operator.kube.errors import ApiError, Retryable, Unreachable

log = logging.getLogger(__name__)

_FAILURES_TOLD = 4
"""Failures in a row of the API server (5xx, 429) on a key until its status tells of them: seconds, by the queue's back-off."""


@dataclass(frozen=True)
class Work:
    """What is to be done about a key: the plans of both kinds in one shape. `subjects` are the objects whose status it may write."""

    subjects: Mapping[str, Object]
    statuses: Mapping[str, Object]
    actions: tuple[Action, ...] = ()
    events: tuple[tuple[str, Event], ...] = ()
    recheck_at: datetime | None = None
    status_first: bool = False


Planner = Callable[[Key, World, datetime], Awaitable[Work | None]]
"""Observes and plans; None: there is nothing (any more) to plan for."""


@dataclass
class Reconciler:
    """Runs passes. One instance per process; passes over different keys may interleave, those over one key never do."""

    actor: Actor
    world: World
    recorder: Recorder
    planners: Mapping[str, Planner]
    metrics: Metrics = field(default_factory=Metrics)
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    _failures: dict[Key, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._refusals = Refusals(lambda: self.now())

    async def reconcile(self, key: Key) -> Outcome:
        """One pass. Raises NotLeading: this replica must not write any more."""
        with self.metrics.passes.labels(key.kind).time():
            try:
                return await self._pass(key)
            except Stale:
                return Outcome(again=True)
            except NotLeading:
                raise
            except Retryable as error:
                self._failed(key, type(error).__name__, error.message)
                return Outcome(failed=True, retry_after_s=error.retry_after_s)
            except ApiError as error:
                self._failed(key, type(error).__name__, error.message)
                return Outcome(failed=True)
            except Exception:
                self.metrics.pass_errors.labels(key.kind, "Bug").inc()
                log.exception("pass failed", extra=_about(key))
                return Outcome(failed=True)

    async def _pass(self, key: Key) -> Outcome:
        work = await self._plan(key)
        if work is None:
            self._remember(key, ())
            self._failures.pop(key, None)
            return Outcome()
        if work.status_first and self._differing(work):
            written = await self._write_statuses(key, work)
            return Outcome(again=written, recheck_at=work.recheck_at)
        before = self.world.problems.get(key, ())
        acted, problems = await self._act(key, work.actions)
        self._remember(key, problems)
        if problems != before:
            # the status must tell what just happened; what else this plan wants is for the next pass
            replanned = await self._plan(key)
            work = replanned if replanned and not replanned.status_first else work
        written = await self._write_statuses(key, work)
        moments = [moment for moment in (work.recheck_at, self._refusals.until(key)) if moment is not None]
        return Outcome(again=acted or written or problems != before, failed=bool(problems), recheck_at=min(moments, default=None))

    async def _plan(self, key: Key) -> Work | None:
        return await self.planners[key.kind](key, self.world, self.now())

    async def _act(self, key: Key, actions: tuple[Action, ...]) -> tuple[bool, tuple[ActionProblem, ...]]:
        """Whether anything was written, and what was refused. Actions are done in order.

        After a problem the rest of its concern waits, for it may stand on what failed; deletions go on. The first failure of the API
        server is raised once everything else was tried.
        """
        acted, problems = False, list[ActionProblem]()
        stopped: set[str] = set()
        failure: Retryable | None = None
        for action in actions:
            if action.concern in stopped and not isinstance(action, Delete):
                continue
            try:
                done = await self._do(key, action)
            except Unreachable:
                raise
            except Retryable as error:
                failure = failure or error
                stopped.add(action.concern)
                continue
            if isinstance(done, ActionProblem):
                problems.append(done)
                stopped.add(action.concern)
            else:
                acted = acted or done
        if failure:
            raise failure
        self._failures.pop(key, None)
        return acted, tuple(problems)

    async def _do(self, key: Key, action: Action) -> Done:
        """An action; a failure of the API server itself is worth a condition only when it lasts, and no answer at all never is."""
        held = self._refusals.problem(key, action)
        if held:
            return held
        asked_s = None
        try:
            done = await self.actor.do(action)
        except Unreachable:
            raise
        except Retryable as error:
            self._failures[key] = self._failures.get(key, 0) + 1
            if self._failures[key] < _FAILURES_TOLD:
                raise
            done, asked_s = problem_of(action, error), error.retry_after_s
        if isinstance(done, ActionProblem):
            self._refusals.hold(key, action, done, asked_s)
        return done

    def _remember(self, key: Key, problems: tuple[ActionProblem, ...]) -> None:
        if problems:
            self.world.problems[key] = problems
        else:
            self.world.problems.pop(key, None)
            self._refusals.forget(key)

    def _differing(self, work: Work) -> dict[str, Object]:
        """Merge patches of the statuses that differ from the live ones, by name, in the plan's order."""
        patches = {
            name: merge_patch(work.subjects[name].get("status") or {}, without_nulls(status))
            for name, status in work.statuses.items()
            if name in work.subjects
        }
        return {name: patch for name, patch in patches.items() if patch}

    async def _write_statuses(self, key: Key, work: Work) -> bool:
        """True where any was written."""
        patches = self._differing(work)
        for name, patch in patches.items():
            live = await self.actor.write_status(work.subjects[name], patch)
            if merge_patch(live.get("status") or {}, without_nulls(work.statuses[name])):
                log.error("the API server changed a status that was written: is the CRD older than the operator?", extra={"object": name})
            _log_phase(key, name, work)
        for name, event in work.events:
            if name in patches:
                self.recorder.record(work.subjects[name], event)
                log.info("%s %s: %s: %s", key.kind, name, event.reason, event.message, extra=_about(key))
        return bool(patches)

    def _failed(self, key: Key, reason: str, message: str) -> None:
        self.metrics.pass_errors.labels(key.kind, reason).inc()
        log.warning("pass not finished: %s: %s", reason, message, extra=_about(key))


def _log_phase(key: Key, name: str, work: Work) -> None:
    before, after = (_shown(status) for status in (work.subjects[name].get("status"), work.statuses[name]))
    if before != after:
        log.info("%s %s is %s (was %s)", key.kind, name, after, before or "new", extra=_about(key))


def _shown(status: Object | None) -> str:
    """What people see of a status: a job's phase, a version's stage."""
    return str((status or {}).get("phase") or (status or {}).get("stage") or "")


def _about(key: Key) -> dict[str, str]:
    return {"key": "/".join(key)}
