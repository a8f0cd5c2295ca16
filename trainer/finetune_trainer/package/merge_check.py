"""Parity (a): each merged tensor, as read back from the file, is W + alpha/r · BA rounded once to its type, to one unit in the last place.

The oracle: it takes alpha and r from the run file, as asked for, and never from the merge; W from the verified base; and computes
anew. KL alone misses an alpha that is wrong by 1 %, this does not.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
from finetune_api.outcome import Reason
from finetune_api.sections.adapter import Adapter, AdapterType

from finetune_trainer.errors import StageError
from finetune_trainer.mergeable import AdapterConfig
from finetune_trainer.package.adapter import LowRank, Saved
from finetune_trainer.package.base_model import ModelTensors
from finetune_trainer.package.merge import MergedTensor, blocks
from finetune_trainer.package.tensors import Raw, TensorInfo, TensorReader, ordered, round_to, to_float32

MAX_ULP = 1
MAX_INEXACT_SHARE = {"BF16": 1e-3, "F16": 8e-3, "F32": 1e-3}
"""Share of elements that may differ by that one unit. Two float32 computations of one sum round to bfloat16 differently about once
in 10⁴ elements (measured on random weights: 2e-5 … 2e-4), to float16, whose units are eight times finer, eight times as often; an
alpha wrong by 1 % moves several percent of bfloat16's elements, and more of the finer types'."""
_FEW_ELEMENTS = 10_000  # below this a share means nothing; the bound of one unit holds alone


@dataclass
class MergeCheck:
    """What was found over all tensors."""

    tensors: int = 0
    elements: int = 0
    inexact: int = 0

    @property
    def inexact_share(self) -> float:
        return self.inexact / max(self.elements, 1)


class MergeOracle:
    """Checks merged tensors one by one. Errors: StageError(ParityFailed), which names the tensor and the figures."""

    def __init__(self, base: ModelTensors, scale: float, workers: int) -> None:
        self.base = base
        self.scale = scale
        self.found = MergeCheck()
        self._workers = workers

    def check(self, tensor: MergedTensor, written: TensorReader) -> None:
        merged, info = written.tensors[tensor.name], self.base.info(tensor.base)
        if (merged.dtype, merged.shape) != (tensor.dtype, info.shape):
            raise _failed(tensor.name, f"is {merged.dtype}{list(merged.shape)} where {tensor.dtype}{list(info.shape)} was to be written")
        if tensor.update is None and tensor.dtype == info.dtype:
            if not self.base.reader(tensor.base).same_bytes(info, written, merged):
                raise _failed(tensor.name, "is not the base's own, which no training touched")
            return

        def check_block(block: tuple[int, int]) -> int:
            return self._check_block(tensor, info, block, written.rows(merged, *block))

        with ThreadPoolExecutor(self._workers) as pool:
            inexact = sum(pool.map(check_block, blocks(info)))
        share = inexact / max(info.elements, 1)
        allowed = MAX_INEXACT_SHARE[tensor.dtype]
        if info.elements >= _FEW_ELEMENTS and share > allowed:
            raise _failed(tensor.name, f"differs from the correctly rounded sum in {share:.2%} of its elements ({allowed:.2%} allowed)")
        self.found.tensors += 1
        self.found.elements += info.elements
        self.found.inexact += inexact

    def _check_block(self, tensor: MergedTensor, info: TensorInfo, block: tuple[int, int], merged: Raw) -> int:
        """Number of elements that are one unit off. Errors: StageError(ParityFailed) where one is further off or not finite."""
        expected = self._expected(tensor, info, block)
        with np.errstate(invalid="ignore"):
            total = expected.sum()  # one pass; not finite where any element is not
        if not np.isfinite(total):
            raise _failed(tensor.name, "is not finite")
        rounded = round_to(expected, tensor.dtype)
        if tensor.dtype == "F16" and not np.isfinite(rounded).all():
            raise _failed(tensor.name, "is beyond what F16 can hold, set export.mergedDtype: Auto")
        off = np.flatnonzero(rounded != merged)
        if not off.size:
            return 0
        distance = np.abs(ordered(rounded.ravel()[off]) - ordered(merged.ravel()[off]))
        for position in off[distance > MAX_ULP]:
            self._recheck(tensor, info, block[0], int(position), merged)
        return int(np.count_nonzero(distance))

    def _expected(self, tensor: MergedTensor, info: TensorInfo, block: tuple[int, int]) -> npt.NDArray[np.floating[Any]]:
        first, count = block
        match tensor.update:
            case Saved(reader, saved):
                return to_float32(reader.rows(saved, first, count))
            case LowRank(up, down):
                weights = self.base.reader(tensor.base).rows(info, first, count)
                if tensor.dtype == "F32":
                    return to_float32(weights) + self.scale * (up[first : first + count].astype(np.float64) @ down.astype(np.float64))
                return to_float32(weights) + np.float32(self.scale) * (up[first : first + count] @ down)
            case None:
                return to_float32(self.base.reader(tensor.base).rows(info, first, count))

    def _recheck(self, tensor: MergedTensor, info: TensorInfo, first: int, position: int, merged: Raw) -> None:
        """Where W and the update nearly cancel, float32's own rounding exceeds a unit of the small sum: judged in float64."""
        row, column = divmod(position, merged.shape[1])
        found = float(to_float32(merged[row : row + 1])[0, column])
        allowed = 0.0
        expected = float("nan")
        if isinstance(tensor.update, LowRank):
            weight = float(to_float32(self.base.reader(tensor.base).rows(info, first + row, 1))[0, column])
            terms = tensor.update.up[first + row].astype(np.float64) * tensor.update.down[:, column].astype(np.float64)
            expected = weight + self.scale * float(terms.sum())
            magnitude = abs(weight) + self.scale * float(np.abs(terms).sum())
            allowed = (terms.size + 2) * float(np.finfo(np.float32).eps) * magnitude + _unit(expected, tensor.dtype)
        if not abs(found - expected) <= allowed:
            raise _failed(tensor.name, f"is more than {MAX_ULP} unit in the last place from W + alpha/r · BA")


def _unit(value: float, dtype: str) -> float:
    """One unit in the last place of a safetensors type at `value`."""
    bits, smallest = {"F32": (23, -126), "F16": (10, -14), "BF16": (7, -126)}[dtype]
    return float(2.0 ** (max(np.floor(np.log2(max(abs(value), 1e-38))), smallest) - bits))


def trained_scale(asked: Adapter, found: AdapterConfig) -> float:
    """alpha / r as the run asks for. Errors: StageError(ParityFailed) where the adapter's own configuration says otherwise."""
    match asked.type:
        case AdapterType.LORA:
            lora = asked.effective_lora
        case AdapterType.NONE:
            raise AssertionError("full weights are copied, not merged")
        case _:
            assert_never(asked.type)
    if found.rank != lora.rank or found.alpha != lora.alpha:
        raise StageError(
            Reason.PARITY_FAILED,
            f"the adapter says alpha {found.alpha:g} and rank {found.rank}, the run asked for alpha {lora.alpha:g} and rank {lora.rank}",
        )
    return lora.alpha / lora.rank


def _failed(tensor: str, finding: str) -> StageError:
    return StageError(Reason.PARITY_FAILED, f"Merged: {tensor} {finding}; nothing is published")
