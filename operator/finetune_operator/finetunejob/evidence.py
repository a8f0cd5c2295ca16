"""What a stage's answer leaves in status, and what is said of it. Pure."""

from __future__ import annotations

import json

from finetune_api.answer import StageResult
from finetune_api.run import Stage

from finetune_operator.finetunejob.draft import Draft


def summary(result: StageResult) -> str:
    if result.dataset:
        rows = ", ".join(f"{count} {split}" for split, count in result.dataset.rows_out.items())
        return f"{result.dataset.rows_in} rows in; out: {rows}"
    if result.stage is Stage.TRAIN and result.steps is not None:
        return f"{result.steps} steps" + (f", loss {result.train_loss:.3g}" if result.train_loss is not None else "")
    if result.stage is Stage.PACKAGE:
        return f"{len(result.artifacts)} artifacts, parity proven for " + (", ".join(report.format for report in result.parity) or "none")
    if result.evaluation:
        return "; ".join(f"{gate.name}: {gate.result}, {gate.evidence}" for gate in result.evaluation.gates) or "no gates"
    return ""


def absorb(draft: Draft, result: StageResult) -> None:
    """Copies an answer's evidence into status, under status' own member names; numbers that are none become null, which is not written."""
    wire = json.loads(result.model_dump_json(by_alias=True, exclude_none=True))
    for member in ("dataset", "plan", "baseModel", "baseRevision", "checkpoint", "evaluation", "quantizationGap"):
        if member in wire:
            draft.status[member] = wire[member]
    for member in ("artifacts", "parity"):
        if wire.get(member):
            draft.status[member] = wire[member]
    if result.stage is Stage.TRAIN and wire.get("trainLoss") is not None:
        # a run too short to have reported shows the mean loss; the last one is what people watched
        draft.status["progress"] = {"loss": wire["trainLoss"], **(draft.status.get("progress") or {})}
    if result.plan is not None:
        _warn_of_missing_gpus(draft)


def _warn_of_missing_gpus(draft: Draft) -> None:
    wanted = (draft.job["spec"].get("resources") or {}).get("gpusPerNode", 1)
    largest = draft.observed.largest_node_gpus
    if largest is not None and wanted > largest:
        warnings = draft.status["plan"].setdefault("warnings", [])
        warnings.append(f"{wanted} GPUs are asked for on one node; the largest node has {largest}")
