"""FineTuneJob: what is asked, and what its status says."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, JsonValue

from finetune_api.section import Section, map_list, mutable, rules
from finetune_api.sections.adapter import Adapter
from finetune_api.sections.checkpoints import Checkpoints
from finetune_api.sections.data import Dataset, Preparation
from finetune_api.sections.evaluation import Evaluation
from finetune_api.sections.export import Export
from finetune_api.sections.method import Method
from finetune_api.sections.model import Model
from finetune_api.sections.pods import ImagePullSecret, PodMetadata, Resources, Scheduling, Stages
from finetune_api.sections.publish import Publish
from finetune_api.sections.quantization import Quantization
from finetune_api.sections.recovery import Recovery, ResumeFrom
from finetune_api.sections.storage import Retention, Storage
from finetune_api.sections.training import Training
from finetune_api.status import ConditionStatus, Long, Loose, Short


class FineTuneJobSpec(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(
            ("!has(self.publish) || size(self.export.gguf) > 0", "publish serves a GGUF: list at least one type in export.gguf"),
            (
                "self.quantization.type == 'None' || self.adapter.type == 'LoRA'",
                "quantization NF4 needs adapter LoRA: full weights cannot be trained in 4 bits",
            ),
            (
                "!has(self.publish) || !has(self.publish.serving.artifact) || self.publish.serving.artifact in self.export.gguf",
                "publish.serving.artifact must be one of export.gguf",
            ),
        )
    )

    model: Model = Field(description="The base model. Required.")
    datasets: Annotated[list[Dataset], Field(min_length=1, max_length=16)] = Field(
        description="Data sets; their rows are joined. Required.", json_schema_extra=map_list("name")
    )
    preparation: Preparation = Field(
        default=Preparation(), description="What happens to the data before any GPU is taken. Default: exact deduplication, 0.8/0.1/0.1."
    )
    method: Method = Field(default=Method(), description="How it is trained. Default: SFT.")
    adapter: Adapter = Field(default=Adapter(), description="What is trained. Default: LoRA.")
    quantization: Quantization = Field(default=Quantization(), description="How the frozen base is held. Default: None.")
    training: Training = Field(default=Training(), description="Training arguments. Default: 3 epochs, batch 16, cosine.")
    resources: Resources = Field(default=Resources(), description="Resources of the train stage. Default: one node, one GPU.")
    stages: Stages = Field(default=Stages(), description="Resources of the other stages. Default: 1 core, 4Gi each.")
    image: Annotated[str, Field(max_length=512, pattern=r"^[a-z0-9][-a-z0-9._/:@]*$")] | None = Field(
        default=None, description="Trainer image; must be allowed for the namespace. Default: the chart's."
    )
    scheduling: Scheduling = Field(default=Scheduling(), description="Where pods run. Default: anywhere.")
    pod_metadata: PodMetadata = Field(
        default=PodMetadata(), description="Labels and annotations of the pods. Default: none.", json_schema_extra=mutable()
    )
    image_pull_secrets: Annotated[list[ImagePullSecret], Field(max_length=8)] = Field(
        default=[], description="Secrets for pulling images. Default: none.", json_schema_extra=map_list("name")
    )
    checkpoints: Checkpoints = Field(default=Checkpoints(), description="Cadence and number of checkpoints. Default: Auto, 2 kept.")
    recovery: Recovery = Field(default=Recovery(), description="What happens after a failure. Default: three attempts.")
    evaluation: Evaluation = Field(default=Evaluation(), description="Metrics and gates. Default: no gate.")
    export: Export = Field(default=Export(), description="What is made of the result. Default: merged safetensors.")
    storage: Storage = Field(description="Where the files lie. Required.")
    publish: Publish | None = Field(default=None, description="Register the result as a ModelVersion. Default: it is not registered.")
    retention: Retention = Field(
        default=Retention(), description="What is kept. Default: checkpoints go with success, artifacts with the last owner."
    )
    run_id: Annotated[str, Field(max_length=63, pattern=r"^[-A-Za-z0-9._]+$")] | None = Field(
        default=None, description="A new value asks for another run of the same content. No default."
    )
    resume_from: ResumeFrom | None = Field(default=None, description="Take over stages of an older job. No default.")
    suspend: bool = Field(
        default=False, description="Stop, keeping the work so far; false goes on. Default: false.", json_schema_extra=mutable()
    )
    active_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        le=31_536_000,
        description="Seconds the run may take, suspended time not counted. No default.",
        json_schema_extra=mutable(),
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=31_536_000,
        description="Seconds after the end until the job is deleted. No default (kept).",
        json_schema_extra=mutable(),
    )


class Phase(StrEnum):
    """A view of the conditions for people and columns; no code reads it."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    TRAINING = "Training"
    RESUMING = "Resuming"
    SUSPENDED = "Suspended"
    PACKAGING = "Packaging"
    EVALUATING = "Evaluating"
    PUBLISHING = "Publishing"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ConditionType(StrEnum):
    SUCCEEDED = "Succeeded"
    """Unknown until the job has ended, then True or False for good."""
    VALIDATED = "Validated"
    PREPARED = "Prepared"
    TRAINED = "Trained"
    PACKAGED = "Packaged"
    EVALUATED = "Evaluated"
    PUBLISHED = "Published"
    SUSPENDED = "Suspended"
    RESOURCES_APPLIED = "ResourcesApplied"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Images(Loose):
    """Images fixed at start: an upgrade of the chart changes only what starts later."""

    trainer: Annotated[str, Field(max_length=512)]
    server: Annotated[str, Field(max_length=512)]


