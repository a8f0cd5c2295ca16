"""Which files of a model folder are its weights, and what their headers say: one reader, so that no stage trains or ships others.

The format: a length (u64, little endian), a JSON header, the tensors' bytes without gaps. No torch.
Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from finetune_api.outcome import Reason

from finetune_trainer.errors import StageError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000
"""Source: safetensors' own limit of a header."""
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
    """Errors: ValueError, in words, for what is no safetensors file or not whole; OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
        except struct.error as error:
            raise ValueError("it is cut short") from error
        if length > min(_MAX_HEADER_BYTES, size - 8):
            raise ValueError("it is cut short or no safetensors file")
        text = file.read(length)
    try:
        return _parsed(json.loads(text), 8 + length, size)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError("its header is not that of a safetensors file") from error


def _parsed(header: dict[str, Any], start: int, size: int) -> Header:
    metadata = header.pop("__metadata__", {})
    tensors, end = {}, start
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        begin, stop = (start + offset for offset in entry["data_offsets"])
        if begin != end:
            raise ValueError(f"the bytes of {name} do not follow those before it")
        tensors[name], end = StoredTensor(entry["dtype"], tuple(entry["shape"]), begin, stop), stop
    if end != size:
        raise ValueError(f"it has {size} bytes where its header says {end}")
    return Header(metadata, tensors)


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

    Errors: StageError(InvalidModel) for a file that is not whole, a tensor in two files, or one that the index lists and no file has.
    """
    files = weight_files(folder)
    found: dict[str, StoredTensor] = {}
    for name in files.names:
        try:
            tensors = read_header(folder / name).tensors
        except ValueError as error:
            raise _invalid(f"{name} is not a whole safetensors file ({error})") from error
        if twice := found.keys() & tensors.keys():
            raise _invalid(f"{name} holds {min(twice)}, which another file of the model holds too")
        found |= tensors
    absent = set(_weight_map(folder)) - found.keys() if files.indexed else set()
    if absent:
        raise _invalid(f"{INDEX_FILE} lists {min(absent)}, which is in none of the model's files")
    return found


def link_weights(model: Path, target: Path) -> None:
    """Links a model's weights and their index into `target`, where only its other files differ."""
    files = weight_files(model)
    for name in (*files.names, *([INDEX_FILE] if files.indexed else [])):
        (target / name).symlink_to(os.path.realpath(model / name))


def _weight_map(folder: Path) -> dict[str, str]:
    try:
        index: dict[str, str] = dict(json.loads((folder / INDEX_FILE).read_bytes())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise _invalid(f"{INDEX_FILE} is not an index of weights") from error
    strange = [name for name in index.values() if not (isinstance(name, str) and name.endswith(".safetensors") and "/" not in name)]
    if strange or not index:
        raise _invalid(f"{INDEX_FILE} lists something else than safetensors files beside it")
    return index


def _found(names: Collection[str]) -> str:
    return f" ({', '.join(sorted(names)[:3])} alone is read by nobody)" if names else ""


def _more(names: Collection[str], shown: int) -> str:
    return f" and {len(names) - shown} more" if len(names) > shown else ""


def _invalid(problem: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, f"{problem}; fetch the model again")
