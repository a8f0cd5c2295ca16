"""ModelVersion: what is asked, and every condition it can answer with."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from finetune_api.answer import METRICS_KEPT
from finetune_api.section import ModelName, Section, Sha256, Text, map_list, rules
from finetune_api.sections.rollout import Rollout
from finetune_api.sections.serving import Serving
from finetune_api.status import AtMost, ConditionStatus, Long, Loose, Short, Time, atomic_list
from finetune_api.uri import ClaimPath, claim_path, pattern, without_climbing


class Lineage(Section):
    base_model: Text = Field(description="Source of the base model.")
    base_revision: Text = Field(default="", description="Commit of the base model, or the digest of its files.")
    dataset_digest: Text = Field(default="", description="Digest of the prepared data.")
    run_digest: Sha256 = Field(description="Digest of the job's content; a job with the same one is not run again.")
    config_digest: Text = Field(default="", description="Digest of the training arguments.")
    image: Annotated[str, Field(max_length=512)] = Field(default="", description="Trainer image.")
    job_ref: Text = Field(default="", description="Name of the FineTuneJob; informs only.")
    job_uid: Text = Field(default="", description="Uid of the FineTuneJob; informs only.")
    score_metric: Annotated[str, Field(max_length=80)] = Field(default="", description="Metric shown as SCORE: the first gate's.")
    metrics: Annotated[dict[Annotated[str, Field(max_length=256)], float], Field(max_length=METRICS_KEPT)] = Field(
        default={}, description="Metrics of the served artifact, by name."
    )


class PublishedArtifact(Section):
    model_config = ConfigDict(json_schema_extra=rules(without_climbing("uri")))

    name: Annotated[str, Field(max_length=64)] = Field(description="Name of the artifact, unique in the version.")
    format: Literal["Safetensors", "GGUF", "Adapter"] = Field(description="Format of the artifact.")
    uri: Annotated[str, Field(max_length=1024, pattern=pattern(ClaimPath))] = Field(description="Where it lies: pvc://claim/path.")
    sha256: Sha256 = Field(description="SHA-256 of the file, or of a folder's sorted `<sha256>  <path>` lines.")
    bytes: int = Field(ge=0, description="Size in bytes.")

    @property
    def location(self) -> ClaimPath:
        """Claim and path of `uri`."""
        return claim_path(self.uri)


class ModelVersionSpec(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(
            ("self.model == oldSelf.model && self.version == oldSelf.version", "model and version name the object: create another one"),
            (
                "self.artifacts == oldSelf.artifacts && self.lineage == oldSelf.lineage",
                "artifacts and lineage are what was proven: they cannot change",
            ),
            (
                "self.artifacts.exists(a, a.format == 'GGUF' && (!has(self.serving.artifact) || a.name == self.serving.artifact))",
                "serving.artifact must name a GGUF among artifacts: llama.cpp serves nothing else",
            ),
        )
    )

    model: ModelName = Field(description="Model that the version belongs to. Required.")
    version: int = Field(ge=1, le=999_999, description="Number of the version. Required.")
    artifacts: Annotated[list[PublishedArtifact], Field(min_length=1, max_length=16)] = Field(
        description="Published files, immutable. Required.", json_schema_extra=map_list("name")
    )
    lineage: Lineage = Field(description="What it was made from, immutable. Required.")
    serving: Serving = Field(default=Serving(), description="How it is served. Default: llama.cpp, one replica.")
    rollout: Rollout = Field(default=Rollout(), description="How traffic is moved to it. Default: straight to production, no route.")
    lifecycle: Literal["Active", "Retired"] = Field(default="Active", description="Retired takes it out of service. Default: Active.")


class Stage(StrEnum):
    REGISTERED = "Registered"
    CANARY = "Canary"
    STAGING = "Staging"
    PRODUCTION = "Production"
    ARCHIVED = "Archived"
    ROLLED_BACK = "RolledBack"
    REJECTED = "Rejected"


LIVE = frozenset({Stage.CANARY, Stage.STAGING, Stage.PRODUCTION})


class ConditionType(StrEnum):
    READY = "Ready"
    """Serves and answers. Absent while the version is out of service: kstatus would wait for ever for a False one."""
    VERIFIED = "Verified"
    """The server read the artifact and its digest was right."""
    ARTIFACTS_REACHABLE = "ArtifactsReachable"
    TRAFFIC_ACCEPTED = "TrafficAccepted"
    """The route is accepted by its Gateway at its present generation. Absent while the version is out of service."""
    PROGRESSING = "Progressing"
    """On its way through the steps of its rollout."""
    RESOURCES_APPLIED = "ResourcesApplied"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    """Nothing goes on until a person changes something."""


class Display(Loose):
    """Strings for the columns, which cannot format; no code reads them."""

    score: Short = Field(default="", description="Value of the first gate's metric.")
    weight: Short = Field(default="", description="Share of traffic with a percent sign.")


class HistoryEntry(Loose):
    time: Short = Field(description="When (RFC 3339).")
    from_stage: Short = Field(alias="from", description="Stage before.")
    to_stage: Short = Field(alias="to", description="Stage after.")
    by: Short = Field(description="Who decided: Rollout (the steps), Spec (a person's edit), Operator (a check or a restore).")
    why: Long = Field(description="What it was decided on.")
    evidence: Long = Field(default="", description="What was seen then.")


HISTORY_ENTRIES = 50


class ModelVersionStatus(Loose):
    stage: Stage = Field(default=Stage.REGISTERED, description="Where the version stands.")
    weight: int = Field(default=0, description="Share of the model's traffic in percent.")
    step_index: int | None = Field(default=None, description="Index of the present step in rollout.steps; absent before the first one.")
    step_started_time: Time | None = Field(default=None, description="When the present step or stage began (RFC 3339).")
    idle_since: Time | None = Field(
        default=None, description="Since when an accepted route sends nothing here, out of service; the pods go some seconds later."
    )
    replaced_by: Short | None = Field(
        default=None, description="The version that took production over from this one; if it is aborted, this one returns."
    )
    replaced_by_content: Short | None = Field(
        default=None, description="Digest of what that version serves: one that comes back without status is known by it."
    )
    retired_from: Stage | None = Field(
        default=None, description="Stage in which lifecycle was set to Retired; Active again, the version goes on from there."
    )
    held_seconds: int = Field(
        default=0, ge=0, description="Seconds of the present step that counted before an interruption: weight accepted, a pod answering."
    )
    held_since: Time | None = Field(
        default=None, description="Since when the present step counts without an interruption (RFC 3339); absent while it does not."
    )
    image: Annotated[str, AtMost(512)] | None = Field(
        default=None, description="Server image where spec.serving.image names none: the chart's when the version was registered."
    )
    endpoint: Short | None = Field(default=None, description="OpenAI-compatible URL within the cluster.")
    conditions: Annotated[list[ConditionStatus], AtMost(16)] = Field(
        default=[], description="What is true now.", json_schema_extra=map_list("type")
    )
    display: Display = Field(default=Display(), description="Strings for the columns.")
    history: Annotated[list[HistoryEntry], AtMost(HISTORY_ENTRIES)] = Field(
        default=[], description="The last 50 moves, oldest first.", json_schema_extra=atomic_list()
    )
    observed_generation: int = Field(default=0, description="Generation of the spec that this status speaks of.")


ROOT_RULES = (
    (
        "!oldSelf.spec.rollout.abort || self.spec.rollout.abort"
        " || (has(self.status) && has(self.status.stage) && self.status.stage == 'Production')",
        "abort cannot be undone: publish another version",
    ),
    (
        "self.metadata.name.startsWith(self.spec.model + '-v')"
        " && self.metadata.name.substring(self.spec.model.size() + 2).matches('^[1-9][0-9]{0,5}$')"
        " && int(self.metadata.name.substring(self.spec.model.size() + 2)) == self.spec.version",
        "metadata.name must be <spec.model>-v<spec.version>",
    ),
)
"""CEL rules at the root of the object: (expression, message). `name == model + '-v' + string(version)` would be plainer, but no bound
is known of string(…) nor of metadata.name, and the API server refuses a rule that compares the two for its estimated cost."""


COLUMNS: list[tuple[str, str, str, int]] = [
    ("Model", "string", ".spec.model", 0),
    ("Version", "integer", ".spec.version", 0),
    ("Stage", "string", ".status.stage", 0),
    ("Weight", "string", ".status.display.weight", 0),
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
    ("Score", "string", ".status.display.score", 0),
    ("Job", "string", ".spec.lineage.jobRef", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Reason", "string", '.status.conditions[?(@.type=="Progressing")].reason', 1),
    ("Endpoint", "string", ".status.endpoint", 1),
]
"""Printer columns: (name, type, JSON path, priority; 1 is shown with -o wide)."""
