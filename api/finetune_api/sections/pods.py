"""`spec.resources`, `stages`, `scheduling`, `podMetadata`, `imagePullSecrets`: where and with what the pods run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from finetune_api.quantity import Quantity
from finetune_api.section import ExtendedResource, ObjectName, Section, mutable

Label = Annotated[str, Field(max_length=317)]

LabelValue = Annotated[str, Field(max_length=63)]


class Resources(Section):
    """Resources of the train stage."""

    nodes: Literal[1] = Field(default=1, description="Nodes that train together. Default: 1.")
    gpus_per_node: int = Field(default=1, ge=0, le=16, description="GPUs of each node; 0 trains on CPU. Default: 1.")
    gpu_resource_name: ExtendedResource = Field(
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
