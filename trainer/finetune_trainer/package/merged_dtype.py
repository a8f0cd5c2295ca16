"""The type of the merged weights: the one that was asked for, or with Auto the first that keeps the tune and that servers load."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from finetune_api.sections.model import Dtype

from finetune_trainer.package.parity import LEAST_TUNE_NATS, Distance

SAFETENSORS_TYPE = {Dtype.FLOAT32: "F32", Dtype.FLOAT16: "F16", Dtype.BFLOAT16: "BF16"}
MOST_LOST = 0.01
"""Share of the tune, KL(tuned‖rounded) / KL(tuned‖base), and of the top tokens, that the natural type may cost."""
LARGEST_FLOAT16 = 65504.0
_ROOM = 2.0
"""Servers compute in the type of the weights, so the largest activation must stay this many times below its range. The largest ones of
a language model hardly depend on the text. Source: Sun et al. 2024, Massive Activations in Large Language Models, arXiv:2402.17762."""


@dataclass(frozen=True)
class Choice:
    """`rounded`: the tuned model against itself with each weight rounded to the type. `why`: a sentence for the user."""

    dtype: Dtype
    rounded: Distance
    why: str


Measure = Callable[[Dtype], tuple[Distance, float]]
"""What rounding each weight to a type loses, and the largest activation of the model that is rounded so."""


def choose_dtype(asked: Dtype, of_base: str, tune_nats: float, measure: Measure) -> Choice:
    """The type of the merge. of_base: the base's safetensors type; tune_nats: KL(tuned‖base); measure: called for the types that are
    considered, in their order."""
    if asked is not Dtype.AUTO:
        return Choice(asked, measure(asked)[0], f"merged weights are {asked}, as export.mergedDtype asks")
    refused: list[str] = []
    for dtype in _candidates(of_base):
        rounded, peak = measure(dtype)
        if dtype is Dtype.FLOAT16 and rounded.mean_kl < math.inf and peak * _ROOM > LARGEST_FLOAT16:
            refused.append(f"activations reach {peak:.3g}, too near to Float16's largest {LARGEST_FLOAT16:g}")
        elif dtype is Dtype.FLOAT32 or _keeps(rounded, tune_nats):
            return Choice(dtype, rounded, _why(dtype, rounded, tune_nats, refused))
        else:
            refused.append(f"{dtype} would lose {_lost(rounded, tune_nats)}")
    raise AssertionError("Float32 is always taken")


def _candidates(of_base: str) -> Iterator[Dtype]:
    if of_base == "BF16":
        yield Dtype.BFLOAT16
    yield Dtype.FLOAT16
    yield Dtype.FLOAT32


def _keeps(rounded: Distance, tune_nats: float) -> bool:
    """False for NaN too: a weight beyond the type's range."""
    return rounded.mean_kl <= MOST_LOST * max(tune_nats, LEAST_TUNE_NATS) and 1 - rounded.top1 <= MOST_LOST


def _lost(rounded: Distance, tune_nats: float) -> str:
    if not rounded.mean_kl < math.inf:
        return "everything, a weight being beyond its range"
    share = f" of the tune's {tune_nats:.2g}" if tune_nats else ""
    return f"{rounded.mean_kl:.2g} nats{share} and change {1 - rounded.top1:.2%} of the top tokens"


def _why(dtype: Dtype, rounded: Distance, tune_nats: float, refused: list[str]) -> str:
    found = f"merged weights are {dtype}: {'; '.join(refused)}{'; ' if refused else ''}rounding to {dtype} loses "
    found += _lost(rounded, tune_nats).replace(" and change ", " and changes ")
    if dtype is Dtype.FLOAT32:
        found += ". vLLM casts float32 to 16 bits on loading unless its --dtype says otherwise"
    return found
