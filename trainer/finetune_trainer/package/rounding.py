"""What a format makes of each weight, and nothing else: the tuned model is rounded so in torch to see what a correct export loses.

Independent of how exports are made: merged by PEFT, rounded by gguf-py's numpy (K-quants, which it only reads, by ggml's own function),
and run by transformers. Of the export only the type that each tensor got is read, because llama-quantize mixes types within a format.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, MODEL_ARCH_NAMES, GGMLQuantizationType, get_tensor_name_map, quants

from finetune_trainer.llama.gguf import GGUFFacts

Float32 = npt.NDArray[np.float32]
Rounding = Callable[[str, Float32], Float32]
"""`(the parameter's name in transformers, its values)` → the values that the format can hold."""

_BY_GGML = frozenset({GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q5_K, GGMLQuantizationType.Q6_K})


def round_values(values: Float32, kind: str, ggml: Path) -> Float32:
    """Values (rows, columns) rounded to a ggml type and widened again; rows are no longer than whole blocks allow. `ggml`: libggml-base."""
    form = GGMLQuantizationType[kind]
    if form is GGMLQuantizationType.F32:
        return values
    rounded = _quantize_by_ggml(values, form, ggml) if form in _BY_GGML else quants.quantize(values, form)
    return np.asarray(quants.dequantize(rounded, form), np.float32)


def _quantize_by_ggml(values: Float32, form: GGMLQuantizationType, ggml: Path) -> npt.NDArray[np.uint8]:
    block, size = GGML_QUANT_SIZES[form]
    rows, columns = values.shape
    values = np.ascontiguousarray(values)
    quantized = np.empty((rows, columns // block * size), np.uint8)
    _library(ggml).ggml_quantize_chunk(int(form), values.ctypes.data, quantized.ctypes.data, 0, rows, columns, None)
    return quantized


@cache
def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return library


@dataclass(frozen=True)
class GGUFRounding:
    """Rounds a model's parameters to the types that a GGUF's tensors have. `ggml`: path of libggml-base."""

    facts: GGUFFacts
    ggml: Path

    def __call__(self, name: str, values: Float32) -> Float32:
        if values.ndim < 2:
            return values  # norms and biases stay float32 in every format
        kind, transposed = self._kind(name, values.shape[-1])
        matrix = values.reshape(-1, values.shape[-1])
        if transposed:
            return round_values(np.ascontiguousarray(matrix.T), kind, self.ggml).T.reshape(values.shape)
        return round_values(matrix, kind, self.ggml).reshape(values.shape)

    def _kind(self, name: str, columns: int) -> tuple[str, bool]:
        """The tensor's type in the file, and whether the file holds it the other way round (GPT-2's Conv1D)."""
        mapped = self._names.get_name(name.replace("language_model.", ""), (".weight", ".bias"))
        found = self._by_name.get(mapped or "")
        if found is None:  # experts that the converter stacks, and whatever else it renames: the type that most tensors have
            fits = columns % GGML_QUANT_SIZES[GGMLQuantizationType[self._usual]][0] == 0
            return self._usual if fits else "F16", False
        return found[1], found[0] != columns

    @cached_property
    def _names(self) -> Any:
        architecture = next(key for key, name in MODEL_ARCH_NAMES.items() if name == self.facts.architecture)
        return get_tensor_name_map(architecture, self.facts.layers)

    @cached_property
    def _by_name(self) -> dict[str, tuple[int, str]]:
        return {name: (columns, kind) for name, columns, _, kind in self.facts.tensor_types}

    @cached_property
    def _usual(self) -> str:
        return Counter(kind for _, _, dimensions, kind in self.facts.tensor_types if dimensions > 1).most_common(1)[0][0]