class CurrentAttempt(Loose):
    """The attempt that is under way or due; written before its Job exists."""

    stage: Short
    number: int
    failures: int = 0
    """Earlier attempts of this stage that count against recovery.maxAttempts."""
    not_before: Short | None = None
    report: bool = False
    """A CPU pod that only re-emits the answer of a finished stage whose pod vanished before it was read."""


class AttemptRecord(Loose):
    stage: Short
    number: int
    reason: Short
    counted: bool = True
    start: Short | None = None
    end: Short | None = None
    node: Short | None = None
    exit_code: int | None = None
    resumed_from_step: int | None = None
    message: Long = ""


class ProgressStatus(Loose):
    stage: Short = ""
    percent: int | None = None
    eta_seconds: int | None = None
    step: int | None = None
    total_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    gpu_memory_bytes: int | None = None
    last_update_time: Short | None = None


class Display(Loose):
    """Strings for the columns, which cannot format; no code reads them."""

    progress: Short = ""
    eta: Short = ""
    loss: Short = ""


class VersionRef(Loose):
    name: Short
    version: int


Free = Annotated[dict[str, JsonValue], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]


class FineTuneJobStatus(Loose):
    phase: Phase = Phase.PENDING
    conditions: Annotated[list[ConditionStatus], Field(max_length=32)] = []
    observed_generation: int = 0
    start_time: Short | None = None
    completion_time: Short | None = None
    active_seconds: int = 0
    active_since: Short | None = None
    run_digest: Short | None = None
    images: Images | None = None
    attempt: CurrentAttempt | None = None
    attempt_count: int = 0
    attempts: Annotated[list[AttemptRecord], Field(max_length=20)] = []
    progress: ProgressStatus | None = None
    display: Display = Display()
    plan: Free | None = None
    dataset: Free | None = None
    base_model: Long | None = None
    base_revision: Long | None = None
    checkpoint: Free | None = None
    evaluation: Free | None = None
    parity: Annotated[list[Free], Field(max_length=16)] = []
    quantization_gap: float | None = None
    artifacts: Annotated[list[Free], Field(max_length=16)] = []
    model_version_ref: VersionRef | None = None


COLUMNS: list[tuple[str, str, str, int]] = [
    ("Phase", "string", ".status.phase", 0),
    ("Progress", "string", ".status.display.progress", 0),
    ("ETA", "string", ".status.display.eta", 0),
    ("Loss", "string", ".status.display.loss", 0),
    ("Method", "string", ".spec.method.type", 0),
    ("Model", "string", ".spec.publish.model", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Attempt", "integer", ".status.attemptCount", 1),
    ("Nodes", "integer", ".spec.resources.nodes", 1),
    ("Version", "string", ".status.modelVersionRef.name", 1),
    ("Reason", "string", '.status.conditions[?(@.type=="Succeeded")].reason', 1),
]
"""Printer columns: (name, type, JSON path, priority; 1 is shown with -o wide)."""
