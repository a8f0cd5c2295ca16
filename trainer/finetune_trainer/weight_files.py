"""Which files of a model folder are its weights, and what their headers say: one reader, so that no stage trains or ships others.

The format: a length (u64, little endian), a JSON header, the tensors' bytes without gaps. No torch.
Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Collection
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from operator import mul
from pathlib import Path
from typing import Any, TypeGuard

from finetune_api.outcome import Reason

from finetune_trainer.errors import StageError
from finetune_trainer.model_json import read_members

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000
"""Source: safetensors' own limit of a header."""
_LARGEST_COUNT = 2**64 - 1
BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Bits of an element of each type that safetensors has, by its names. Source: safetensors::Dtype."""
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types that weights may have, by safetensors' names: what can be trained on, merged into and exported."""


@dataclass(frozen=True)
class StoredTensor:
    """`dtype`: safetensors' name of its type; `begin`: its first byte, counted from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Header:
    """Tensors in the order in which they lie in the file."""

    metadata: dict[str, str]
    tensors: dict[str, StoredTensor]


def read_header(path: Path) -> Header:
    """As strict as safetensors itself, which every later stage reads the file by.

    Errors: ValueError, in words that name the tensor, for what is no safetensors file or not whole; OSError.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
        except struct.error as error:
            raise ValueError("it is cut short") from error
        if length > min(_MAX_HEADER_BYTES, size - 8):
            raise ValueError("it is cut short or no safetensors file")
        text = file.read(length)
    header = _json_object(text)
    metadata = _metadata(header.pop("__metadata__", None))
    return Header(metadata, _laid_out(header, 8 + length, size))


def _json_object(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode())
        json.dumps(header, ensure_ascii=False, allow_nan=False).encode()  # neither NaN nor half a surrogate pair is JSON's
    except (ValueError, RecursionError) as error:
        raise ValueError("its header is no JSON") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("__metadata__ of its header must be an object of texts")
    return value


def _laid_out(header: dict[str, Any], start: int, size: int) -> dict[str, StoredTensor]:
    """The tensors, each of which begins where the one before it ends, from `start` to the file's end."""
    found = sorted(((name, _tensor(name, entry, start)) for name, entry in header.items()), key=lambda item: (item[1].begin, item[1].end))
    end = start
    for name, tensor in found:
        if tensor.begin != end:
            raise ValueError(f"the bytes of {shown(name)} do not follow those before it")
        end = tensor.end
    if end != size:
        raise ValueError(f"it has {size} bytes where its header says {end}")
    return dict(found)


def _tensor(name: str, entry: Any, start: int) -> StoredTensor:
    if not isinstance(entry, dict):
        raise ValueError(f"{shown(name)} must be an object with dtype, shape and data_offsets")
    dtype, shape, offsets = (entry.get(member) for member in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"dtype of {shown(name)} must be one of safetensors' types, such as {', '.join(FLOATS)}")
    if not _are_counts(shape):
        raise ValueError(f"shape of {shown(name)} must be a list of whole numbers from 0")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"data_offsets of {shown(name)} must be two whole numbers from 0")
    if (offsets[1] - offsets[0]) * 8 != _bits(shape, dtype):
        raise ValueError(f"the bytes of {shown(name)} do not fit its dtype and shape")
    return StoredTensor(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= _LARGEST_COUNT for number in value
    )


def _bits(shape: list[int], dtype: str) -> int | None:
    """Of a tensor's elements; None for a shape that no machine counts, be it of no elements in the end."""
    counts = list(accumulate(shape, mul, initial=1))
    return counts[-1] * BITS[dtype] if max(counts) <= _LARGEST_COUNT else None


def shown(name: str) -> str:
    """How a message calls a tensor, whose name may be of any length and hold anything."""
    return name if re.fullmatch(r"[!-~]{1,200}", name) else ascii(name)[:200]


@dataclass(frozen=True)
class WeightFiles:
    """`names`: the files that hold a model's weights, in order; `left_out`: others of the folder that look like weights."""

    names: list[str]
    indexed: bool
    left_out: list[str]

    @property
    def warnings(self) -> list[str]:
        if not self.left_out:
            return []
        read = INDEX_FILE if self.indexed else SINGLE_FILE
        return [f"the model's weights are read by {read}; {', '.join(self.left_out[:3])}{_more(self.left_out, 3)} beside it is not"]


