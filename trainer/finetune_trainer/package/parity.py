"""How far an export is from what was trained, in figures; what is judged, and by which bounds. Numbers only: needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_trainer.errors import StageError
from finetune_trainer.evaluate.bootstrap import difference, samples
from finetune_trainer.spec import ExitCode, ParityBound, ParityReport

LEAST_TUNE_NATS = 1e-3
"""A tune that moved the model by less, KL(tuned‖base), cannot be told from rounding: reported, not judged."""
KL_MARGIN = 3.0
CHANGED_MARGIN = 2.0
"""An export may lose so many times the KL that a correct one was measured to lose on the same positions, and change the top token at
so many times as many. Correct exports of SmolLM2 lost 0.97 (Q8_0), 1.05 (Q4_K_M) and 1.7 times as much (F16, where it is 8e-6); KL over
a few hundred positions is carried by a few of them, and a refusal of a correct export ends a job for good."""
LEAST_KL_NATS = 1e-7
"""Sums in another order of float32 differ by this much at most (measured: 5e-9): what loses nothing is judged by it."""
SPARE_POSITIONS = 3
"""Positions whose top token may change beyond that: where two tokens are equally likely a single one is chance."""
EXACT_SHARE = 1e-7
LEAST_EXACT_NATS = 1e-8
"""Share of the tune that the float32 GGUF may lose, and what it may lose at any rate. Measured on SmolLM2: 3e-11 nats of 2. An adapter
scaled by 1 % too much moves a model by about 1e-4 of the tune, KL being square in the distance."""
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
    """Distance over rows of logits (positions, vocabulary), in the same order.

    Errors: StageError(ParityFailed) where the vocabularies differ.
    """
    return distances([reference], other)[0]


def distances(references: Sequence[Iterable[Logits]], other: Iterable[Logits]) -> list[Distance]:
    """The distance of each reference from one model, whose logits are read once. Errors: as `distance`."""
    found = [_Collected() for _ in references]
    for index, (theirs, *all_ours) in enumerate(zip(other, *references, strict=True)):
        for collected, ours in zip(found, all_ours, strict=True):
            collected.add(index, ours, theirs)
    return [collected.whole() for collected in found]


class _Collected:
    """Parts of a `Distance`, row by row."""

    def __init__(self) -> None:
        self.kl: list[Floats] = []
        self.same: list[npt.NDArray[np.bool_]] = []
        self.rows: list[npt.NDArray[np.int64]] = []

    def add(self, row: int, ours: Logits, theirs: Logits) -> None:
        if ours.shape != theirs.shape:
            raise StageError(
                "ParityFailed", f"an export has {theirs.shape[1]} tokens where the model has {ours.shape[1]}", ExitCode.PARITY_FAILED
            )
        self.kl.append(kl_divergence(ours, theirs))
        self.same.append(ours.argmax(axis=1) == theirs.argmax(axis=1))
        self.rows.append(np.full(len(ours), row, np.int64))

    def whole(self) -> Distance:
        return Distance(np.concatenate(self.kl), np.concatenate(self.same), np.concatenate(self.rows))


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


@dataclass(frozen=True)
class Evidence:
    """What a format is judged by, each at the same positions.

    export, base: the reference against the export, and against the base in the same format. rounded: the reference against itself
    with each weight rounded to the format and nothing else. runtime: the base against itself in the format, as the same runtime
    computes it; None where that is the reference's own.
    """

    export: Distance
    base: Distance
    rounded: Distance
    runtime: Distance | None = None

    def bounds(self, own: ParityBound | None) -> tuple[float, float]:
        """`(largest mean KL, least top-1 agreement)`: from what a correct export loses, where the user set none.

        That is rounding or the runtime, whichever loses more: the base's loss in the format holds its own rounding too.
        """
        correct = [self.rounded, *([self.runtime] if self.runtime else [])]
        max_kl = max(KL_MARGIN * max(loss.mean_kl for loss in correct), LEAST_KL_NATS)
        changed = CHANGED_MARGIN * max(1 - loss.top1 for loss in correct) + SPARE_POSITIONS / len(self.export.kl)
        asked_kl, asked_top1 = (own.max_kl, own.min_top1_agreement) if own else (None, None)
        return (max_kl if asked_kl is None else asked_kl), (max(0.0, 1 - changed) if asked_top1 is None else asked_top1)


def judge(form: str, evidence: Evidence, own: ParityBound | None = None, fallback_tensors: int = 0) -> ParityReport:
    """The verdict on one format; `own`: bounds that the user set for it.

    An export passes within the format's bounds of mean KL and top-1 agreement, and only while it keeps the tune: the 95 % lower bound
    of KL(tuned‖base) − KL(tuned‖export), rows drawn in pairs, is above 0.
    """
    tuned, base = evidence.export, evidence.base
    max_kl, min_top1 = evidence.bounds(own)
    groups = [str(row) for row in tuned.rows]
    kept = difference(samples(base.kl.tolist(), groups), samples(tuned.kl.tolist(), groups)).low
    close = tuned.mean_kl <= max_kl and tuned.top1 >= min_top1  # false for NaN too
    tells = base.mean_kl >= LEAST_TUNE_NATS
    verdict: Any = "Failed" if not close or (tells and not kept > 0) else "Passed" if tells else "Reported"
    return ParityReport(
        format=form,
        mean_kl=tuned.mean_kl,
        top1=tuned.top1,
        max_kl=max_kl,
        min_top1=min_top1,
        rounding_kl=evidence.rounded.mean_kl,
        kept_of_tune=kept,
        fallback_tensors=fallback_tensors,
        verdict=verdict,
    )


def refuse_inexact(found: Distance, tune_nats: float) -> None:
    """The float32 GGUF computes what was trained, before anything is rounded. Errors: StageError(ParityFailed)."""
    allowed = max(EXACT_SHARE * tune_nats, LEAST_EXACT_NATS)
    if not found.mean_kl <= allowed:
        raise StageError(
            "ParityFailed",
            f"GGUF: before it is rounded, the model is {found.mean_kl:.3g} nats (mean KL) from what was trained (at most {allowed:.2g}); "
            "nothing is published",
            ExitCode.PARITY_FAILED,
        )


def explain(report: ParityReport) -> str:
    """A failed format with its figures and bounds, in a sentence."""
    kept = "" if report.kept_of_tune is None else f", kept of the tune at least {report.kept_of_tune:.3g} nats (above 0 wanted)"
    return (
        f"{report.format}: mean KL {report.mean_kl:.3g} nats (at most {report.max_kl:.3g}; correct rounding of this model loses "
        f"{report.rounding_kl:.3g}), top-1 agreement {report.top1:.2%} (at least {report.min_top1:.2%}){kept}"
    )


def refuse_failed(reports: Sequence[ParityReport]) -> None:
    """Errors: StageError(ParityFailed) naming each failed format with its figures."""
    failed = [explain(report) for report in reports if report.verdict == "Failed"]
    if failed:
        raise StageError(
            "ParityFailed",
            f"{'; '.join(failed)}; nothing is published. Export a finer format, or set export.parity if this distance is acceptable",
            ExitCode.PARITY_FAILED,
        )
