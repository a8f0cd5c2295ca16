"""What a training run is told, and what it answers: the one module that trainer and operator share.

The sections a user writes in a FineTuneJob (`model`, `datasets`, … `export`) are defined here once; the operator builds its CRD
from them and the trainer reads them from the run file. Imports pydantic only, so that a stage which needs no torch starts fast.
"""

from __future__ import annotations

import hashlib
import json
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.alias_generators import to_camel

# ---------------------------------------------------------------------------------------------------------------- schema helpers


class Section(BaseModel):
    """A section of the API: camelCase on the wire, unknown members refused, immutable once read."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, protected_namespaces=())

    def wire(self) -> dict[str, Any]:
        """The section as plain JSON data with the API's own names, absent members left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """CEL rules with the sentence a user reads when one refuses: `(expression, message)` each."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs]}


def map_list(key: str) -> dict[str, Any]:
    """Marks a list as keyed by a member, so that server-side apply merges it and the API server refuses twins."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


def union_rules(**members: str) -> dict[str, Any]:
    """Rules of a discriminated union (value of `type` = its member's name): the member of another type is refused."""
    return rules(
        *(
            (
                f"!has(self.{member}) || self.type == '{value}'",
                f"{member} belongs to type {value}; remove it or set type: {value}",
            )
            for value, member in members.items()
        )
    )


Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=40)]
ModelName = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=32)]
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
SecretKey = Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]
Column = Annotated[str, Field(min_length=1, max_length=256)]
Duration = Annotated[str, Field(pattern=r"^([0-9]{1,5}(h|m|s|ms)){1,4}$", max_length=24)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$", max_length=24)]

_MODEL_SOURCE = r"^(hf://[A-Za-z0-9][-A-Za-z0-9._]*/[-A-Za-z0-9._]+|pvc://[a-z0-9][-a-z0-9.]*/[^\\]+)$"
_DATA_SOURCE = _MODEL_SOURCE


class SecretKeyRef(Section):
    """One key of a Secret in the job's namespace; its value reaches pods as an environment variable and nothing else."""

    name: ObjectName = Field(description="Name of the Secret in the job's namespace. Required.")
    key: SecretKey = Field(description="Key within the Secret. Required.")


class ConfigMapKeyRef(Section):
    """One key of a ConfigMap in the job's namespace."""

    name: ObjectName = Field(description="Name of the ConfigMap in the job's namespace. Required.")
    key: SecretKey = Field(description="Key within the ConfigMap. Required.")


# --------------------------------------------------------------------------------------------------------------------- model


class ChatTemplateType(StrEnum):
    MODEL = "Model"
    NAMED = "Named"
    CONFIG_MAP = "ConfigMap"


class ChatTemplate(Section):
    model_config = ConfigDict(json_schema_extra=union_rules(Named="named", ConfigMap="configMap"))

    type: ChatTemplateType = Field(
        default=ChatTemplateType.MODEL,
        description="Where the chat template comes from: the model's own files (Model), a well-known one (Named) or a ConfigMap. Default: Model.",
    )
    named: Literal["ChatML"] | None = Field(default=None, description="The well-known template; only with type Named. No default.")
    config_map: ConfigMapKeyRef | None = Field(
        default=None,
        description="The ConfigMap key that holds the Jinja template; only with type ConfigMap. No default.",
    )


class Dtype(StrEnum):
    AUTO = "Auto"
    FLOAT32 = "Float32"
    BFLOAT16 = "BFloat16"
    FLOAT16 = "Float16"


class AttentionImplementation(StrEnum):
    AUTO = "Auto"
    EAGER = "Eager"
    SDPA = "SDPA"
    FLASH_ATTENTION_2 = "FlashAttention2"


class Model(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.revision) || self.source.startsWith('hf://')",
                "revision belongs to an hf:// source; a pvc:// source has none: remove it",
            ),
            (
                "!has(self.tokenSecretRef) || self.source.startsWith('hf://')",
                "tokenSecretRef belongs to an hf:// source: remove it",
            ),
            (
                "!self.source.contains('/../') && !self.source.endsWith('/..')",
                "source must not climb with '..': name the path itself",
            ),
        )
    )

    source: str = Field(
        pattern=_MODEL_SOURCE,
        max_length=512,
        description="The base model: hf://org/name, or pvc://claim/path to a folder with config.json, safetensors and tokenizer. Required.",
    )
    revision: Annotated[str, Field(max_length=128, pattern=r"^[-A-Za-z0-9._/]+$")] | None = Field(
        default=None,
        description="Commit, tag or branch of an hf:// model; resolved to a commit once, at prepare. Default: main.",
    )
    token_secret_ref: SecretKeyRef | None = Field(default=None, description="Access token for a gated hf:// model. No default.")
    dtype: Dtype = Field(
        default=Dtype.AUTO,
        description="Type of frozen weights in memory while training. Auto: bf16 with an adapter where the device has it, fp32 masters for full weights. Default: Auto.",
    )
    attention_implementation: AttentionImplementation = Field(
        default=AttentionImplementation.AUTO,
        description="Attention kernel, by transformers' names. Default: Auto (transformers chooses).",
    )
    chat_template: ChatTemplate = Field(
        default=ChatTemplate(), description="Chat template used to render conversations. Default: the model's own."
    )


