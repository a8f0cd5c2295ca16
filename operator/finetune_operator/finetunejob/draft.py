"""A plan in the making: the status as it was, the conditions as they will be, and what is to be done. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from finetune_api.finetunejob import ConditionType, FineTuneJobStatus
from finetune_api.outcome import Reason
from finetune_api.status import ConditionStatus

from finetune_operator.core import conditions
from finetune_operator.core.conditions import Condition, Status
from finetune_operator.core.names import Object
from finetune_operator.core.plan import Action, Delete, Event, Plan
from finetune_operator.core.settings import Settings
from finetune_operator.finetunejob.observed import JobFact, Observed, PodFact
from finetune_operator.finetunejob.policies import progress
from finetune_operator.finetunejob.policies.phase import phase_of
from finetune_operator.finetunejob.status import CONDITION


@dataclass
class Draft:
    """One pass over one job. Steps change `status` (`before` is what was read); `plan()` reads it off once at the end."""

    job: Object
    before: FineTuneJobStatus
    observed: Observed
    settings: Settings
    now: datetime
    status: FineTuneJobStatus = field(init=False)
    actions: list[Action] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    status_first: bool = False
    reconciling: str = ""
    stalled: tuple[str, str] | None = None
    """(reason, message) of what needs a person."""
    _conditions: dict[str, Condition] = field(init=False)
    _rechecks: list[datetime] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.status = self.before.model_copy()
        self._conditions = {type: _carried(type, self.was(type)) for type in ConditionType}

    def was(self, type: ConditionType) -> ConditionStatus | None:
        """The condition as it was read."""
        return conditions.find(self.before.conditions, type)

    def reason_was(self, type: ConditionType) -> str:
        old = self.was(type)
        return old.reason if old else ""

    def set(self, type: ConditionType, status: Status, reason: str, message: str = "") -> None:
        self._conditions[type] = Condition(type, status, reason, message)

    def reason_of(self, type: ConditionType) -> str:
        """As it will be."""
        return self._conditions[type].reason

    def is_true(self, type: ConditionType) -> bool:
        return self._conditions[type].status == "True"

    def status_of(self, type: ConditionType) -> Status:
        return self._conditions[type].status

    def recheck(self, moment: datetime) -> None:
        self._rechecks.append(moment)

    def event(self, reason: str, message: str, *, warning: bool = False) -> None:
        self.events.append(Event("Warning" if warning else "Normal", reason, message))

    def stop(self, fact: JobFact) -> None:
        """Its pod gets its grace; the Job is there until the pod is gone."""
        if not fact.deleting:
            self.actions.append(Delete("batch/v1", "Job", self.job["metadata"]["namespace"], fact.name, fact.uid, "Foreground"))

    @property
    def has_been_prepared(self) -> bool:
        """Whether files of the run were ever on its claim, also while stages are looked for there again."""
        return self.is_true(ConditionType.PREPARED) or self.status_of(ConditionType.TRAINED) != "Unknown"

    @property
    def live_jobs(self) -> list[JobFact]:
        return [job for job in self.observed.jobs if job.state == "Active"]

    @property
    def alive_pods(self) -> list[PodFact]:
        """Pods that may still write to the storage, whatever became of their Jobs."""
        of_jobs = [pod for job in self.observed.jobs if job.state != "Complete" for pod in job.pods]
        return [pod for pod in (*of_jobs, *self.observed.orphans) if pod.alive]

    def plan(self) -> Plan:
        self._set_reconciling()
        self._set_succeeded()
        status, generation = self.status, self.job["metadata"].get("generation", 0)
        shown = [self._conditions[type] for type in ConditionType if type is not ConditionType.PUBLISHED or self._publishes()]
        status.observed_generation = generation
        status.conditions = conditions.merge(self.before.conditions, shown, generation, self.now)
        status.display = progress.display(status.progress, ended=self.status_of(ConditionType.SUCCEEDED) != "Unknown")
        status.phase = phase_of(status)
        return Plan(
            status=status.wire(),
            actions=() if self.status_first else tuple(self.actions),
            events=tuple(self.events),
            recheck_at=min(self._rechecks, default=None),
            status_first=self.status_first,
        )

    def _publishes(self) -> bool:
        return bool((self.job.get("spec") or {}).get("publish"))

    def _set_reconciling(self) -> None:
        """kstatus: Stalled is Failed, Reconciling is InProgress, neither is Current."""
        if self.stalled:
            self.set(ConditionType.STALLED, "True", *self.stalled)
        else:
            self.set(ConditionType.STALLED, "False", Reason.NOT_STALLED)
        if self.reconciling and not self.stalled:
            self.set(ConditionType.RECONCILING, "True", self.reconciling)
        else:
            self.set(ConditionType.RECONCILING, "False", self.stalled[0] if self.stalled else Reason.SETTLED)

    def _set_succeeded(self) -> None:
        """Until the end it says what the run is at, or what it waits for: columns show its reason."""
        if self.status_of(ConditionType.SUCCEEDED) == "Unknown":
            self.set(ConditionType.SUCCEEDED, "Unknown", *self._at_present())

    def _at_present(self) -> tuple[str, str]:
        """(reason, message)"""
        if self.stalled:
            return self.stalled
        attempt, suspended = self.status.attempt, self._conditions[ConditionType.SUSPENDED]
        if suspended.status == "True":
            return suspended.reason, suspended.message
        if attempt and self.status_of(CONDITION[attempt.stage]) == "False":
            stage = self._conditions[CONDITION[attempt.stage]]
            return stage.reason, stage.message
        return self.reconciling or Reason.WAITING, ""


def _carried(type: ConditionType, old: ConditionStatus | None) -> Condition:
    return Condition(type, old.status, old.reason, old.message) if old else Condition(type, "Unknown", Reason.WAITING)
