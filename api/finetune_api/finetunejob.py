"""FineTuneJob: what is asked, and what its status says."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from finetune_api.answer import Artifact, CheckpointReport, DatasetReport, EvaluationReport, MemoryPlan, ParityReport
from finetune_api.run import Stage
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
from finetune_api.status import AtMost, ConditionStatus, Long, Loose, Short, Time, atomic_list


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
    REFUSED = "Refused"
    """Not started, and it will not be before a person has done what condition Validated says."""
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

    trainer: Annotated[str, Field(max_length=512)] = Field(description="Image of the stages.")
    server: Annotated[str, Field(max_length=512)] = Field(description="Image that the ModelVersion is served with.")


class CurrentAttempt(Loose):
    """The attempt that is under way or due; written before its Job exists."""

    stage: Stage = Field(description="Stage that it is of.")
    number: int = Field(description="Number within the stage, from 1: the Job is <job>-<stage>-<number>.")
    failures: int = Field(default=0, description="Earlier attempts of this stage that count against recovery.maxAttempts.")
    interruptions: int | None = Field(
        default=None,
        description="Attempts of this stage in a row that were interrupted within ten minutes of their start: each makes the next wait longer.",
    )
    not_before: Time | None = Field(default=None, description="When its Job may be made at the earliest (RFC 3339); absent: at once.")
    report: bool | None = Field(
        default=None,
        description="True for a CPU pod that only repeats the answer of a finished stage whose pod vanished before it was read.",
    )
    progress_seen: bool | None = Field(default=None, description="True once its pod has reported progress.")


class AttemptRecord(Loose):
    stage: Short = Field(description="Stage that it was of.")
    number: int = Field(description="Number within the stage, from 1.")
    reason: Short = Field(description="Why it ended, in one PascalCase word.")
    counted: bool = Field(default=True, description="Whether it used up one of recovery.maxAttempts.")
    start: Short | None = Field(default=None, description="When its Job was made (RFC 3339).")
    end: Short | None = Field(default=None, description="When it ended (RFC 3339).")
    node: Short | None = Field(default=None, description="Node that its pod ran on.")
    exit_code: int | None = Field(default=None, description="Exit code of its pod.")
    resumed_from_step: int | None = Field(default=None, description="Step of the checkpoint that it went on from.")
    message: Annotated[str, AtMost(512)] = Field(default="", description="Why it ended, in a sentence.")


class ProgressStatus(Loose):
    stage: Short | None = Field(default=None, description="Stage that reports.")
    percent: int | None = Field(default=None, description="Share of the stage that is done.")
    eta_seconds: int | None = Field(default=None, description="Seconds until the stage is expected to end.")
    step: int | None = Field(default=None, description="Optimizer steps that are done.")
    total_steps: int | None = Field(default=None, description="Optimizer steps in all.")
    epoch: float | None = Field(default=None, description="Passes over the data that are done.")
    loss: float | None = Field(default=None, description="Training loss.")
    eval_loss: float | None = Field(default=None, description="Loss on the validation rows.")
    learning_rate: float | None = Field(default=None, description="Present learning rate.")
    tokens_per_second: float | None = Field(default=None, description="Tokens trained per second.")
    gpu_memory_bytes: int | None = Field(default=None, description="Most memory in use on a GPU, in bytes.")
    last_update_time: Time | None = Field(default=None, description="When a pod's report was last written here (RFC 3339).")


class StageWarning(Loose):
    stage: Short = Field(description="Stage that warns.")
    message: Long = Field(description="What is to be minded.")


class Display(Loose):
    """Strings for the columns, which cannot format; no code reads them."""

    progress: Short = Field(default="", description="Share of the stage that is done, with a percent sign.")
    eta: Short = Field(default="", description="Time until the stage is expected to end, such as 1h24m.")
    loss: Short = Field(default="", description="Training loss, to three digits.")


class VersionRef(Loose):
    name: Short = Field(description="Name of the ModelVersion.")
    version: int = Field(description="Its number.")


ATTEMPTS_KEPT = 20
WARNINGS_KEPT = 20


class FineTuneJobStatus(Loose):
    """What a pass reads, and what it builds: its members are assigned, those of its parts are not. `phase` and `display` are never read."""

    model_config = ConfigDict(frozen=False, validate_assignment=True)

    phase: Phase = Field(default=Phase.PENDING, description="A view of the conditions for people and columns; no code reads it.")
    conditions: Annotated[list[ConditionStatus], AtMost(32)] = Field(
        default=[], description="What is true now; Succeeded is Unknown until the end.", json_schema_extra=map_list("type")
    )
    observed_generation: int = Field(default=0, description="Generation of the spec that this status speaks of.")
    start_time: Time | None = Field(default=None, description="When the run started (RFC 3339).")
    first_pod_time: Time | None = Field(
        default=None, description="When the run's first pod was seen (RFC 3339); from then on the spec is immutable."
    )
    completion_time: Time | None = Field(default=None, description="When the run ended (RFC 3339).")
    active_seconds: int | None = Field(
        default=None, description="Seconds that the run was active until activeSince, suspended time not counted."
    )
    active_since: Time | None = Field(
        default=None, description="Since when it is active (RFC 3339); absent while suspended and at the end."
    )
    run_digest: Short | None = Field(default=None, description="Digest of the run's content; one with the same digest is not run again.")
    spec_digest: Short | None = Field(default=None, description="Digest of the spec that was started, without what may change.")
    chat_template_digest: Short | None = Field(
        default=None, description="SHA-256 of the ConfigMap's chat template as it was read at the start: a later change has no effect."
    )
    images: Images | None = Field(default=None, description="Images fixed at start.")
    attempt: CurrentAttempt | None = Field(default=None, description="The attempt that is under way or due.")
    attempt_count: int | None = Field(default=None, description="Number of the present attempt within its stage.")
    attempts: Annotated[list[AttemptRecord], AtMost(ATTEMPTS_KEPT)] = Field(
        default=[], description="The last 20 attempts that ended without the stage's result, oldest first.", json_schema_extra=atomic_list()
    )
    progress: ProgressStatus | None = Field(default=None, description="What the stage's pod last reported.")
    display: Display = Field(default=Display(), description="Strings for the columns.")
    warnings: Annotated[list[StageWarning], AtMost(WARNINGS_KEPT)] = Field(
        default=[], description="What the stages gave reason to mind, the first 20, oldest first.", json_schema_extra=atomic_list()
    )
    plan: MemoryPlan | None = Field(default=None, description="Memory per GPU by part, and what was chosen from it.")
    dataset: DatasetReport | None = Field(default=None, description="What became of the data.")
    base_model: Long | None = Field(default=None, description="Source of the base model as it was read.")
    base_revision: Long | None = Field(default=None, description="Commit of the base model, or the digest of its files.")
    checkpoint: CheckpointReport | None = Field(default=None, description="The newest verified checkpoint.")
    evaluation: EvaluationReport | None = Field(default=None, description="Metrics and gates of the artifact that will be served.")
    parity: Annotated[list[ParityReport], AtMost(16)] = Field(
        default=[], description="How close each artifact is to what was trained.", json_schema_extra=atomic_list()
    )
    quantization_gap: float | None = Field(
        default=None, description="Distance between the 4-bit base that was trained on and the unquantized one; reported, not judged."
    )
    artifacts: Annotated[list[Artifact], AtMost(16)] = Field(default=[], description="Published files.", json_schema_extra=atomic_list())
    model_version_ref: VersionRef | None = Field(default=None, description="The ModelVersion that the result is registered as.")

    def wire(self) -> dict[str, Any]:
        """As Kubernetes has it: what is absent or an empty list is left out."""
        kept = self.model_extra or {}
        return {name: member for name, member in super().wire().items() if member != [] or name in kept}


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