# ---------------------------------------------------------------------------------------------------------------------- data


class DatasetFormat(StrEnum):
    AUTO = "Auto"
    MESSAGES = "Messages"
    ALPACA = "Alpaca"
    SHAREGPT = "ShareGPT"
    PROMPT_COMPLETION = "PromptCompletion"
    TEXT = "Text"


class Columns(Section):
    """Names of the columns in the source; each default is the name the format itself uses."""

    messages: Column | None = Field(default=None, description="Column of the message list (Messages). Default: messages.")
    conversations: Column | None = Field(default=None, description="Column of the turn list (ShareGPT). Default: conversations.")
    instruction: Column | None = Field(default=None, description="Column of the instruction (Alpaca). Default: instruction.")
    input: Column | None = Field(default=None, description="Column of the optional input (Alpaca). Default: input.")
    output: Column | None = Field(default=None, description="Column of the answer (Alpaca). Default: output.")
    prompt: Column | None = Field(default=None, description="Column of the prompt (PromptCompletion). Default: prompt.")
    completion: Column | None = Field(default=None, description="Column of the completion (PromptCompletion). Default: completion.")
    text: Column | None = Field(default=None, description="Column of the text (Text). Default: text.")
    system: Column | None = Field(default=None, description="Column of a system message for each row. Default: system, where there is one.")


class Dataset(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!self.source.contains('/../') && !self.source.endsWith('/..')",
                "source must not climb with '..': name the path itself",
            )
        )
    )

    name: Name = Field(description="Name of the data set, unique in the job; its own test rows are scored under it. Required.")
    source: str = Field(
        pattern=_DATA_SOURCE,
        max_length=512,
        description="hf://org/name, or pvc://claim/path to a .jsonl, .json or .parquet file or to a folder that holds <split> files. Required.",
    )
    revision: Annotated[str, Field(max_length=128, pattern=r"^[-A-Za-z0-9._/]+$")] | None = Field(
        default=None, description="Commit, tag or branch of an hf:// data set. Default: main."
    )
    token_secret_ref: SecretKeyRef | None = Field(default=None, description="Access token for a gated hf:// data set. No default.")
    split: Annotated[str, Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.]*$", max_length=64)] = Field(
        default="train", description="Split that is trained on. Default: train."
    )
    test_split: Annotated[str, Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.]*$", max_length=64)] | None = Field(
        default=None,
        description="Split that the data set brings along for testing; scored apart under the data set's name, and nothing else is held out of it. No default.",
    )
    format: DatasetFormat = Field(
        default=DatasetFormat.AUTO, description="Shape of a row. Auto: told from the column names. Default: Auto."
    )
    columns: Columns = Field(default=Columns(), description="Column names that differ from the format's own. Default: the format's names.")
    system_message: Annotated[str, Field(max_length=8192)] | None = Field(
        default=None, description="System message put before conversations that have none. No default."
    )
    weight: int = Field(
        default=1,
        ge=1,
        le=100,
        description="How many times the rows are repeated per epoch, after deduplication. Default: 1.",
    )


