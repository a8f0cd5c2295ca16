"""What a stage answers, and how that becomes a termination message."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from finetune_api.outcome import Reason
from finetune_api.run import Stage
from finetune_api.section import Section
from finetune_api.status import LARGEST_INTEGER, AtMost, Long, Short
from finetune_api.termination import fitting_json

TERMINATION_MESSAGE_BYTES = 3500
"""Kubernetes keeps 4,096 bytes of a termination message; the rest is room for its own words."""

Uri = Annotated[str, Field(max_length=1024)]
"""Refused rather than cut: what is left of it would name something else."""

Counts = Annotated[dict[str, int], AtMost(64)]

Warnings = Annotated[list[Long], AtMost(32)]


class Answer(Section):
    """Parts of an answer: read leniently, so that an operator understands a trainer one version newer. Status has them as they are."""

    model_config = ConfigDict(extra="ignore")


class Artifact(Answer):
    """A published file, or a folder whose `sha256` is that of its manifest lines (`<sha256>  <path>`, sorted by path)."""

    name: Annotated[str, Field(max_length=64)] = Field(description="Name of the artifact, unique in the job.")
    format: Literal["Safetensors", "GGUF", "Adapter"] = Field(description="Format of the artifact.")
    uri: Uri = Field(description="Where it lies: pvc://claim/path.")
    sha256: Annotated[str, Field(max_length=256)] = Field(
        description="SHA-256 of the file, or of a folder's sorted `<sha256>  <path>` lines."
    )
    bytes: int = Field(description="Size in bytes.")


class DatasetReport(Answer):
    digest: Annotated[str, Field(max_length=256)] = Field(description="Digest that names the prepared data.")
    rows_in: int = Field(description="Rows that were read.")
    rows_out: Counts = Field(default={}, description="Rows per split: train, validation, test, <data set>/test.")
    dropped: Counts = Field(default={}, description="Dropped rows by reason.")
    token_length: Counts = Field(default={}, description="Percentiles p50, p90, p99, max of training rows, in tokens.")
    truncated: int = Field(default=0, description="Rows that were longer than the maximum and lost their end.")
    cleaned: int | None = Field(default=None, description="Rows from which control characters were removed.")
    leaked: int = Field(default=0, description="Groups found in more than one split; always 0 by construction, and checked.")
    train_tokens: int = Field(default=0, description="Tokens of the training rows.")
    report: Annotated[str, Field(max_length=1024)] = Field(default="", description="URI of the full report beside the data.")


class MemoryPlan(Answer):
    """Bytes per GPU by part, and what was chosen from them."""

    weights_bytes: int = Field(description="Weights, in bytes per GPU.")
    gradients_bytes: int = Field(description="Gradients, in bytes per GPU.")
    optimizer_bytes: int = Field(description="Optimizer state, in bytes per GPU.")
    activations_bytes: int = Field(description="Activations of one micro-batch, in bytes per GPU.")
    total_bytes: int = Field(description="All of it, in bytes per GPU.")
    trainable_parameters: int = Field(description="Parameters that are trained.")
    total_parameters: int = Field(description="Parameters of the model with what is trained beside it.")
    per_device_batch_size: int = Field(description="Samples in one forward pass on a GPU: the micro-batch.")
    gradient_accumulation_steps: int = Field(description="Micro-batches per optimizer step.")
    gradient_checkpointing: bool = Field(description="Whether activations are computed again instead of kept.")
    learning_rate: float = Field(description="Learning rate that is used.")
    total_steps: int = Field(description="Optimizer steps of the whole run.")
    training_seconds: int | None = Field(default=None, description="Estimated time of training in seconds.")
    dtypes: Annotated[dict[str, Short], AtMost(16)] = Field(default={}, description="Types in memory by part.")
    planned_for: Short | None = Field(default=None, description="Device that the plan counts with, and whether it is only assumed.")
    warnings: Warnings = Field(default=[], description="What the plan gives reason to mind; status.warnings has it as well.")


class CheckpointReport(Answer):
    step: int = Field(description="Optimizer step that it was saved after.")
    uri: Uri = Field(description="Where it lies.")
    digest: Annotated[str, Field(max_length=256)] = Field(description="Digest of its manifest.")
    time: Short = Field(description="When it was saved (RFC 3339).")


class Estimate(Answer):
    """A metric with its 95 % bounds (paired bootstrap by group)."""

    value: float = Field(description="The estimate.")
    low: float = Field(description="Lower bound of the 95 % interval.")
    high: float = Field(description="Upper bound of the 95 % interval.")
    n: int = Field(description="Samples it was taken of.")


class MetricReport(Answer):
    """One metric for each model it was taken of, and the paired improvement over each baseline (in the good direction)."""

    name: Short = Field(description="Name of the metric, or <data set>/<metric>.")
    tuned: Estimate = Field(description="Of the tuned model, as it will be served.")
    base: Estimate | None = Field(default=None, description="Of the base model in the same format.")
    production: Estimate | None = Field(default=None, description="Of the version in production.")
    improvement_over_base: Estimate | None = Field(default=None, description="Paired difference to the base, in the good direction.")
    improvement_over_production: Estimate | None = Field(
        default=None, description="Paired difference to the version in production, in the good direction."
    )


class GateReport(Answer):
    name: Short = Field(description="Name of the gate.")
    metric: Short = Field(description="Metric that it judges.")
    result: Literal["Passed", "Failed", "Inconclusive"] = Field(description="Passed, Failed, or Inconclusive, which blocks as well.")
    evidence: Long = Field(description="One sentence with the bound, the threshold and the sample count.")


METRICS_KEPT = 100
"""Of a run's evaluation; a version's lineage has as many."""


class EvaluationReport(Answer):
    artifact: Short = Field(default="", description="Name of the artifact that was judged, as it will be served.")
    metrics: Annotated[list[MetricReport], AtMost(METRICS_KEPT)] = Field(default=[], description="Metrics of each model.")
    gates: Annotated[list[GateReport], AtMost(32)] = Field(default=[], description="Gates and how they were judged.")


class ParityReport(Answer):
    format: Short = Field(description="Format of the artifact that was compared with what was trained.")
    dtype: Short | None = Field(default=None, description="Type of the merged weights, as export.mergedDtype names it.")
    mean_kl: float = Field(alias="meanKL", description="Mean KL divergence from what was trained, in nats per token.")
    top1: float = Field(description="Share of positions with the same most likely token.")
    max_kl: float | None = Field(default=None, alias="maxKL", description="Bound that meanKL was judged by, in nats.")
    min_top1: float | None = Field(default=None, description="Bound that top1 was judged by.")
    rounding_kl: float | None = Field(
        default=None,
        alias="roundingKL",
        description="Mean KL, in nats, of the tuned model with each weight rounded to the format and nothing else.",
    )
    kept_of_tune: float | None = Field(default=None, description="Lower bound of KL(tuned‖base) − KL(tuned‖export), in nats.")
    fallback_tensors: int = Field(default=0, description="Tensors that fell back to another quantization.")
    verdict: Literal["Passed", "Failed", "Reported"] = Field(description="Passed, Failed, or Reported where nothing can be judged.")


class StageResult(Answer):
    """A stage's answer: the pod's termination message, and a member of its manifest.

    `reason` is one of `Reason`, of an image of the user's own any word; `message` says what was expected and what to do, and never
    quotes the data's text.
    """

    stage: Stage
    reason: Short = Reason.COMPLETED
    message: str = ""
    dataset: DatasetReport | None = None
    plan: MemoryPlan | None = None
    base_model: Long | None = None
    base_revision: Long | None = None
    checkpoint: CheckpointReport | None = None
    resumed_from_step: int | None = None
    steps: int | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    artifacts: Annotated[list[Artifact], AtMost(16)] = []
    parity: Annotated[list[ParityReport], AtMost(16)] = []
    quantization_gap: float | None = None
    evaluation: EvaluationReport | None = None
    manifest_digest: str | None = None
    warnings: Warnings = []

    def termination_message(self) -> str:
        """The answer as JSON of at most `TERMINATION_MESSAGE_BYTES`.

        Artifacts and gates, on which the operator acts, are cut last. The manifest has all.
        """

        body = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
        return fitting_json(body | {"stage": self.stage.value, "reason": self.reason}, TERMINATION_MESSAGE_BYTES)


def read_answer(message: str) -> StageResult | None:
    """What a pod said, as far as status can hold it; None where it is no answer. An image of the user's own may say what it likes."""
    try:
        said = StageResult.model_validate_json(message)
    except ValidationError:
        return None
    return _held_part(said)


def _held(value: Any) -> Any:
    """Integers as large as they may be. What is no number is left out, and with it the part that cannot be without: JSON has no NaN."""
    match value:
        case Answer():
            return _held_part(value)
        case list():
            return [held for item in value if (held := _held(item)) is not None]
        case dict():
            return {name: held for name, item in value.items() if (held := _held(item)) is not None}
        case float() if not math.isfinite(value):
            return None
        case int() if abs(value) > LARGEST_INTEGER:
            return -LARGEST_INTEGER if value < 0 else LARGEST_INTEGER
    return value


PartT = TypeVar("PartT", bound=Answer)


def _held_part(part: PartT) -> PartT | None:
    members = {name: _held(getattr(part, name)) for name in type(part).model_fields}
    missing = any(members[name] is None for name, field in type(part).model_fields.items() if field.is_required())
    return None if missing else part.model_copy(update=members)
