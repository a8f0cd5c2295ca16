"""The safetensors files of a model folder as one set of tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_api.outcome import Reason

from finetune_trainer.architecture import Architecture
from finetune_trainer.errors import StageError
from finetune_trainer.mergeable import embedding_of, head_of
from finetune_trainer.package.tensors import RAW_TYPES, TensorInfo, TensorReader
from finetune_trainer.weight_files import weight_files


class ModelTensors:
    """Open readers of a model's shards, in order, and where each tensor lies. `built`: the architecture, where it is known.

    Errors: StageError(InvalidModel) where weights are missing.
    """

    def __init__(self, folder: Path, built: Architecture | None = None) -> None:
        self.folder = folder
        self.built = built
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
        self.shards = {name: TensorReader(folder / name) for name in weight_files(folder).names}
        self.shard_of = {tensor: name for name, reader in self.shards.items() for tensor in reader.tensors}

    def info(self, tensor: str) -> TensorInfo:
        return self.shards[self.shard_of[tensor]].tensors[tensor]

    def reader(self, tensor: str) -> TensorReader:
        return self.shards[self.shard_of[tensor]]

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.shard_of

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {tensor: self.info(tensor).shape for tensor in self.shard_of}

    @property
    def embedding(self) -> str | None:
        """Name of the input embedding."""
        return embedding_of(self.built, self.shapes)

    @property
    def head(self) -> str:
        """Name of the output head, stored or not."""
        return head_of(self.built)

    @property
    def head_is_tied(self) -> bool:
        """Whether the output head is the input embedding: no head is stored, or the one that is equals it and the configuration ties them.

        Source: transformers.PreTrainedModel.tie_weights, which leaves two different ones apart whatever the configuration says.
        """
        if self.head not in self:
            return True
        embedding = self.embedding
        if not self.config.get("tie_word_embeddings") or embedding is None or self.info(embedding).shape != self.info(self.head).shape:
            return False
        return self.reader(self.head).same_bytes(self.info(self.head), self.reader(embedding), self.info(embedding))

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