class Deduplicate(Section):
    exact: bool = Field(default=True, description="Drop rows whose content was seen before, over all data sets. Default: true.")


class Split(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.train + self.validation + self.test > 0.999 && self.train + self.validation + self.test < 1.001",
                "train, validation and test must add up to 1",
            )
        )
    )

    train: float = Field(default=0.8, gt=0, le=1, description="Share of groups trained on. Default: 0.8.")
    validation: float = Field(default=0.1, ge=0, le=0.5, description="Share of groups held out for the loss during training. Default: 0.1.")
    test: float = Field(default=0.1, ge=0, le=0.5, description="Share of groups held out for evaluation. Default: 0.1.")
    seed: int = Field(default=42, ge=0, le=2**31 - 1, description="Seed of the draw. Default: 42.")
    group_by: Column | None = Field(
        default=None,
        description="Column whose rows stay together in one split (a document, a user); the bootstrap resamples by it too. Default: each row by itself.",
    )


class Preparation(Section):
    deduplicate: Deduplicate = Field(default=Deduplicate(), description="Removal of repeated rows. Default: exact.")
    split: Split = Field(default=Split(), description="How rows are held out. Default: 0.8 / 0.1 / 0.1.")


# -------------------------------------------------------------------------------------------------------------------- method


class SFTLoss(StrEnum):
    ASSISTANT_TURNS = "AssistantTurns"
    COMPLETION = "Completion"
    ALL_TOKENS = "AllTokens"


class SFT(Section):
    loss: SFTLoss = Field(
        default=SFTLoss.ASSISTANT_TURNS,
        description="Tokens that are trained: every assistant turn with its end, the last turn only (Completion), or all. Default: AssistantTurns.",
    )


class Method(Section):
    model_config = ConfigDict(json_schema_extra=union_rules(SFT="sft"))

    type: Literal["SFT"] = Field(default="SFT", description="Training method. Default: SFT.")
    sft: SFT = Field(default=SFT(), description="Settings of SFT. Default: loss on assistant turns.")


class TargetModules(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "(self.type == 'Names') == has(self.names)",
                "names goes with type Names: list the module names there, or remove them for AllLinear",
            )
        )
    )

    type: Literal["AllLinear", "Names"] = Field(
        default="AllLinear",
        description="All linear layers but the output head, or the named modules. Default: AllLinear.",
    )
    names: Annotated[list[Annotated[str, Field(max_length=128)]], Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="Module names as PEFT matches them; only with type Names. No default."
    )


class LoRA(Section):
    rank: int = Field(default=16, ge=1, le=1024, description="Rank r of the update. Default: 16.")
    alpha: float = Field(default=32, gt=0, le=4096, description="Scale: the update is multiplied by alpha / rank. Default: 32.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before the update. Default: 0.")
    target_modules: TargetModules = Field(default=TargetModules(), description="Layers that get an update. Default: all linear ones.")
    modules_to_save: Annotated[list[Annotated[str, Field(max_length=128)]], Field(max_length=16)] = Field(
        default=[],
        description="Modules trained in full and saved with the adapter, such as embed_tokens and lm_head. Default: none.",
    )


class AdapterType(StrEnum):
    LORA = "LoRA"
    NONE = "None"


