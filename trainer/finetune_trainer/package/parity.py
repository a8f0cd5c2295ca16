"""How far an export is from what was trained, in figures; what is judged, and by which bounds. Numbers only: needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from finetune_api.answer import ParityReport
from finetune_api.outcome import Reason
from finetune_api.sections.export import Export

from finetune_trainer.bootstrap import difference, samples
from finetune_trainer.errors import StageError

LEAST_TUNE_NATS = 1e-3
"""A tune that moved the model by less, KL(tuned‖base), cannot be told from rounding: reported, not judged."""
_CHUNK_POSITIONS = 64

Logits = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Distance:
    """Reference against another model at each position. kl: (n,) in nats; same_top1: (n,) bool; rows: (n,) index of the row."""

    kl: Floats
    same_top1: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.int64]

    @property
    def mean_kl(self) -> float:
        return float(self.kl.mean())

    @property
    def top1(self) -> float:
        return float(self.same_top1.mean())


def distance(reference: Iterable[Logits], other: Iterable[Logits]) -> Distance:
    """Distance(s) over rows of logits (positions, vocabulary), in the same order.

    Errors: StageError(ParityFailed) where the vocabularies differ.
    """
    kl: list[Floats] = []
    same: list[npt.NDArray[np.bool_]] = []
    rows: list[npt.NDArray[np.int64]] = []
    for index, (ours, theirs) in enumerate(zip(reference, other, strict=True)):
        if ours.shape != theirs.shape:
            raise StageError(Reason.PARITY_FAILED, f"an export has {theirs.shape[1]} tokens where the model has {ours.shape[1]}")
        kl.append(kl_divergence(ours, theirs))
        same.append(ours.argmax(axis=1) == theirs.argmax(axis=1))
        rows.append(np.full(len(ours), index, np.int64))
    return Distance(np.concatenate(kl), np.concatenate(same), np.concatenate(rows))


def kl_divergence(reference: Logits, other: Logits) -> Floats:
    """KL(reference‖other) at each position, in nats: (n, vocabulary) twice → (n,). NaN where a logit is not finite."""
    found = []
    for first in range(0, len(reference), _CHUNK_POSITIONS):
        log_p, log_q = (_log_softmax(logits[first : first + _CHUNK_POSITIONS]) for logits in (reference, other))
        found.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
    return np.concatenate(found) if found else np.zeros(0)


def _log_softmax(logits: Logits) -> Floats:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def judge(form: str, export: Export, tuned: Distance, base: Distance, fallback_tensors: int = 0) -> ParityReport:
    """The verdict on one format. tuned: reference against the export; base: reference against the base in the same format.

    An export passes within its format's bounds of mean KL and top-1 agreement, and only while it keeps the tune: the 95 % lower bound
    of KL(tuned‖base) − KL(tuned‖export), rows drawn in pairs, is above 0.
    """
    max_kl, min_top1 = export.bounds(form)
    groups = [str(row) for row in tuned.rows]
    kept = difference(samples(base.kl.tolist(), groups), samples(tuned.kl.tolist(), groups)).low
    close = tuned.mean_kl <= max_kl and tuned.top1 >= min_top1  # false for NaN too
    tells = base.mean_kl >= LEAST_TUNE_NATS
    verdict: Any = "Failed" if not close or (tells and not kept > 0) else "Passed" if tells else "Reported"
    return ParityReport(
        format=form, mean_kl=tuned.mean_kl, top1=tuned.top1, kept_of_tune=kept, fallback_tensors=fallback_tensors, verdict=verdict
    )


def explain(report: ParityReport, export: Export) -> str:
    """A failed format with its figures and bounds, in a sentence."""
    max_kl, min_top1 = export.bounds(report.format)
    kept = "" if report.kept_of_tune is None else f", kept of the tune at least {report.kept_of_tune:.3g} nats (above 0 wanted)"
    return (
        f"{report.format}: mean KL {report.mean_kl:.3g} nats (at most {max_kl:g}), "
        f"top-1 agreement {report.top1:.2%} (at least {min_top1:.2%}){kept}"
    )


def refuse_failed(reports: Sequence[ParityReport], export: Export) -> None:
    """Errors: StageError(ParityFailed) naming each failed format with its figures."""
    failed = [explain(report, export) for report in reports if report.verdict == "Failed"]
    if failed:
        raise StageError(
            Reason.PARITY_FAILED,
            f"{'; '.join(failed)}; nothing is published. Export a finer format, or set export.parity if this distance is acceptable",
        )
