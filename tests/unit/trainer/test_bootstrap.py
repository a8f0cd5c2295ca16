"""Bounds by paired bootstrap over groups."""

import numpy as np
import pytest
from finetune_trainer.bootstrap import difference, estimate, perplexity, samples


def rate(n: int, share: float, seed: int = 0, per_group: int = 1) -> tuple[list[float], list[str]]:
    draw = np.random.default_rng(seed)
    return (draw.random(n) < share).astype(float).tolist(), [f"g{index // per_group}" for index in range(n)]


def test_the_estimate_is_the_plain_mean_and_lies_within_its_bounds() -> None:
    totals, groups = rate(200, 0.3)
    found = estimate(samples(totals, groups))
    assert found.value == pytest.approx(np.mean(totals))
    assert found.low < found.value < found.high
    assert found.n == 200


def test_bounds_of_independent_rows_are_those_of_the_normal_approximation() -> None:
    totals, groups = rate(400, 0.5)
    found = estimate(samples(totals, groups))
    half_width = 1.96 * np.std(totals) / np.sqrt(len(totals))
    assert (found.high - found.low) / 2 == pytest.approx(half_width, rel=0.05)


def test_rows_of_one_document_count_as_one_piece_of_evidence() -> None:
    totals = [float(document % 2) for document in range(20) for _ in range(20)]
    groups = [f"d{document}" for document in range(20) for _ in range(20)]
    alone = estimate(samples(totals, [str(index) for index in range(400)]))
    together = estimate(samples(totals, groups))
    assert (together.high - together.low) > 3 * (alone.high - alone.low)


def test_pairing_takes_the_rows_difficulty_out() -> None:
    difficulty = np.random.default_rng(1).normal(5, 2, 100)
    one, other = (
        samples((difficulty - 0.1).tolist(), [str(i) for i in range(100)]),
        samples(difficulty.tolist(), [str(i) for i in range(100)]),
    )
    found = difference(other, one)
    assert found.value == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1)
    assert estimate(other).high - estimate(other).low > 0.5


def test_95_percent_bounds_hold_the_truth_about_95_times_in_100() -> None:
    held = 0
    for seed in range(100):
        found = estimate(samples(*rate(40, 0.4, seed)))
        held += found.low <= 0.4 <= found.high
    assert 0.87 <= held / 100 <= 0.99


def test_perplexity_weighs_rows_by_their_tokens() -> None:
    found = estimate(samples([10.0, 1.0, 4.0], ["a", "b", "c"], counts=[10, 1, 2]), perplexity)
    assert found.value == pytest.approx(np.exp(15 / 13))


def test_the_same_evidence_gives_the_same_bounds() -> None:
    assert estimate(samples(*rate(50, 0.5))) == estimate(samples(*rate(50, 0.5)))


def test_other_rows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same rows"):
        difference(samples([1.0], ["a"]), samples([1.0], ["b"]))