class Adapter(Section):
    model_config = ConfigDict(json_schema_extra=union_rules(LoRA="lora"))

    type: AdapterType = Field(default=AdapterType.LORA, description="LoRA, or None for training all weights. Default: LoRA.")
    lora: LoRA | None = Field(default=None, description="Settings of LoRA. Default: rank 16, alpha 32, all linear layers.")

    @property
    def effective_lora(self) -> LoRA:
        return self.lora or LoRA()


class QuantizationType(StrEnum):
    NONE = "None"
    NF4 = "NF4"


class Quantization(Section):
    type: QuantizationType = Field(
        default=QuantizationType.NONE,
        description="How the frozen base is held in memory while training; QLoRA is LoRA with NF4. Default: None.",
    )
    double_quantization: bool = Field(default=True, description="Quantize NF4's scales too. Default: true.")
    compute_dtype: Literal["BFloat16", "Float16", "Float32"] = Field(
        default="BFloat16",
        description="Type that NF4 weights are unpacked to. Default: BFloat16 (fp16 where the device has no bf16).",
    )


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


# --------------------------------------------------------------------------------------------------- checkpoints, evaluation, export


class Checkpoints(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(("(self.type == 'Steps') == has(self.everySteps)", "everySteps goes with type Steps"))
    )

    type: Literal["Auto", "Steps"] = Field(
        default="Auto",
        description="Cadence: Auto balances the time of a save against work lost, Steps is fixed. Default: Auto.",
    )
    every_steps: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="Optimizer steps between checkpoints; only with type Steps. No default.",
    )
    keep: int = Field(default=2, ge=1, le=100, description="Newest verified checkpoints that are kept. Default: 2.")
    on_preemption: Literal["Save", "Skip"] = Field(default="Save", description="What SIGTERM does before the pod stops. Default: Save.")


METRICS: dict[str, Literal["Higher", "Lower"]] = {
    "AnswerChoice": "Higher",
    "ExactMatch": "Higher",
    "Perplexity": "Lower",
    "StopRate": "Higher",
}
"""Every metric with its good direction. `<data set>/<metric>` is the metric on the test rows that a data set brought along."""


class Gate(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "[has(self.min), has(self.max), has(self.minImprovement), has(self.maxRegression)].filter(x, x).size() == 1",
                "set exactly one of min, max, minImprovement, maxRegression",
            ),
            (
                "(has(self.minImprovement) || has(self.maxRegression)) == has(self.against)",
                "against (Base or Production) goes with minImprovement or maxRegression, and with these only",
            ),
        )
    )

    name: Name = Field(description="Name of the gate, unique in the job. Required.")
    metric: Annotated[
        str,
        Field(pattern=r"^([a-z]([-a-z0-9]*[a-z0-9])?/)?(AnswerChoice|ExactMatch|Perplexity|StopRate)$", max_length=80),
    ] = Field(description="Metric on the held-out test rows, or <data set>/<metric> on the test split a data set brings along. Required.")
    against: Literal["Base", "Production"] | None = Field(
        default=None,
        description="What the tuned model is compared with; for minImprovement and maxRegression. No default.",
    )
    min: float | None = Field(default=None, description="The 95 % lower bound must reach this, in the metric's unit. No default.")
    max: float | None = Field(default=None, description="The 95 % upper bound must not exceed this, in the metric's unit. No default.")
    min_improvement: float | None = Field(
        default=None,
        description="Lower bound of the improvement over the baseline must exceed this, in the metric's unit. No default.",
    )
    max_regression: float | None = Field(
        default=None,
        description="Upper bound of the loss against the baseline must not exceed this, in the metric's unit. No default.",
    )


