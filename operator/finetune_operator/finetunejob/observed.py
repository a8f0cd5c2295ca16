"""What a pass over a FineTuneJob knows of the world. Pure: filled by observe.py, read by checks and plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from finetune_api.progress import TrainerStatus

from finetune_operator.core.facts import ClaimFact
from finetune_operator.core.plan import ActionProblem


@dataclass(frozen=True)
class PodFact:
    """A pod of a stage Job. `waiting` is (reason, message) of a container that cannot start (ErrImagePull, CreateContainerConfigError, …)."""

    name: str
    uid: str
    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"]
    node: str | None = None
    index: int = 0
    waiting: tuple[str, str] | None = None
    unschedulable: str | None = None
    unschedulable_since: datetime | None = None
    exit_code: int | None = None
    terminated_reason: str | None = None
    message: str | None = None
    """Termination message of the stage container, verbatim."""
    disruption: str | None = None
    """Reason of a true DisruptionTarget condition: the pod was preempted, evicted or its node went away."""
    deleting: bool = False
    gone_by: datetime | None = None
    """The end of its grace, where it is being deleted."""
    began: bool = True
    """Whether a container of it ever ran."""

    @property
    def alive(self) -> bool:
        return self.phase not in ("Succeeded", "Failed")


@dataclass(frozen=True)
class JobFact:
    """A batch Job of a stage. A Job with a true FailureTarget condition is Failed already: on a lost node Failed never comes."""

    name: str
    uid: str
    stage: str
    attempt: int
    state: Literal["Active", "Complete", "Failed"]
    created_at: datetime
    finished_at: datetime | None = None
    reason: str = ""
    message: str = ""
    deleting: bool = False
    pods: tuple[PodFact, ...] = ()
    refused: str | None = None
    """Message of the last FailedCreate event: why the Job controller cannot create its pod (quota, Pod Security)."""


@dataclass(frozen=True)
class VersionFact:
    """A ModelVersion of the model that the job publishes to."""

    name: str
    uid: str
    version: int
    run_digest: str
    job_uid: str
    stage: str = ""
    served_uri: str = ""
    served_sha256: str = ""


@dataclass(frozen=True)
class OlderJob:
    """The job that `resumeFrom` names."""

    name: str
    uid: str
    claim: str | None
    """Its storage claim; None where it never started."""


@dataclass(frozen=True)
class Observed:
    jobs: tuple[JobFact, ...] = ()
    """Stage Jobs whose controller is this job (by uid)."""
    orphans: tuple[PodFact, ...] = ()
    """Pods of this job (by its uid) whose stage Job is gone: it was deleted by hand, and they may still run."""
    claims: Mapping[str, ClaimFact | None] = field(default_factory=dict)
    """Claims that the spec names or that carry this job's uid label; None: looked for and not there."""
    config_maps: Mapping[str, Mapping[str, str] | None] = field(default_factory=dict)
    """`data` of each ConfigMap that the spec names; None: not there."""
    versions: tuple[VersionFact, ...] = ()
    older_job: OlderJob | None = None
    progress: TrainerStatus | None = None
    """The newest report of the present attempt's pod."""
    shares_one_node: bool = False
    """The job's own claim can be used on one node at a time: where prepare binds it, all other stages run."""
    small_hosts: tuple[str, ...] = ()
    """While the claim may not be bound yet: host names of nodes that could not hold each stage; empty where none could, or is known."""
    storage_class_missing: bool = False
    """Before the start: the StorageClass that the spec names is known not to be there."""
    claim_words: Mapping[str, str] = field(default_factory=dict)
    """Why a claim has no volume, in the words of its last Warning Event, where a pod waits for it."""
    largest_node_gpus: int | None = None
    """Most GPUs any node offers of the spec's resource; None: not known."""
    status_ca: str = ""
    """CA certificate (PEM) of the progress endpoint."""
    refused_pods: Mapping[str, ActionProblem] = field(default_factory=dict)
    """Before the start: the stages whose pods the API server would refuse now, and why."""
    refused_claim: ActionProblem | None = None
    """Likewise the job's own claim."""
    problems: tuple[ActionProblem, ...] = ()
    """Actions of earlier passes that could not be done."""
