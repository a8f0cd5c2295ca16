"""Verdicts on evidence: a gate passes when the 95 % bound does, not when the estimate does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.answer import Estimate, GateReport, MetricReport
from finetune_api.sections.evaluation import METRICS, Gate

from finetune_trainer.bootstrap import Samples, difference, estimate
from finetune_trainer.evaluate.metrics import metric_of

MIN_GROUPS = 5
"""Fewer groups than this have no bounds worth the name, however many rows they hold."""
Measured = Mapping[str, Samples]
"""Samples by metric name (`<data set>/<metric>` or `<metric>`)."""


@dataclass(frozen=True)
class Evidence:
    """What was measured of each model. `production_absence`: why Production has no figures; None where it has, or where there is none."""

    tuned: Measured
    base: Measured
    production: Measured | None = None
    production_absence: str | None = None


def metric_reports(evidence: Evidence) -> list[MetricReport]:
    """Every metric with its bounds for each model, and the paired improvements in its good direction."""
    return [_metric_report(name, evidence) for name in evidence.tuned]


def _metric_report(name: str, evidence: Evidence) -> MetricReport:
    statistic = metric_of(name).statistic
    tuned, base = evidence.tuned[name], evidence.base.get(name)
    production = (evidence.production or {}).get(name)
    return MetricReport(
        name=name,
        tuned=estimate(tuned, statistic),
        base=estimate(base, statistic) if base else None,
        production=estimate(production, statistic) if production else None,
        improvement_over_base=_improvement(name, tuned, base),
        improvement_over_production=_improvement(name, tuned, production),
    )


def _improvement(name: str, tuned: Samples, baseline: Samples | None) -> Estimate | None:
    if baseline is None:
        return None
    better, worse = (tuned, baseline) if METRICS[name.rpartition("/")[2]] == "Higher" else (baseline, tuned)
    return difference(better, worse, metric_of(name).statistic)


def judge_gate(gate: Gate, evidence: Evidence, reports: Mapping[str, MetricReport], min_samples: int) -> GateReport:
    """Passed, Failed, or Inconclusive where the samples are too few or a baseline cannot be compared.

    A gate against Production passes where there is no Production version.
    """
    if gate.against == "Production" and evidence.production is None and evidence.production_absence is None:
        return _report(gate, "Passed", "there is no Production version to compare with")
    report, samples = reports.get(gate.metric), evidence.tuned.get(gate.metric)
    if report is None or samples is None:
        return _report(gate, "Inconclusive", f"no held-out row fits {gate.metric}, which needs {metric_of(gate.metric).fitting}")
    if samples.n < min_samples:
        return _report(gate, "Inconclusive", f"{samples.n} samples, at least {min_samples} are needed (evaluation.minSamples)")
    if samples.group_count < MIN_GROUPS:
        return _report(gate, "Inconclusive", f"{samples.group_count} groups of rows, at least {MIN_GROUPS} are needed for bounds")
    size = f"{samples.n} samples in {samples.group_count} groups"
    if gate.against is None:
        return _judge_value(gate, report.tuned, size)
    return _judge_change(gate, evidence, report, size)


def _judge_value(gate: Gate, tuned: Estimate, size: str) -> GateReport:
    found = f"{gate.metric} {_figure(tuned)}"
    if gate.min is not None:
        return _report(gate, "Passed" if tuned.low >= gate.min else "Failed", f"{found}; the lower bound must reach {gate.min:g}; {size}")
    if gate.max is not None:
        return _report(
            gate, "Passed" if tuned.high <= gate.max else "Failed", f"{found}; the upper bound must not exceed {gate.max:g}; {size}"
        )
    return _report(gate, "Inconclusive", "the gate names no threshold")


def _judge_change(gate: Gate, evidence: Evidence, report: MetricReport, size: str) -> GateReport:
    production = gate.against == "Production"
    baseline, change = (
        (report.production, report.improvement_over_production) if production else (report.base, report.improvement_over_base)
    )
    if baseline is None or change is None:
        return _report(gate, "Inconclusive", evidence.production_absence or f"{gate.against} has no figure for {gate.metric}")
    found = f"{gate.metric} {baseline.value:.4g} → {report.tuned.value:.4g}, improvement {_figure(change)}"
    if gate.min_improvement is not None:
        passed = change.low > gate.min_improvement
        return _report(gate, "Passed" if passed else "Failed", f"{found}; the lower bound must exceed {gate.min_improvement:g}; {size}")
    if gate.max_regression is not None:
        # The upper bound of (baseline − tuned) is the lower bound of the improvement, negated.
        passed = -change.low <= gate.max_regression
        return _report(gate, "Passed" if passed else "Failed", f"{found}; it may lose at most {gate.max_regression:g}; {size}")
    return _report(gate, "Inconclusive", "the gate names no threshold")


def _figure(found: Estimate) -> str:
    return f"{found.value:.4g} [{found.low:.4g}, {found.high:.4g}]"


def _report(gate: Gate, result: str, evidence: str) -> GateReport:
    return GateReport.model_validate({"name": gate.name, "metric": gate.metric, "result": result, "evidence": evidence})
