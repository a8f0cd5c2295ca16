"""What a gate says of evidence."""

from typing import Any

import numpy as np
import pytest
from finetune_api.answer import EvaluationReport, GateReport
from finetune_api.sections.evaluation import Gate
from finetune_trainer.bootstrap import Samples, samples
from finetune_trainer.evaluate.gates import Evidence, judge_gate, metric_reports
from finetune_trainer.evaluate.report import markdown, picture


def rate(successes: int, n: int = 100, groups: int = 100) -> Samples:
    """`successes` ones first, so that two of them are paired as closely as can be."""
    return samples([1.0] * successes + [0.0] * (n - successes), [f"g{index % groups}" for index in range(n)])


def losses(per_token: float, n: int = 100) -> Samples:
    noise = np.random.default_rng(0).normal(0, 0.05, n)
    return samples(((per_token + noise) * 10).tolist(), [str(index) for index in range(n)], [10.0] * n)


def verdict(evidence: Evidence, min_samples: int = 30, **gate: Any) -> GateReport:
    reports = {report.name: report for report in metric_reports(evidence)}
    return judge_gate(Gate.model_validate({"name": "g", "metric": "AnswerChoice"} | gate), evidence, reports, min_samples)


def tuned_and_base(tuned: Samples, base: Samples, metric: str = "AnswerChoice", **more: Any) -> Evidence:
    return Evidence({metric: tuned}, {metric: base}, **more)


CASES: dict[str, tuple[Evidence, dict[str, Any], str]] = {
    "a rate well over min passes": (tuned_and_base(rate(90), rate(10)), {"min": 0.8}, "Passed"),
    "a rate over min whose lower bound is not fails": (tuned_and_base(rate(84), rate(10)), {"min": 0.8}, "Failed"),
    "a rate well under max passes": (tuned_and_base(rate(10), rate(10)), {"max": 0.2}, "Passed"),
    "a rate under max whose upper bound is not fails": (tuned_and_base(rate(16), rate(10)), {"max": 0.2}, "Failed"),
    "a clear improvement passes": (tuned_and_base(rate(40), rate(15)), {"against": "Base", "minImprovement": 0}, "Passed"),
    "an improvement within the noise fails": (tuned_and_base(rate(16), rate(14)), {"against": "Base", "minImprovement": 0}, "Failed"),
    "no improvement at all fails at zero": (tuned_and_base(rate(15), rate(15)), {"against": "Base", "minImprovement": 0}, "Failed"),
    "a small loss within what is allowed passes": (tuned_and_base(rate(88), rate(90)), {"against": "Base", "maxRegression": 0.1}, "Passed"),
    "an equal model regresses by nothing": (tuned_and_base(rate(90), rate(90)), {"against": "Base", "maxRegression": 0}, "Passed"),
    "a loss over what is allowed fails": (tuned_and_base(rate(70), rate(90)), {"against": "Base", "maxRegression": 0.1}, "Failed"),
    "a lower perplexity is an improvement": (
        tuned_and_base(losses(2.0), losses(3.0), "Perplexity"),
        {"metric": "Perplexity", "against": "Base", "minImprovement": 10},
        "Passed",
    ),
    "a higher perplexity is a regression": (
        tuned_and_base(losses(3.0), losses(2.0), "Perplexity"),
        {"metric": "Perplexity", "against": "Base", "maxRegression": 1},
        "Failed",
    ),
    "no Production passes": (tuned_and_base(rate(1), rate(90)), {"against": "Production", "minImprovement": 0}, "Passed"),
    "a better Production fails the gate": (
        tuned_and_base(rate(50), rate(10), production={"AnswerChoice": rate(80)}),
        {"against": "Production", "maxRegression": 0.05},
        "Failed",
    ),
    "a Production that cannot be compared is inconclusive": (
        tuned_and_base(rate(50), rate(10), production_absence="another tokenizer"),
        {"against": "Production", "minImprovement": 0},
        "Inconclusive",
    ),
    "too few samples are inconclusive": (tuned_and_base(rate(29, 29), rate(0, 29)), {"min": 0.5}, "Inconclusive"),
    "too few groups are inconclusive": (tuned_and_base(rate(90, groups=4), rate(1, groups=4)), {"min": 0.5}, "Inconclusive"),
    "a metric without rows is inconclusive": (
        tuned_and_base(rate(90), rate(1)),
        {"metric": "facts/ExactMatch", "min": 0.5},
        "Inconclusive",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_verdict(case: str) -> None:
    evidence, gate, expected = CASES[case]
    assert verdict(evidence, **gate).result == expected


def test_evidence_names_bound_threshold_and_sample_count() -> None:
    said = verdict(tuned_and_base(rate(40), rate(15)), against="Base", minImprovement=0.1).evidence
    assert "0.15 → 0.4" in said
    assert "0.25 [" in said
    assert "exceed 0.1" in said
    assert "100 samples in 100 groups" in said


def test_a_metric_without_rows_says_which_rows_it_needs() -> None:
    missing = verdict(tuned_and_base(rate(90), rate(1), "ExactMatch"), metric="facts/AnswerChoice", min=0.5)
    assert "8 answer differently; with fewer classes take ExactMatch" in missing.evidence
    missing = verdict(tuned_and_base(rate(90), rate(1)), metric="ExactMatch", min=0.5)
    assert "rows with a prompt and an answer" in missing.evidence


def test_improvements_are_paired_and_in_the_good_direction() -> None:
    report = metric_reports(tuned_and_base(losses(2.0), losses(3.0), "Perplexity"))[0]
    assert report.improvement_over_base is not None
    assert report.base is not None
    assert report.improvement_over_base.value == pytest.approx(report.base.value - report.tuned.value)
    assert report.improvement_over_base.low > 0
    assert report.improvement_over_production is None


def test_the_report_shows_every_metric_and_gate() -> None:
    evidence = tuned_and_base(rate(40), rate(15))
    gate = verdict(evidence, against="Base", minImprovement=0)
    report = EvaluationReport(artifact="Q8_0", metrics=metric_reports(evidence), gates=[gate])
    text = markdown(report)
    assert "| AnswerChoice | higher | 0.4 [" in text
    assert "**Passed** g:" in text
    drawing = picture(report.metrics)
    assert drawing.count("<path") == 2
    assert "production" in drawing
