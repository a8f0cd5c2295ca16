"""`spec.resources`, `stages`, `scheduling`, `podMetadata`, `imagePullSecrets`: where and with what the pods run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue
from pydantic.config import JsonDict

from finetune_api.quantity import CpuLimit, Memory, Quantity, SharedMemory, in_cel
from finetune_api.section import ExtendedResource, ObjectName, Section, mutable, rules

Label = Annotated[str, Field(max_length=317)]

LabelValue = Annotated[str, Field(max_length=63)]


def cpu_within_its_limit(default: str) -> JsonDict:
    """The rule that a pod has as well, told at apply. `default`: the request where none is set."""
    request = f"quantity(has(self.cpu) ? string(self.cpu) : '{default}')"
    rule = f"!has(self.cpuLimit) || {request}.compareTo({in_cel('self.cpuLimit')}) <= 0"
    return rules((rule, f"cpuLimit must not be less than cpu ({default} where it is not set): raise the one or lower the other"))


class Resources(Section):
    """Resources of the train stage."""

    model_config = ConfigDict(json_schema_extra=cpu_within_its_limit("2"))

    nodes: Literal[1] = Field(default=1, description="Nodes that train together. Default: 1.")
    gpus_per_node: int = Field(default=1, ge=0, le=16, description="GPUs of each node; 0 trains on CPU. Default: 1.")
    gpu_resource_name: ExtendedResource = Field(
        default="nvidia.com/gpu", description="Extended resource that names a GPU. Default: nvidia.com/gpu."
    )
    cpu: Quantity = Field(default="2", description="CPU request of the train pod, in cores. Default: 2.")
    cpu_limit: CpuLimit | None = Field(
        default=None, description="CPU limit of the pods of all stages, in cores; of none less than its request. Default: no limit."
    )
    memory: Memory = Field(default="8Gi", description="Memory request and limit of the train pod, in bytes. Default: 8Gi.")
    shared_memory: SharedMemory = Field(default="1Gi", description="Size of /dev/shm, in bytes; counts towards memory. Default: 1Gi.")


NodeSelector = Annotated[dict[Label, LabelValue], Field(max_length=32)]

Tolerations = Annotated[list[dict[str, JsonValue]], Field(max_length=32)]

_FREE_ITEMS: JsonDict = {"items": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}

_FREE: JsonDict = {"x-kubernetes-preserve-unknown-fields": True}


class StageResources(Section):
    model_config = ConfigDict(json_schema_extra=cpu_within_its_limit("1"))

    cpu: Quantity | None = Field(default=None, description="CPU request, in cores. Default: 1.")
    cpu_limit: CpuLimit | None = Field(default=None, description="CPU limit, in cores. Default: that of spec.resources.")
    memory: Memory | None = Field(default=None, description="Memory request and limit, in bytes. Default: 4Gi.")
    node_selector: NodeSelector | None = Field(
        default=None, description="Node labels that the stage's pod requires; {} for none. Default: those of spec.scheduling."
    )
    tolerations: Tolerations | None = Field(
        default=None,
        description="Tolerations of the stage's pod, as in a Pod; [] for none. Default: those of spec.scheduling.",
        json_schema_extra=_FREE_ITEMS,
    )
    affinity: dict[str, JsonValue] | None = Field(
        default=None,
        description="Affinity of the stage's pod, as in a Pod; {} for none. Default: that of spec.scheduling.",
        json_schema_extra=_FREE,
    )


class Stages(Section):
    """Resources of the stages that take no GPU. Without a word of their own they run where train may run, for the volume's sake."""

    prepare: StageResources = Field(default=StageResources(), description="Resources of the prepare stage. Default: 1 core, 4Gi.")
    package: StageResources = Field(default=StageResources(), description="Resources of the package stage. Default: 1 core, 4Gi.")
    evaluate: StageResources = Field(default=StageResources(), description="Resources of the evaluate stage. Default: 1 core, 4Gi.")


class Scheduling(Section):
    priority_class_name: ObjectName | None = Field(
        default=None, description="PriorityClass of the pods. No default.", json_schema_extra=mutable()
    )
    node_selector: NodeSelector = Field(default={}, description="Node labels that the pods of all stages require. Default: none.")
    tolerations: Tolerations = Field(
        default=[],
        description="Tolerations of the pods of all stages, as in a Pod. Default: none.",
        json_schema_extra=_FREE_ITEMS,
    )
    affinity: dict[str, JsonValue] | None = Field(
        default=None,
        description="Affinity of the pods of all stages, as in a Pod. No default.",
        json_schema_extra=_FREE,
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
