"""A stage's answer as JSON that fits into a termination message: what can be missed is cut first. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

Body = dict[str, Any]


def fitting_json(answer: Body, limit_bytes: int) -> str:
    """The answer as JSON of at most `limit_bytes`, numbers to six digits, cut in the order of `_CUTS` as far as it must be."""
    body: Body = _plain_numbers(answer)
    for cut in _CUTS:
        text = _json(body)
        if len(text.encode()) <= limit_bytes:
            return text
        cut(body)
    return _json(body)


def _json(body: Body) -> str:
    return json.dumps(body, separators=(",", ":"))


_LARGEST = 1e308


def _plain_numbers(value: Any) -> Any:
    """Six digits say what a reader asks. JSON has neither NaN nor infinity: the largest number stands for both."""
    match value:
        case dict():
            return {key: _plain_numbers(member) for key, member in value.items()}
        case list():
            return [_plain_numbers(member) for member in value]
        case float() if not math.isfinite(value):
            return -_LARGEST if value < 0 else _LARGEST
        case float():
            return float(f"{value:.6g}")
    return value


def _cut_warnings(body: Body) -> None:
    body.pop("warnings", None)
    body.get("plan", {}).pop("warnings", None)


def _cut_message(limit: int) -> Callable[[Body], None]:
    def cut(body: Body) -> None:
        body["message"] = body.get("message", "")[:limit]

    return cut


def _cut_unjudged_metrics(body: Body) -> None:
    evaluation = body.get("evaluation", {})
    judged = {gate["metric"] for gate in evaluation.get("gates", [])}
    evaluation["metrics"] = [metric for metric in evaluation.get("metrics", []) if metric["name"] in judged]


def _cut_members(*names: str) -> Callable[[Body], None]:
    def cut(body: Body) -> None:
        for name in names:
            body.pop(name, None)

    return cut


def _cut_evidence(body: Body) -> None:
    evaluation = body.get("evaluation", {})
    evaluation.pop("metrics", None)
    for gate in evaluation.get("gates", []):
        gate["evidence"] = gate["evidence"][:40]


_CUTS: list[Callable[[Body], None]] = [
    _cut_warnings,
    _cut_message(1024),
    _cut_unjudged_metrics,
    _cut_message(256),
    _cut_members("parity"),
    _cut_evidence,
    _cut_message(64),
    _cut_members("evaluation", "plan", "dataset"),
    _cut_members("artifacts"),
]