def weight_files(folder: Path) -> WeightFiles:
    """Chosen as transformers does: model.safetensors where it is there, else what the index lists. Names only; see `stored_tensors`.

    Errors: StageError(InvalidModel) where there is neither, or the index lists what is not there.
    Source: transformers.modeling_utils._get_resolved_checkpoint_files (no variant).
    """
    beside = {path.name for path in folder.iterdir() if path.name.startswith("model") and path.name.endswith(".safetensors")}
    if (folder / SINGLE_FILE).is_file():
        return WeightFiles([SINGLE_FILE], False, sorted(beside - {SINGLE_FILE}))
    if not (folder / INDEX_FILE).is_file():
        lacking = INDEX_FILE if any("-of-" in name for name in beside) else SINGLE_FILE
        raise _invalid(f"the model lacks {lacking}{_found(beside)}")
    names = sorted(set(_weight_map(folder).values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise _invalid(f"the model lacks {missing[0]}{_more(missing, 1)}, which {INDEX_FILE} lists")
    return WeightFiles(names, True, sorted(beside - set(names)))


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model's weights, from the files' headers alone.

    Errors: StageError(InvalidModel) for a file that is not whole, a tensor in two files, one that the index lists and no file has, or none.
    """
    files = weight_files(folder)
    found: dict[str, StoredTensor] = {}
    for name in files.names:
        try:
            tensors = read_header(folder / name).tensors
        except ValueError as error:
            raise _invalid(f"{name} is not a whole safetensors file ({error})") from error
        if twice := found.keys() & tensors.keys():
            raise _invalid(f"{name} holds {shown(min(twice))}, which another file of the model holds too")
        found |= tensors
    if files.indexed:
        _refuse_unfit_index(folder, found)
    if not found:
        raise _invalid(f"{files.names[0]} holds no tensor")
    return found


def _refuse_unfit_index(folder: Path, found: Collection[str]) -> None:
    """Errors: StageError(InvalidModel) for an index of tensors that are not there, or one that transformers does not load."""
    if absent := set(_weight_map(folder)).difference(found):
        raise _invalid(f"{INDEX_FILE} lists {shown(min(absent))}, which is in none of the model's files")
    index = read_members(folder, INDEX_FILE)
    if index.values.get("metadata") is None:
        raise _invalid(
            f"{INDEX_FILE} has no metadata, without which transformers loads nothing", "add an object of that name, {} is enough"
        )
    index.object("metadata")


def link_weights(model: Path, target: Path) -> None:
    """Links a model's weights and their index into `target`, where only its other files differ."""
    files = weight_files(model)
    for name in (*files.names, *([INDEX_FILE] if files.indexed else [])):
        (target / name).symlink_to(os.path.realpath(model / name))


_SHARD = re.compile(r"model[ -.0-\[\]-~]{0,200}\.safetensors")
"""Names of files beside the index that are a model's weights: others are neither fetched nor recorded."""


def _weight_map(folder: Path) -> dict[str, str]:
    """The file of each tensor. Errors: StageError(InvalidModel)."""
    listed = read_members(folder, INDEX_FILE).object("weight_map").values
    if not listed:
        raise _invalid(f"{INDEX_FILE} is not an index of weights: it lists nothing in weight_map")
    for tensor, name in listed.items():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise _invalid(
                f"{INDEX_FILE} lists something else than a file model*.safetensors beside it ({shown(tensor)})",
                "call the files so, there and in the index, or fetch the model again",
            )
    return dict(listed)


def _found(names: Collection[str]) -> str:
    return f" ({', '.join(sorted(names)[:3])} alone is read by nobody)" if names else ""


def _more(names: Collection[str], shown: int) -> str:
    return f" and {len(names) - shown} more" if len(names) > shown else ""


def _invalid(problem: str, cure: str = "fetch the model again") -> StageError:
    return StageError(Reason.INVALID_MODEL, f"{problem}; {cure}")
