"""`spec.evaluation`: metrics and gates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from finetune_api.section import Name, Section, map_list, rules

METRICS: dict[str, Literal["Higher", "Lower"]] = {
    "AnswerChoice": "Higher",
    "ExactMatch": "Higher",
    "Perplexity": "Lower",
    "StopRate": "Higher",
}
"""Every metric with its good direction. `<data set>/<metric>` is the metric on the test rows that a data set brought along."""
ANSWER_CHOICES = 8
"""Different answers among which AnswerChoice asks for the true one; chance is 1 / 8."""


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
            (
                "self.metric.endsWith('Perplexity') || ((!has(self.min) || (self.min >= 0.0 && self.min <= 1.0))"
                " && (!has(self.max) || (self.max >= 0.0 && self.max <= 1.0)))",
                "the metric is a share: min and max are from 0 to 1 (0.95 for 95 %)",
            ),
            (
                "self.metric.endsWith('Perplexity') || ((!has(self.minImprovement) || (self.minImprovement > -1.0 && self.minImprovement < 1.0))"
                " && (!has(self.maxRegression) || (self.maxRegression >= -1.0 && self.maxRegression <= 1.0)))",
                "the metric is a share: minImprovement and maxRegression are differences of shares, between -1 and 1 (0.02 for 2 points)",
            ),
            (
                "!self.metric.endsWith('Perplexity') || !has(self.max) || self.max >= 1.0",
                "no perplexity is below 1: a gate with a smaller max never passes",
            ),
        )
    )

    name: Name = Field(description="Name of the gate, unique in the job. Required.")
    metric: Annotated[
        str,
        Field(pattern=rf"^([a-z]([-a-z0-9]*[a-z0-9])?/)?({'|'.join(METRICS)})$", max_length=80),
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
    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "size(self.gates) == 0 || self.minSamples <= self.maxSamples",
                "minSamples is more than maxSamples: every gate would be inconclusive",
            )
        )
    )

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