class Evaluation(Section):
    min_samples: int = Field(default=30, ge=1, le=100_000, description="Fewer samples than this leave a gate Inconclusive. Default: 30.")
    max_samples: int = Field(default=2000, ge=1, le=1_000_000, description="Rows scored at most per metric, drawn by seed. Default: 2000.")
    max_new_tokens: int = Field(
        default=64,
        ge=1,
        le=8192,
        description="Tokens generated at most per row for ExactMatch and StopRate. Default: 64.",
    )
    gates: Annotated[list[Gate], Field(max_length=32)] = Field(
        default=[],
        description="Conditions on the evidence; one that fails or is inconclusive ends the job. Default: none.",
        json_schema_extra=map_list("name"),
    )


class GGUFType(StrEnum):
    F16 = "F16"
    BF16 = "BF16"
    Q8_0 = "Q8_0"
    Q6_K = "Q6_K"
    Q5_K_M = "Q5_K_M"
    Q4_K_M = "Q4_K_M"


class ParityBound(Section):
    format: Literal["Merged", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"] = Field(
        description="Format that the bounds hold for. Required."
    )
    max_kl: float | None = Field(
        default=None,
        alias="maxKL",
        gt=0,
        le=10,
        description="Largest mean KL divergence from the adapter on the unquantized base, in nats. Default: three times what correct rounding of this model to the format, or the runtime's own arithmetic, was measured to lose.",
    )
    min_top1_agreement: float | None = Field(
        default=None,
        alias="minTop1Agreement",
        ge=0,
        le=1,
        description="Least share of answer positions with the same most likely token. Default: it may change at twice as many positions as by correct rounding or the runtime's arithmetic, and three more.",
    )


class Export(Section):
    merged: Literal["Publish", "Omit"] = Field(
        default="Publish",
        description="Whether the merged safetensors are among the published artifacts. Default: Publish.",
    )
    merged_dtype: Dtype = Field(
        default=Dtype.AUTO,
        description="Type of the merged weights. Auto: bf16 where the base is and rounding to it loses at most 1 % of the tune and of the top tokens, else fp16 where its range and precision hold the weights, else fp32 (vLLM casts that to 16 bits unless told otherwise). Default: Auto.",
    )
    gguf: Annotated[list[GGUFType], Field(max_length=8)] = Field(
        default=[],
        description="GGUF files to make, by llama.cpp's type names. Default: none.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    parity: Annotated[list[ParityBound], Field(max_length=8)] = Field(
        default=[],
        description="Bounds that take the place of those measured in the stage. Default: none.",
        json_schema_extra=map_list("format"),
    )

    def own_bounds(self, format: str) -> ParityBound | None:
        """The bounds that the user set for a format."""
        return next((bound for bound in self.parity if bound.format == format), None)


# ------------------------------------------------------------------------------------------------------------------- the run file


class Stage(StrEnum):
    """The stages of a run, in order."""

    PREPARE = "prepare"
    TRAIN = "train"
    PACKAGE = "package"
    EVALUATE = "evaluate"


class ExitCode(IntEnum):
    """What a stage's process ends with. A Job's pod failure policy and the operator's retry policy read these."""

    OK = 0
    CRASH = 1
    """An error nobody foresaw; worth another attempt."""
    INVALID_RUN_FILE = 2
    """The run file does not parse: the platform's own mistake, never retried."""
    INVALID_INPUT = 10
    """Model, data or settings that cannot work: the user must change something; never retried."""
    GATE_FAILED = 11
    """Evidence was gathered and says no; never retried."""
    DIVERGED = 12
    """A loss or gradient norm was not finite; never retried, the last good checkpoint is kept."""
    OUT_OF_MEMORY = 13
    GPU_NOT_VISIBLE = 14
    """The pod was given GPUs and sees none; worth another node."""
    STORAGE = 15
    """Storage full or failing; worth another attempt."""
    PARITY_FAILED = 16
    """An artifact is not what was trained; never retried, nothing is published."""
    TERMINATED = 143
    """Stopped by SIGTERM with the work saved; not a failure of the job."""


RETRYABLE = frozenset({ExitCode.CRASH, ExitCode.OUT_OF_MEMORY, ExitCode.GPU_NOT_VISIBLE, ExitCode.STORAGE, ExitCode.TERMINATED})


