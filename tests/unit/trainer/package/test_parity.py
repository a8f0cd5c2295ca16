"""Distances between models, and what they are judged by."""

import numpy as np
import numpy.typing as npt
import pytest
from finetune_api.answer import ParityReport
from finetune_api.outcome import ExitCode
from finetune_api.sections.export import Export
from finetune_trainer.errors import StageError
from finetune_trainer.package.parity import Distance, distance, explain, judge, kl_divergence, refuse_failed

Logits = npt.NDArray[np.float32]


def rows_of_logits(rows: int = 20, positions: int = 5, vocabulary: int = 50, seed: int = 0) -> list[Logits]:
    draw = np.random.default_rng(seed)
    return [(3 * draw.standard_normal((positions, vocabulary))).astype(np.float32) for _ in range(rows)]


def shaken(logits: list[Logits], amount: float, seed: int = 9) -> list[Logits]:
    draw = np.random.default_rng(seed)
    return [(row + amount * draw.standard_normal(row.shape)).astype(np.float32) for row in logits]


def test_kl_is_that_of_the_definition() -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    found = kl_divergence(np.log(p)[None].astype(np.float32), (np.log(q)[None] + 7).astype(np.float32))
    assert found[0] == pytest.approx((p * np.log(p / q)).sum(), rel=1e-5)


def test_kl_of_a_model_with_itself_is_zero_also_far_from_zero() -> None:
    logits = rows_of_logits(1)[0]
    assert np.abs(kl_divergence(logits + 1e4, logits + 1e4)).max() < 1e-12


def test_distance_keeps_positions_with_their_rows() -> None:
    reference = [np.eye(4, dtype=np.float32)[:2], np.eye(4, dtype=np.float32)[:1]]
    other = [np.eye(4, dtype=np.float32)[[0, 0]], np.eye(4, dtype=np.float32)[:1]]
    found = distance(reference, other)
    assert found.rows.tolist() == [0, 0, 1]
    assert found.same_top1.tolist() == [True, False, True]


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(StageError, match="ParityFailed"):
        distance(rows_of_logits(1, vocabulary=50), rows_of_logits(1, vocabulary=51))


def report(form: str, export_shake: float, base_shake: float, export: Export | None = None) -> ParityReport:
    reference = rows_of_logits()
    return judge(
        form,
        export or Export(),
        distance(reference, shaken(reference, export_shake)),
        distance(reference, shaken(reference, base_shake, 3)),
    )


@pytest.mark.parametrize(
    ("form", "export_shake", "base_shake", "verdict"),
    [
        ("F16", 1e-4, 1.0, "Passed"),
        ("F16", 0.05, 1.0, "Failed"),  # too far for this format
        ("Q4_K_M", 0.05, 1.0, "Passed"),  # the same distance is fine for a coarser one
        ("Q4_K_M", 0.2, 0.2, "Failed"),  # as far from the tune as the base is: the tune is lost
        ("F16", 1e-4, 1e-2, "Reported"),  # a tune that moved nothing cannot be lost
        ("F16", float("nan"), 1.0, "Failed"),
    ],
)
def test_verdict(form: str, export_shake: float, base_shake: float, verdict: str) -> None:
    assert report(form, export_shake, base_shake).verdict == verdict


def test_own_bounds_replace_the_formats() -> None:
    wide = Export.model_validate({"parity": [{"format": "F16", "maxKL": 1, "minTop1Agreement": 0.5}]})
    assert report("F16", 0.05, 1.0, wide).verdict == "Passed"


def test_top1_agreement_is_judged_beside_kl() -> None:
    kl, rows = np.full(200, 1e-6), np.arange(200)
    agreeing = Distance(kl, np.arange(200) >= 4, rows)  # 98 %
    assert judge("F16", Export(), agreeing, Distance(np.ones(200), np.zeros(200, bool), rows)).verdict == "Failed"


def test_a_failure_names_format_and_figures_and_publishes_nothing() -> None:
    failed = report("F16", 0.05, 1.0)
    with pytest.raises(StageError) as refusal:
        refuse_failed([report("Q4_K_M", 0.05, 1.0), failed], Export())
    assert refusal.value.reason == "ParityFailed"
    assert refusal.value.exit_code == ExitCode.PARITY_FAILED
    assert explain(failed, Export()) in refusal.value.message
    assert "F16: mean KL" in refusal.value.message
    assert "Q4_K_M" not in refusal.value.message
