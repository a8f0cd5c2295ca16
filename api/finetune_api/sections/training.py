"""`spec.training`: training arguments by Hugging Face's meaning, in the API's spelling."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, JsonValue

from finetune_api.section import Section, rules


class Scheduler(StrEnum):
    LINEAR = "Linear"
    COSINE = "Cosine"
    CONSTANT = "Constant"
    CONSTANT_WITH_WARMUP = "ConstantWithWarmup"
    POLYNOMIAL = "Polynomial"
    INVERSE_SQRT = "InverseSqrt"


class Warmup(Section):
    model_config = ConfigDict(json_schema_extra=rules(("!(has(self.steps) && has(self.ratio))", "set steps or ratio, not both")))

    steps: int | None = Field(default=None, ge=0, le=10_000_000, description="Warm-up in optimizer steps. No default.")
    ratio: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Warm-up as a share of all optimizer steps. Default: 0.03 where steps is not set.",
    )


class Packing(StrEnum):
    NONE = "None"
    DOCUMENTS = "Documents"


class Switch(StrEnum):
    """A choice the platform may make by itself."""

    AUTO = "Auto"
    ENABLED = "Enabled"
    DISABLED = "Disabled"


class Optimizer(StrEnum):
    ADAMW = "AdamW"
    ADAMW_FUSED = "AdamWFused"
    ADAMW_8BIT = "AdamW8bit"
    PAGED_ADAMW_8BIT = "PagedAdamW8bit"
    PAGED_ADAMW_32BIT = "PagedAdamW32bit"
    ADAFACTOR = "Adafactor"
    SGD = "SGD"


class Precision(StrEnum):
    AUTO = "Auto"
    BFLOAT16 = "BFloat16"
    FLOAT16 = "Float16"
    FLOAT32 = "Float32"


class Training(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(
            ("!(has(self.epochs) && has(self.maxSteps))", "set epochs or maxSteps, not both"),
            (
                "!has(self.globalBatchSize) || !has(self.perDeviceBatchSize) || self.globalBatchSize % self.perDeviceBatchSize == 0",
                "globalBatchSize must be a multiple of perDeviceBatchSize",
            ),
        )
    )

    epochs: float | None = Field(
        default=None, gt=0, le=1000, description="Passes over the training rows. Default: 3 where maxSteps is not set."
    )
    max_steps: int | None = Field(default=None, ge=1, le=100_000_000, description="Optimizer steps instead of epochs. No default.")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Peak learning rate. Default: the advised one for method, model size and data (LoRA 2e-4, full 1e-5, scaled).",
    )
    scheduler: Scheduler = Field(default=Scheduler.COSINE, description="Learning-rate schedule. Default: Cosine.")
    warmup: Warmup = Field(default=Warmup(), description="Warm-up of the learning rate. Default: 3 % of the steps.")
    global_batch_size: int = Field(
        default=16,
        ge=1,
        le=1_000_000,
        description="Samples per optimizer step over all ranks and accumulation steps. Default: 16.",
    )
    per_device_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Samples per device and forward pass (micro-batch). Default: chosen from the memory plan.",
    )
    max_length: int = Field(
        default=2048,
        ge=8,
        le=1_048_576,
        description="Longest row in tokens; longer ones are truncated and counted. Default: 2048.",
    )
    packing: Packing = Field(
        default=Packing.NONE,
        description="None: padding-free batches of whole rows. Documents: rows packed to maxLength. Default: None.",
    )
    optimizer: Optimizer = Field(default=Optimizer.ADAMW, description="Optimizer. Default: AdamW.")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="Weight decay. Default: 0.")
    max_grad_norm: float = Field(default=1.0, gt=0, le=1000, description="Gradient norm that larger ones are clipped to. Default: 1.")
    neftune_noise_alpha: float | None = Field(default=None, gt=0, le=100, description="NEFTune noise on the embeddings. No default (off).")
    precision: Precision = Field(
        default=Precision.AUTO, description="Autocast precision. Auto: bf16, else fp16; fp32 on CPU. Default: Auto."
    )
    gradient_checkpointing: Switch = Field(
        default=Switch.AUTO,
        description="Recompute activations to save memory. Auto: only where the memory plan needs it. Default: Auto.",
    )
    eval_every_steps: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="Optimizer steps between losses on the validation rows. Default: once an epoch.",
    )
    seed: int = Field(default=42, ge=0, le=2**31 - 1, description="Seed of everything random in training. Default: 42.")
    args: Annotated[dict[Annotated[str, Field(max_length=128)], JsonValue], Field(max_length=128)] = Field(
        default={},
        description="Further TRL or transformers training arguments by their own names; those a typed field owns are refused. Default: none.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )
