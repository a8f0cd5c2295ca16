"""The safetensors files of a model folder as one set of tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_api.outcome import Reason

from finetune_trainer.errors import StageError
from finetune_trainer.package.tensors import RAW_TYPES, TensorInfo, TensorReader

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")


class ModelTensors:
    """Open readers of a model's shards, in order, and where each tensor lies.

    Errors: StageError(InvalidModel) where weights are missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
        self.shards = {name: TensorReader(folder / name) for name in _shard_names(folder)}
        self.shard_of = {tensor: name for name, reader in self.shards.items() for tensor in reader.tensors}

    def info(self, tensor: str) -> TensorInfo:
        return self.shards[self.shard_of[tensor]].tensors[tensor]

    def reader(self, tensor: str) -> TensorReader:
        return self.shards[self.shard_of[tensor]]

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.shard_of

    @property
    def embedding(self) -> str | None:
        """Name of the input embedding."""
        return next((name for name in self.shard_of if name.endswith(_EMBEDDINGS) and "vision" not in name), None)

    @property
    def head_is_tied(self) -> bool:
        """Whether the output head is the input embedding: no head is stored, or the configuration says so."""
        return HEAD not in self or bool(self.config.get("tie_word_embeddings"))

    def refuse_quantized(self) -> None:
        """A merge belongs into unquantized weights. Errors: StageError(QuantizedBase)."""
        if "quantization_config" in self.config:
            raise StageError(Reason.QUANTIZED_BASE, "the base model's weights are quantized; name the unquantized model")

    def close(self) -> None:
        for reader in self.shards.values():
            reader.close()

    def __enter__(self) -> ModelTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_weight(info: TensorInfo) -> bool:
    return info.dtype in RAW_TYPES


def _shard_names(folder: Path) -> list[str]:
    index = folder / INDEX_FILE
    if index.exists():
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if any("/" in name or not (folder / name).is_file() for name in names):
            raise StageError(Reason.INVALID_MODEL, f"{INDEX_FILE} names files that are not beside it")
        return names
    if (folder / SINGLE_FILE).is_file():
        return [SINGLE_FILE]
    raise StageError(Reason.INVALID_MODEL, f"no {SINGLE_FILE} or {INDEX_FILE} in the model; only safetensors weights are read")