class JobIdentity(Section):
    namespace: str = "default"
    name: str = "local"
    uid: str = "local"


class StorageLocation(Section):
    """Where a job's files lie: `<root>/<prefix>`; `uri` is what names `root` in artifact URIs (`pvc://<claim>`)."""

    root: str
    prefix: str
    uri: str = "file://"


class Baseline(Section):
    """A served artifact that the tuned model is compared with."""

    name: str
    uri: str
    sha256: str


class RunSpec(Section):
    """Everything a stage is told. The same JSON travels in a pod's annotation and runs from a file on a laptop.

    In a file, `source` may also be a local path (`/data/base`, `./rows.jsonl`); the CRD does not allow that.
    """

    job: JobIdentity = JobIdentity()
    attempt: int = 1
    storage: StorageLocation
    claims: dict[str, str] = Field(default={}, description="Mount path of each claim that a pvc:// source names.")
    model: Model
    datasets: list[Dataset]
    preparation: Preparation = Preparation()
    method: Method = Method()
    adapter: Adapter = Adapter()
    quantization: Quantization = Quantization()
    training: Training = Training()
    checkpoints: Checkpoints = Checkpoints()
    retention: Literal["Delete", "Keep"] = Field(default="Keep", description="Checkpoints after the last stage.")
    evaluation: Evaluation = Evaluation()
    export: Export = Export()
    served_artifact: GGUFType | None = Field(
        default=None, description="GGUF type that will be served and is judged; the first of export.gguf."
    )
    chat_template_text: str | None = Field(default=None, description="The template of a ConfigMap, read by the operator.")
    gpus_per_node: int = Field(default=0, description="GPUs this pod was given; 0 allows CPU.")
    image: str = ""
    production: Baseline | None = Field(default=None, description="The Production version's served artifact, where there is one.")
    resume_from: StorageLocation | None = Field(default=None, description="Storage of the older job whose equal stages are taken over.")


class LocalModel(Model):
    source: str = Field(min_length=1, max_length=4096)


class LocalDataset(Dataset):
    source: str = Field(min_length=1, max_length=4096)


class LocalRunSpec(RunSpec):
    """A run file read by the trainer: sources may be local paths as well."""

    model: LocalModel
    datasets: list[LocalDataset]  # type: ignore[assignment]


# --------------------------------------------------------------------------------------------------------------- what a stage answers

TERMINATION_MESSAGE_BYTES = 3500
"""Kubernetes keeps 4,096 bytes of a termination message; the rest is room for its own words."""


class Answer(Section):
    """Parts of an answer: read leniently, so that an operator understands a trainer one version newer."""

    model_config = ConfigDict(extra="ignore")


class Artifact(Answer):
    """A published file, or a folder whose `sha256` is that of its manifest lines (`<sha256>  <path>`, sorted by path)."""

    name: str
    format: Literal["Safetensors", "GGUF", "Adapter"]
    uri: str
    sha256: str
    bytes: int


class DatasetReport(Answer):
    digest: str
    rows_in: int
    rows_out: dict[str, int] = Field(default={}, description="Rows per split: train, validation, test, <data set>/test.")
    dropped: dict[str, int] = Field(default={}, description="Dropped rows by reason.")
    token_length: dict[str, int] = Field(default={}, description="Percentiles p50, p90, p99, max of training rows, in tokens.")
    truncated: int = 0
    leaked: int = Field(default=0, description="Groups found in more than one split; always 0 by construction, and checked.")
    train_tokens: int = 0
    report: str = Field(default="", description="URI of the full report beside the data.")


