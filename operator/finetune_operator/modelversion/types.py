"""ModelVersion: what is asked, and every condition and reason it can answer with. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from finetune_trainer.spec import Duration, GGUFType, ModelName, Name, ObjectName, Quantity, Section, map_list, rules
from pydantic import ConfigDict, Field

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)]
Text = Annotated[str, Field(max_length=1024)]


class Serving(Section):
    type: Literal["LlamaCpp"] = Field(default="LlamaCpp", description="Model server. Default: LlamaCpp (llama-server).")
    artifact: GGUFType | None = Field(default=None, description="GGUF type that is served. Default: the first of export.gguf.")
    image: Annotated[str, Field(max_length=512, pattern=r"^[a-z0-9][-a-z0-9._/:@]*$")] | None = Field(
        default=None, description="Server image, fixed when the version is registered. Default: the chart's."
    )
    replicas: int = Field(default=1, ge=1, le=64, description="Server pods. Default: 1.")
    context_length: int = Field(
        default=2048, ge=64, le=1_048_576, description="Context of a request in tokens, prompt and answer. Default: 2048."
    )
    parallel: int = Field(default=2, ge=1, le=256, description="Requests answered at once by a pod. Default: 2.")
    cpu: Quantity = Field(default="500m", description="CPU request of a server pod, in cores. Default: 500m.")
    memory: Quantity = Field(default="1Gi", description="Memory request and limit of a server pod, in bytes. Default: 1Gi.")
    gpus: int = Field(default=0, ge=0, le=16, description="GPUs of a server pod. Default: 0.")
    gpu_resource_name: Annotated[str, Field(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$", max_length=128)] = Field(
        default="nvidia.com/gpu", description="Extended resource that names a GPU. Default: nvidia.com/gpu."
    )
    keep_previous: Duration = Field(
        default="1h", description="How long the former production version's pods stay ready after a promotion. Default: 1h."
    )


class GatewayRef(Section):
    name: ObjectName = Field(description="Name of the Gateway. Required.")
    namespace: ObjectName = Field(description="Namespace of the Gateway; its listeners must allow routes from here. Required.")


class GatewayAPI(Section):
    gateway: GatewayRef = Field(description="The Gateway that the route attaches to. Required.")
    hostnames: Annotated[list[Annotated[str, Field(max_length=253)]], Field(max_length=16)] = Field(
        default=[], description="Host names of the route. Default: any.", json_schema_extra={"x-kubernetes-list-type": "set"}
    )


class Traffic(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(
            ("(self.type == 'GatewayAPI') == has(self.gatewayAPI)", "gatewayAPI goes with type GatewayAPI: set both or neither")
        )
    )

    type: Literal["None", "GatewayAPI"] = Field(
        default="None", description="How traffic is split: HTTPRoute weights, or not at all. Default: None."
    )
    gateway_api: GatewayAPI | None = Field(
        default=None, alias="gatewayAPI", description="The route; only with type GatewayAPI. No default."
    )


class StageName(StrEnum):
    CANARY = "Canary"
    STAGING = "Staging"
    PRODUCTION = "Production"


class Step(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "(self.stage == 'Production') != has(self.weight)",
                "weight is required before Production, and Production has none: it gets what is left",
            ),
        )
    )

    name: Name = Field(description="Name of the step, unique in the rollout. Required.")
    stage: StageName = Field(description="Stage the version is in during the step. Required.")
    weight: int | None = Field(default=None, ge=0, le=100, description="Share of traffic in percent. Required before Production.")
    hold: Duration = Field(default="0s", description="Least time the step lasts. Default: 0s.")


class Rollout(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "size(self.steps) == 0 || self.steps[size(self.steps) - 1].stage == 'Production'",
                "the last step must be of stage Production",
            ),
            (
                "self.steps.filter(s, s.stage == 'Production').size() <= 1",
                "only one step can be of stage Production",
            ),
        )
    )

    traffic: Traffic = Field(default=Traffic(), description="How traffic reaches the version. Default: none.")
    steps: Annotated[list[Step], Field(max_length=16)] = Field(
        default=[],
        description="Steps to production, in order. Default: straight to production.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    approval: Literal["Automatic", "Manual"] = Field(
        default="Automatic", description="Whether a step needs approvedStep to go on. Default: Automatic."
    )
    approved_step: int | None = Field(
        default=None, ge=0, le=16, description="Index of the last step a person approved leaving; with approval Manual. No default."
    )
    paused: bool = Field(default=False, description="Hold where it is. Default: false.")
    abort: bool = Field(
        default=False, description="Take all traffic away and bring the former version back; cannot be undone. Default: false."
    )


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
    metrics: Annotated[dict[Annotated[str, Field(max_length=80)], float], Field(max_length=32)] = Field(
        default={}, description="Metrics of the served artifact, by name."
    )


class PublishedArtifact(Section):
    name: Annotated[str, Field(max_length=64)] = Field(description="Name of the artifact, unique in the version.")
    format: Literal["Safetensors", "GGUF", "Adapter"] = Field(description="Format of the artifact.")
    uri: Annotated[str, Field(max_length=1024, pattern=r"^pvc://[a-z0-9][-a-z0-9.]*/[^\\]+$")] = Field(
        description="Where it lies: pvc://claim/path."
    )
    sha256: Sha256 = Field(description="SHA-256 of the file, or of a folder's sorted `<sha256>  <path>` lines.")
    bytes: int = Field(ge=0, description="Size in bytes.")


class ModelVersionSpec(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(
            ("self.model == oldSelf.model && self.version == oldSelf.version", "model and version name the object: create another one"),
            (
                "self.artifacts == oldSelf.artifacts && self.lineage == oldSelf.lineage",
                "artifacts and lineage are what was proven: they cannot change",
            ),
            ("!oldSelf.rollout.abort || self.rollout.abort", "abort cannot be undone: publish another version"),
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
    """Serves and answers."""
    VERIFIED = "Verified"
    """The server read the artifact and its digest was right."""
    ARTIFACTS_REACHABLE = "ArtifactsReachable"
    TRAFFIC_ACCEPTED = "TrafficAccepted"
    """The route is accepted by its Gateway at its present generation."""
    PROGRESSING = "Progressing"
    RESOURCES_APPLIED = "ResourcesApplied"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
