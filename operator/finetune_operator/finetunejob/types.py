"""FineTuneJob: what is asked, and every condition and reason it can answer with. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from finetune_trainer.spec import (
    Adapter,
    Checkpoints,
    Dataset,
    Evaluation,
    Export,
    Method,
    Model,
    ModelName,
    Name,
    ObjectName,
    Preparation,
    Quantity,
    Quantization,
    Section,
    Training,
    map_list,
    rules,
)
from pydantic import ConfigDict, Field, JsonValue

from finetune_operator.modelversion.types import Rollout, Serving

Label = Annotated[str, Field(max_length=317)]
LabelValue = Annotated[str, Field(max_length=63)]


def mutable() -> dict[str, Any]:
    """Marks a member that may change after the run has started; the root's immutability rule is generated from what has no mark."""
    return {"x-finetune-mutable": True}


class Resources(Section):
    """Resources of the train stage."""

    nodes: Literal[1] = Field(default=1, description="Nodes that train together. Default: 1.")
    gpus_per_node: int = Field(default=1, ge=0, le=16, description="GPUs of each node; 0 trains on CPU. Default: 1.")
    gpu_resource_name: Annotated[str, Field(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$", max_length=128)] = Field(
        default="nvidia.com/gpu", description="Extended resource that names a GPU. Default: nvidia.com/gpu."
    )
    cpu: Quantity = Field(default="2", description="CPU request of the train pod, in cores. Default: 2.")
    memory: Quantity = Field(default="8Gi", description="Memory request and limit of the train pod, in bytes. Default: 8Gi.")
    shared_memory: Quantity = Field(default="1Gi", description="Size of /dev/shm, in bytes; counts towards memory. Default: 1Gi.")


class StageResources(Section):
    cpu: Quantity | None = Field(default=None, description="CPU request, in cores. Default: 1.")
    memory: Quantity | None = Field(default=None, description="Memory request and limit, in bytes. Default: 4Gi.")


class Stages(Section):
    """Resources of the stages that take no GPU."""

    prepare: StageResources = Field(default=StageResources(), description="Resources of the prepare stage. Default: 1 core, 4Gi.")
    package: StageResources = Field(default=StageResources(), description="Resources of the package stage. Default: 1 core, 4Gi.")
    evaluate: StageResources = Field(default=StageResources(), description="Resources of the evaluate stage. Default: 1 core, 4Gi.")


class Scheduling(Section):
    priority_class_name: ObjectName | None = Field(
        default=None, description="PriorityClass of the pods. No default.", json_schema_extra=mutable()
    )
    node_selector: Annotated[dict[Label, LabelValue], Field(max_length=32)] = Field(
        default={}, description="Node labels that the train pod requires. Default: none."
    )
    tolerations: Annotated[list[dict[str, JsonValue]], Field(max_length=32)] = Field(
        default=[],
        description="Tolerations of the train pod, as in a Pod. Default: none.",
        json_schema_extra={"items": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
    )
    affinity: dict[str, JsonValue] | None = Field(
        default=None,
        description="Affinity of the train pod, as in a Pod. No default.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )
    runtime_class_name: ObjectName | None = Field(default=None, description="RuntimeClass of the train pod, such as nvidia. No default.")


class PodMetadata(Section):
    labels: Annotated[dict[Label, LabelValue], Field(max_length=32)] = Field(
        default={}, description="Labels added to the pods; those of this operator win. Default: none."
    )
    annotations: Annotated[dict[Label, Annotated[str, Field(max_length=4096)]], Field(max_length=32)] = Field(
        default={}, description="Annotations added to the pods. Default: none."
    )


class ImagePullSecret(Section):
    name: ObjectName = Field(description="Name of the Secret in the job's namespace. Required.")


class Recovery(Section):
    max_attempts: int = Field(
        default=3,
        ge=1,
        le=100,
        description="Attempts a stage has; preemption and node loss do not count. Default: 3.",
        json_schema_extra=mutable(),
    )


class ClaimTemplate(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(
            ("has(self.claimName) != has(self.size)", "set claimName (a claim that is there) or size (one is made), exactly one of them"),
            ("!has(self.claimName) || !has(self.storageClassName)", "storageClassName goes with size"),
        )
    )

    claim_name: ObjectName | None = Field(default=None, description="An existing PersistentVolumeClaim in the job's namespace. No default.")
    size: Quantity | None = Field(default=None, description="Size of a claim made for this job, in bytes. No default.")
    storage_class_name: ObjectName | None = Field(default=None, description="StorageClass of the claim made. Default: the cluster's.")
    access_modes: Annotated[list[Literal["ReadWriteOnce", "ReadWriteMany"]], Field(min_length=1, max_length=2)] = Field(
        default=["ReadWriteOnce"],
        description="Access modes of the claim made. Default: ReadWriteOnce.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class Storage(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(("has(self.persistentVolumeClaim)", "persistentVolumeClaim is required with type PersistentVolumeClaim"))
    )

    type: Literal["PersistentVolumeClaim"] = Field(
        default="PersistentVolumeClaim", description="Kind of storage. Default: PersistentVolumeClaim."
    )
    persistent_volume_claim: ClaimTemplate | None = Field(
        default=None, description="The claim that holds the job's files. Required with its type."
    )


class Publish(Section):
    """What becomes of a run that passed its gates."""

    model: ModelName = Field(description="Model that the version belongs to; versions of one model share one route. Required.")
    version: int | None = Field(default=None, ge=1, le=999_999, description="Version number. Default: the next free one.")
    serving: Serving = Field(default=Serving(), description="How the version is served. Default: llama.cpp, one replica.")
    rollout: Rollout = Field(default=Rollout(), description="How traffic is moved to it. Default: no route, straight to production.")


class Retention(Section):
    checkpoints: Literal["Delete", "Keep"] = Field(default="Delete", description="Checkpoints after success. Default: Delete.")
    artifacts: Literal["Keep", "Delete"] = Field(
        default="Delete",
        description="Files on a claim made by the operator once neither job nor version is left: Delete removes the claim, Keep leaves it. Default: Delete.",
    )


class ResumeFrom(Section):
    job_name: Name = Field(description="Older FineTuneJob in the namespace whose stages with equal inputs are taken over. Required.")


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


# -------------------------------------------------------------------------------------------------------------------- status


class Loose(Section):
    """A part of status: written by us alone, read leniently so that an older operator understands a newer one's status."""

    model_config = ConfigDict(extra="ignore")


Short = Annotated[str, Field(max_length=256)]
Long = Annotated[str, Field(max_length=1024)]


class ConditionStatus(Loose):
    type: Short
    status: Literal["True", "False", "Unknown"]
    reason: Short
    message: Long = ""
    observed_generation: int = 0
    last_transition_time: Short


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