class MemoryPlan(Answer):
    """Bytes per GPU by part, and what was chosen from them."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    total_bytes: int
    trainable_parameters: int
    total_parameters: int
    per_device_batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    learning_rate: float
    total_steps: int
    training_seconds: int | None = None
    dtypes: dict[str, str] = {}
    warnings: list[str] = []


class CheckpointReport(Answer):
    step: int
    uri: str
    digest: str
    time: str


class Estimate(Answer):
    """A metric with its 95 % bounds (paired bootstrap by group)."""

    value: float
    low: float
    high: float
    n: int


class MetricReport(Answer):
    """One metric for each model it was taken of, and the paired improvement over each baseline (in the good direction)."""

    name: str
    tuned: Estimate
    base: Estimate | None = None
    production: Estimate | None = None
    improvement_over_base: Estimate | None = None
    improvement_over_production: Estimate | None = None


class GateReport(Answer):
    name: str
    metric: str
    result: Literal["Passed", "Failed", "Inconclusive"]
    evidence: str = Field(description="One sentence with the bound, the threshold and the sample count.")


class EvaluationReport(Answer):
    artifact: str = Field(default="", description="Name of the artifact that was judged, as it will be served.")
    metrics: list[MetricReport] = []
    gates: list[GateReport] = []


class ParityReport(Answer):
    format: str
    dtype: str | None = Field(default=None, description="Type of the merged weights, as export.mergedDtype names it.")
    mean_kl: float = Field(alias="meanKL")
    top1: float
    max_kl: float | None = Field(default=None, alias="maxKL", description="Bound that meanKL was judged by, in nats.")
    min_top1: float | None = Field(default=None, description="Bound that top1 was judged by.")
    rounding_kl: float | None = Field(
        default=None,
        alias="roundingKL",
        description="Mean KL, in nats, of the tuned model with each weight rounded to the format and nothing else.",
    )
    kept_of_tune: float | None = Field(default=None, description="Lower bound of KL(tuned‖base) − KL(tuned‖export), in nats.")
    fallback_tensors: int = 0
    verdict: Literal["Passed", "Failed", "Reported"]


class StageResult(Answer):
    """A stage's answer: the pod's termination message, and a member of its manifest.

    `reason` is PascalCase and one of the operator's known reasons; `message` says what was expected and what to do, and never
    quotes the data's text.
    """

    stage: Stage
    reason: str = "Completed"
    message: str = ""
    dataset: DatasetReport | None = None
    plan: MemoryPlan | None = None
    base_model: str | None = None
    base_revision: str | None = None
    checkpoint: CheckpointReport | None = None
    resumed_from_step: int | None = None
    steps: int | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    artifacts: list[Artifact] = []
    parity: list[ParityReport] = []
    quantization_gap: float | None = None
    evaluation: EvaluationReport | None = None
    manifest_digest: str | None = None
    warnings: list[str] = []

    def termination_message(self) -> str:
        """The answer as JSON of at most `TERMINATION_MESSAGE_BYTES`.

        Artifacts and gates, on which the operator acts, are cut last. The manifest has all.
        """
        from finetune_trainer.termination import fitting_json  # the operator's image holds this module without that one

        body = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
        return fitting_json(body | {"stage": self.stage.value, "reason": self.reason}, TERMINATION_MESSAGE_BYTES)


# --------------------------------------------------------------------------------------------------------------------- progress


class Metric(BaseModel):
    name: str
    value: str


class TrainerStatus(BaseModel):
    """Kubeflow Trainer's wire format (KEP-2779), so that stock trainers report here as well.

    Metrics understood: step, total_steps, epoch, loss, eval_loss, learning_rate, tokens_per_second, gpu_memory_bytes, checkpoint_step.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")

    progress_percentage: int | None = Field(default=None, ge=0, le=100)
    estimated_remaining_seconds: int | None = Field(default=None, ge=0)
    metrics: Annotated[list[Metric], Field(max_length=64)] = []
    last_updated_time: str | None = None


class ProgressReport(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")

    trainer_status: TrainerStatus


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of JSON data in one canonical form: sorted keys, no spaces, UTF-8."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()
