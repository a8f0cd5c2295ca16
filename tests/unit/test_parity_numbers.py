"""Distances between models, and what they are judged by."""

import numpy as np
import numpy.typing as npt
import pytest
from finetune_trainer.errors import StageError
from finetune_trainer.package.parity import (
    LEAST_KL_NATS,
    Distance,
    Evidence,
    distance,
    distances,
    explain,
    judge,
    kl_divergence,
    refuse_failed,
    refuse_inexact,
)
from finetune_trainer.spec import ExitCode, ParityBound

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


def test_a_models_logits_are_read_once_for_several_references() -> None:
    one, two, other = rows_of_logits(), rows_of_logits(seed=1), iter(rows_of_logits(seed=2))
    found = distances([one, two], other)
    assert [entry.mean_kl for entry in found] == [distance(ours, rows_of_logits(seed=2)).mean_kl for ours in (one, two)]


def evidence(export: float, base: float, rounded: float = 1e-3, runtime: float | None = None) -> Evidence:
    """Each model's logits are the reference's, shaken by so much."""
    reference = rows_of_logits()
    from_reference = lambda amount, seed: distance(reference, shaken(reference, amount, seed))  # noqa: E731
    return Evidence(
        from_reference(export, 9),
        from_reference(base, 3),
        from_reference(rounded, 4),
        None if runtime is None else from_reference(runtime, 5),
    )


@pytest.mark.parametrize(
    ("export", "base", "rounded", "runtime", "verdict"),
    [
        (1e-3, 1.0, 1e-3, None, "Passed"),
        (0.05, 1.0, 1e-3, None, "Failed"),  # further off than correct rounding of this model
        (0.05, 1.0, 0.05, None, "Passed"),  # the same distance is fine where correct rounding loses as much
        (0.05, 1.0, 1e-3, 0.05, "Passed"),  # or where the runtime's own arithmetic does, on the base
        (0.2, 0.2, 0.2, None, "Failed"),  # as far from the tune as the base is: the tune is lost
        (1e-3, 1e-2, 1e-3, None, "Reported"),  # a tune that moved nothing cannot be lost
        (float("nan"), 1.0, 1e-3, None, "Failed"),
    ],
)
def test_verdict(export: float, base: float, rounded: float, runtime: float | None, verdict: str) -> None:
    assert judge("Q8_0", evidence(export, base, rounded, runtime)).verdict == verdict


def test_bounds_are_a_few_times_what_a_correct_export_loses() -> None:
    found = evidence(1e-3, 1.0, 0.05, 0.02)
    max_kl, min_top1 = found.bounds(None)
    assert max_kl == pytest.approx(3 * found.rounded.mean_kl)
    assert min_top1 == pytest.approx(1 - 2 * (1 - found.rounded.top1) - 3 / 100)
    found = evidence(1e-3, 1.0, 0.02, 0.05)
    assert found.runtime is not None
    assert found.bounds(None)[0] == pytest.approx(3 * found.runtime.mean_kl)


def test_a_rounding_that_loses_nothing_leaves_room_for_the_order_of_sums() -> None:
    assert evidence(1e-3, 1.0, 0.0).bounds(None)[0] == LEAST_KL_NATS


def test_bounds_of_the_user_win_each_by_itself() -> None:
    found = evidence(0.05, 1.0)
    wide = ParityBound.model_validate({"format": "F16", "maxKL": 1, "minTop1Agreement": 0.5})
    assert judge("F16", found).verdict == "Failed"
    assert judge("F16", found, wide).verdict == "Passed"
    strict = ParityBound.model_validate({"format": "F16", "maxKL": 1e-9})
    assert judge("F16", evidence(1e-3, 1.0), strict).verdict == "Failed"
    assert found.bounds(strict) == (1e-9, found.bounds(None)[1])


def test_top1_agreement_is_judged_beside_kl() -> None:
    kl, rows = np.full(200, 1e-6), np.arange(200)
    changed = lambda count: Distance(kl, np.arange(200) >= count, rows)  # noqa: E731
    base = Distance(np.ones(200), np.zeros(200, bool), rows)
    assert judge("F16", Evidence(changed(3), base, changed(0))).verdict == "Passed"  # chance
    assert judge("F16", Evidence(changed(4), base, changed(0))).verdict == "Failed"
    assert judge("F16", Evidence(changed(11), base, changed(4))).verdict == "Passed"
    assert judge("F16", Evidence(changed(12), base, changed(4))).verdict == "Failed"


def test_a_failure_names_format_and_figures_and_publishes_nothing() -> None:
    failed = judge("F16", evidence(0.05, 1.0))
    with pytest.raises(StageError) as refusal:
        refuse_failed([judge("Q4_K_M", evidence(0.05, 1.0, 0.05)), failed])
    assert refusal.value.reason == "ParityFailed"
    assert refusal.value.exit_code == ExitCode.PARITY_FAILED
    assert explain(failed) in refusal.value.message
    assert "F16: mean KL" in refusal.value.message
    assert "correct rounding of this model loses" in refusal.value.message
    assert "Q4_K_M" not in refusal.value.message


def test_a_gguf_that_is_off_before_it_is_rounded_is_refused() -> None:
    off = lambda kl: Distance(np.full(100, kl), np.ones(100, bool), np.arange(100))  # noqa: E731
    refuse_inexact(off(1e-9), 0.5)
    refuse_inexact(off(4e-8), 0.5)
    with pytest.raises(StageError, match=r"ParityFailed.*before it is rounded"):
        refuse_inexact(off(5e-5), 0.5)  # alpha 1 % too large
    with pytest.raises(StageError, match="ParityFailed"):
        refuse_inexact(off(float("nan")), 0.5)
