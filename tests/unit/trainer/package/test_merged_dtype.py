"""The type of the merged weights: which is taken, in what order they are tried, and what is said of it."""

import math

import numpy as np
import pytest
from finetune_api.sections.model import Dtype
from finetune_trainer.package.merged_dtype import Measure, choose_dtype
from finetune_trainer.package.parity import Distance

TUNE = 0.5


def distance(kl: float, changed: int) -> Distance:
    """Over 1,000 positions, the top token changed at so many."""
    return Distance(np.full(1000, kl), np.arange(1000) >= changed, np.arange(1000))


def measured(tried: list[Dtype], peak: float = 100.0, **found: Distance) -> Measure:
    def measure(dtype: Dtype) -> tuple[Distance, float]:
        tried.append(dtype)
        return found[dtype.value], peak

    return measure


FINE, COARSE, EXACT = distance(1e-4, 5), distance(2e-3, 42), distance(5e-9, 0)


@pytest.mark.parametrize(
    ("of_base", "bfloat16", "float16", "peak", "taken"),
    [
        ("BF16", FINE, EXACT, 100.0, [Dtype.BFLOAT16]),  # the natural type, where it costs little
        ("BF16", COARSE, EXACT, 100.0, [Dtype.BFLOAT16, Dtype.FLOAT16]),  # 4.2 % of the top tokens change
        ("BF16", distance(0.006, 0), EXACT, 100.0, [Dtype.BFLOAT16, Dtype.FLOAT16]),  # 1.2 % of the tune
        ("BF16", COARSE, COARSE, 100.0, [Dtype.BFLOAT16, Dtype.FLOAT16, Dtype.FLOAT32]),
        ("BF16", COARSE, distance(math.nan, 1000), 100.0, [Dtype.BFLOAT16, Dtype.FLOAT16, Dtype.FLOAT32]),  # a weight beyond 65504
        ("BF16", COARSE, EXACT, 25_000.0, [Dtype.BFLOAT16, Dtype.FLOAT16]),  # as SmolLM2's
        ("BF16", COARSE, EXACT, 40_000.0, [Dtype.BFLOAT16, Dtype.FLOAT16, Dtype.FLOAT32]),  # servers compute in the weights' type
        ("F16", COARSE, EXACT, 100.0, [Dtype.FLOAT16]),
        ("F32", COARSE, EXACT, 100.0, [Dtype.FLOAT16]),  # what servers make of float32 anyway
    ],
)
def test_the_first_type_that_keeps_the_tune_is_taken(
    of_base: str, bfloat16: Distance, float16: Distance, peak: float, taken: list[Dtype]
) -> None:
    tried: list[Dtype] = []
    choice = choose_dtype(Dtype.AUTO, of_base, TUNE, measured(tried, peak, BFloat16=bfloat16, Float16=float16, Float32=EXACT))
    assert (choice.dtype, tried) == (taken[-1], taken)


def test_why_a_type_was_taken_says_what_the_others_would_have_cost() -> None:
    choice = choose_dtype(Dtype.AUTO, "BF16", TUNE, measured([], BFloat16=COARSE, Float16=EXACT))
    assert choice.why == (
        "merged weights are Float16: BFloat16 would lose 0.002 nats of the tune's 0.5 and change 4.20% of the top tokens; "
        "rounding to Float16 loses 5e-09 nats of the tune's 0.5 and changes 0.00% of the top tokens"
    )


def test_float32_is_said_to_be_cast_by_servers() -> None:
    choice = choose_dtype(Dtype.AUTO, "F32", TUNE, measured([], 40_000.0, Float16=EXACT, Float32=EXACT))
    assert choice.dtype is Dtype.FLOAT32
    assert "activations reach 4e+04" in choice.why
    assert "vLLM casts float32" in choice.why


def test_a_type_that_was_asked_for_is_taken_whatever_it_costs() -> None:
    tried: list[Dtype] = []
    choice = choose_dtype(Dtype.BFLOAT16, "F32", TUNE, measured(tried, BFloat16=COARSE))
    assert (choice.dtype, choice.rounded, tried) == (Dtype.BFLOAT16, COARSE, [Dtype.BFLOAT16])
    assert "export.mergedDtype" in choice.why
