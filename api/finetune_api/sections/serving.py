"""`spec.serving` of a ModelVersion: how it is served.

What stands beside the servers' own members means the same for each of them, and so does its default. Of `resources` only the first is
true (1Gi carries a small GGUF and no vLLM), so it has no default in the schema: code supplies it by type. How long a context is and how
many requests share it are words of each server's own, with defaults of its own (llama.cpp reserves both, vLLM neither).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.quantity import CpuLimit, Memory, Quantity
from finetune_api.section import Duration, ExtendedResource, Section
from finetune_api.sections.export import GGUFType
from finetune_api.sections.placement import Placement
from finetune_api.sections.pods import cpu_within_its_limit
from finetune_api.union import Union, member_of


class ServerType(StrEnum):
    LLAMA_CPP = "LlamaCpp"


class ServerResources(Section):
    """Resources of each server pod."""

    model_config = ConfigDict(json_schema_extra=cpu_within_its_limit("500m"))

    cpu: Quantity | None = Field(default=None, description="CPU request of a server pod, in cores. Default: 500m for LlamaCpp.")
    cpu_limit: CpuLimit | None = Field(default=None, description="CPU limit of a server pod, in cores. Default: no limit.")
    memory: Memory | None = Field(
        default=None, description="Memory request and limit of a server pod, in bytes. Default: 1Gi for LlamaCpp."
    )
    gpus: int | None = Field(default=None, ge=0, le=16, description="GPUs of a server pod; 0 serves from the CPU. Default: 0 for LlamaCpp.")
    gpu_resource_name: ExtendedResource = Field(
        default="nvidia.com/gpu", description="Extended resource that names a GPU. Default: nvidia.com/gpu."
    )


class LlamaCpp(Section):
    """llama-server."""

    context_length: int = Field(
        default=2048, ge=64, le=1_048_576, description="Context of a request in tokens, prompt and answer. Default: 2048."
    )
    parallel: int = Field(default=2, ge=1, le=256, description="Requests answered at once by a pod. Default: 2.")


_RESOURCES = {ServerType.LLAMA_CPP: ServerResources(cpu="500m", memory="1Gi", gpus=0)}


class Serving(Union, Placement):
    type: ServerType = Field(default=ServerType.LLAMA_CPP, description="Model server. Default: LlamaCpp (llama-server).")
    artifact: GGUFType | None = Field(default=None, description="GGUF type that is served. Default: the first of export.gguf.")
    image: Annotated[str, Field(max_length=512, pattern=r"^[a-z0-9][-a-z0-9._/:@]*$")] | None = Field(
        default=None, description="Server image. Default: the chart's when the version was registered (status.image)."
    )
    replicas: int = Field(default=1, ge=1, le=64, description="Server pods, where no HorizontalPodAutoscaler says how many. Default: 1.")
    resources: ServerResources | None = Field(
        default=None, description="Resources of each server pod. Default: 500m, 1Gi and no GPU for LlamaCpp."
    )
    keep_previous: Duration = Field(
        default="1h", description="How long the former production version's pods stay ready after a promotion. Default: 1h."
    )
    llama_cpp: LlamaCpp | None = Field(
        default=None,
        description="Settings of llama-server; with type LlamaCpp only. Default: context of 2048 tokens, 2 requests at once.",
        json_schema_extra=member_of("LlamaCpp"),
    )

    @property
    def effective_llama_cpp(self) -> LlamaCpp:
        return self.llama_cpp or LlamaCpp()

    @property
    def effective_resources(self) -> ServerResources:
        """What was asked for, and for the rest what the type of server needs."""
        asked = self.resources.model_dump(exclude_none=True) if self.resources else {}
        return _RESOURCES[self.type].model_copy(update=asked)
