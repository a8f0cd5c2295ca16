"""`spec.serving` of a ModelVersion: how it is served."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.section import Duration, Quantity, Section
from finetune_api.sections.export import GGUFType


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
