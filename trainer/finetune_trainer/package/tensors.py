"""Safetensors files read and written block by block, and the float types in them as numpy arrays.

The safetensors library maps or holds whole tensors; a merge of bounded memory needs blocks of rows.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from finetune_api.outcome import Reason

from finetune_trainer.errors import StageError
from finetune_trainer.weight_files import BITS, read_header

Raw = npt.NDArray[Any]
"""Elements as they lie in the file: float32, float16, or uint16 for the bits of a bfloat16."""
Float32 = npt.NDArray[np.float32]

RAW_TYPES: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
"""Types that weights may have; a quantized or integer base is refused."""


@dataclass(frozen=True)
class TensorInfo:
    """Name, safetensors type name, shape, and the tensor's first byte in its file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * BITS[self.dtype] // 8

    @property
    def rows_and_columns(self) -> tuple[int, int]:
        """The tensor as a matrix: its first dimension by the product of the others; a vector is one row."""
        if len(self.shape) < 2:
            return 1, self.elements
        return self.shape[0], prod(self.shape[1:])


class TensorReader:
    """A safetensors file, read by position: threads may share it.

    Errors: StageError(CorruptArtifact) where the header and the file's size disagree.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            header = read_header(path)
        except ValueError as error:
            raise _corrupt(path, str(error)) from error
        self.tensors = {name: TensorInfo(name, stored.dtype, stored.shape, stored.begin) for name, stored in header.tensors.items()}
        self.metadata = header.metadata
        self._descriptor = os.open(path, os.O_RDONLY)

    def rows(self, info: TensorInfo, first: int, count: int) -> Raw:
        """Rows `first` … `first + count` of a tensor as a (count, columns) array of its raw type."""
        _, columns = info.rows_and_columns
        block = np.empty((count, columns), RAW_TYPES[info.dtype])
        offset = info.offset + first * columns * block.itemsize
        if os.preadv(self._descriptor, [block.data.cast("B")] if block.size else [], offset) != block.nbytes:
            raise _corrupt(self.path, f"{info.name} is cut short")
        return block

    def whole(self, info: TensorInfo) -> Float32:
        """A whole tensor in float32 and its own shape; for small ones such as LoRA factors."""
        rows, _ = info.rows_and_columns
        return to_float32(self.rows(info, 0, rows)).reshape(info.shape)

    def same_bytes(self, info: TensorInfo, other: TensorReader, theirs: TensorInfo) -> bool:
        """Whether a tensor of this file and one of another are equal, byte for byte."""
        return all(
            os.pread(self._descriptor, size, info.offset + done) == os.pread(other._descriptor, size, theirs.offset + done)
            for done in range(0, info.bytes, 1 << 20)
            for size in [min(1 << 20, info.bytes - done)]
        )

    def copy(self, info: TensorInfo, target: int, offset: int) -> None:
        """Copies a tensor's bytes into the file descriptor `target` at `offset`, inside the kernel where it can."""
        done = 0
        while done < info.bytes:
            try:
                step = os.copy_file_range(self._descriptor, target, info.bytes - done, info.offset + done, offset + done)
            except OSError:  # file systems that cannot: other devices, some network ones
                chunk = os.pread(self._descriptor, min(1 << 20, info.bytes - done), info.offset + done)
                step = os.pwrite(target, chunk, offset + done)
            if step == 0:
                raise _corrupt(self.path, f"{info.name} is cut short")
            done += step

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class TensorWriter:
    """A new safetensors file of known layout, written by position: threads may share it."""

    def __init__(self, path: Path, tensors: list[TensorInfo], metadata: dict[str, str]) -> None:
        header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
        end = 0
        for info in tensors:
            header[info.name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [end, end + info.bytes]}
            end += info.bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the library aligns the data so
        self.path = path
        self.tensors = {
            info.name: TensorInfo(info.name, info.dtype, info.shape, 8 + len(text) + header[info.name]["data_offsets"][0])
            for info in tensors
        }
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        os.pwrite(self.descriptor, struct.pack("<Q", len(text)) + text, 0)
        os.truncate(self.descriptor, 8 + len(text) + end)

    def write_rows(self, name: str, first: int, block: Raw) -> None:
        """Writes a (count, columns) block of raw elements from row `first` on."""
        info = self.tensors[name]
        _, columns = info.rows_and_columns
        data = np.ascontiguousarray(block).data.cast("B")
        offset = info.offset + first * columns * block.itemsize
        while data:
            written = os.pwrite(self.descriptor, data, offset)
            data, offset = data[written:], offset + written

    def close(self) -> None:
        os.close(self.descriptor)

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _corrupt(path: Path, problem: str) -> StageError:
    return StageError(Reason.CORRUPT_ARTIFACT, f"{path.name}: {problem}; restore the file")


# ------------------------------------------------------------------------------------------------------------------------ floats


def to_float32(raw: Raw) -> Float32:
    """Raw elements as float32, exactly. bfloat16 is the upper half of a float32."""
    if raw.dtype != np.uint16:
        return raw.astype(np.float32)
    bits = raw.astype(np.uint32)
    np.left_shift(bits, 16, out=bits)
    return bits.view(np.float32)


def round_to(values: npt.NDArray[np.floating[Any]], dtype: str) -> Raw:
    """Float values rounded to nearest, ties to even, as raw elements of a safetensors type. Overwrites `values` where it may.

    Infinities stay infinite; values must not be NaN, whose bits rounding would change.
    """
    if dtype == "BF16":
        return _to_bfloat16(values.astype(np.float32, copy=False))
    with np.errstate(over="ignore"):  # the verification finds infinities and names the tensor
        return values.astype(RAW_TYPES[dtype], copy=False)


def _to_bfloat16(values: Float32) -> Raw:
    """Adds half a unit of the kept half, less one where that half is even, and drops the rest.

    Source: Eigen/bfloat16 and PyTorch c10/util/BFloat16.h round_to_nearest_even.
    """
    bits = values.view(np.uint32)
    odd = np.right_shift(bits, 16)
    np.bitwise_and(odd, 1, out=odd)
    np.add(odd, 0x7FFF, out=odd)
    np.add(bits, odd, out=bits)
    np.right_shift(bits, 16, out=bits)
    return bits.astype(np.uint16)


def ordered(raw: Raw) -> npt.NDArray[np.int64]:
    """Integers that count representable values: neighbours differ by 1, −0 and +0 are equal."""
    signed = raw.view(f"i{raw.itemsize}").astype(np.int64)
    return np.where(signed < 0, -(signed + (1 << (raw.itemsize * 8 - 1))), signed)
