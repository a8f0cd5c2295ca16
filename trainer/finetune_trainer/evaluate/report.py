"""The evaluation for people: report.json, report.md and a picture of every metric with its bounds."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

from finetune_api.answer import Estimate, EvaluationReport, MetricReport
from finetune_api.sections.evaluation import METRICS

_COLOURS = {"tuned": "#1f77b4", "base": "#9aa0a6", "production": "#2ca02c"}
_WIDTH, _LEFT, _RIGHT, _BAR, _GAP = 720, 210, 110, 16, 14


def write_reports(report: EvaluationReport, target: Path) -> None:
    (target / "report.json").write_text(report.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n", encoding="utf-8")
    (target / "report.md").write_text(markdown(report), encoding="utf-8")
    (target / "metrics.svg").write_text(picture(report.metrics), encoding="utf-8")


def markdown(report: EvaluationReport) -> str:
    lines = [
        f"# Evaluation of {report.artifact}",
        "",
        "Values with 95 % bounds of a bootstrap by group; improvements are paired and in each metric's good direction.",
        "",
        "| metric | good | tuned | base | production | over base | over production | n |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_row(metric) for metric in report.metrics),
        "",
        "![metrics](metrics.svg)",
        "",
        "## Gates",
        "",
        *(f"- **{gate.result}** {gate.name}: {gate.evidence}" for gate in report.gates),
    ]
    return "\n".join([*lines, *([] if report.gates else ["none"]), ""])


def _row(metric: MetricReport) -> str:
    found = (metric.tuned, metric.base, metric.production, metric.improvement_over_base, metric.improvement_over_production)
    cells = [_cell(estimate) for estimate in found]
    return f"| {metric.name} | {METRICS[metric.name.rpartition('/')[2]].lower()} | {' | '.join(cells)} | {metric.tuned.n} |"


def _cell(found: Estimate | None) -> str:
    return "–" if found is None else f"{found.value:.4g} [{found.low:.4g}, {found.high:.4g}]"


def picture(metrics: list[MetricReport]) -> str:
    """An SVG with a bar for each model of each metric, and its bounds as a whisker. Each metric has a scale of its own."""
    shapes: list[str] = []
    top = _GAP
    for metric in metrics:
        bars = [(name, getattr(metric, name)) for name in _COLOURS if getattr(metric, name) is not None]
        limit = max([bar.high for _, bar in bars] + [1e-12])
        shapes.append(_text(_LEFT - 10, top + _BAR * len(bars) / 2, metric.name, "end"))
        for index, (name, bar) in enumerate(bars):
            shapes += _bar(name, bar, top + index * _BAR, (_WIDTH - _LEFT - _RIGHT) / limit)
        top += _BAR * len(bars) + _GAP
    legend = [shape for index, name in enumerate(_COLOURS) for shape in _legend(name, _LEFT + 110 * index, top)]
    height = top + 2 * _GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *shapes, *legend, "</svg>", ""])


def _bar(name: str, bar: Estimate, top: float, scale: float) -> list[str]:
    middle = top + _BAR / 2
    low, high = _LEFT + max(bar.low, 0) * scale, _LEFT + max(bar.high, 0) * scale
    return [
        f'<rect x="{_LEFT}" y="{top + 2}" width="{max(bar.value, 0) * scale:.1f}" height="{_BAR - 4}" fill="{_COLOURS[name]}"/>',
        f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8" stroke="black" fill="none"/>',
        _text(high + 8, middle, f"{bar.value:.4g}", "start"),
    ]


def _legend(name: str, left: float, top: float) -> list[str]:
    return [f'<rect x="{left}" y="{top}" width="12" height="12" fill="{_COLOURS[name]}"/>', _text(left + 18, top + 6, name, "start")]


def _text(left: float, middle: float, text: str, anchor: str) -> str:
    return f'<text x="{left:.1f}" y="{middle:.1f}" dominant-baseline="central" text-anchor="{anchor}">{escape(text)}</text>'
