"""What a stage answers, and how that becomes a termination message."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from finetune_api.outcome import Reason
from finetune_api.run import Stage
from finetune_api.section import Section
from finetune_api.termination import fitting_json

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
    mean_kl: float = Field(alias="meanKL")
    top1: float
    kept_of_tune: float | None = Field(default=None, description="Lower bound of KL(tuned‖base) − KL(tuned‖export), in nats.")
    fallback_tensors: int = 0
    verdict: Literal["Passed", "Failed", "Reported"]


class StageResult(Answer):
    """A stage's answer: the pod's termination message, and a member of its manifest.

    `reason` is PascalCase and one of the operator's known reasons; `message` says what was expected and what to do, and never
    quotes the data's text.
    """

    stage: Stage
    reason: str = Reason.COMPLETED
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

        body = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
        return fitting_json(body | {"stage": self.stage.value, "reason": self.reason}, TERMINATION_MESSAGE_BYTES)
