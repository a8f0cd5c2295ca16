"""The facts of a model's config.json and safetensors headers that sizes and plans follow from. Plain numbers, no torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from finetune_api.answer import Answer
from finetune_api.outcome import Reason

from finetune_trainer.errors import StageError

_MAX_HEADER_BYTES = 100_000_000
"""Source: safetensors' own limit of a header."""


class ModelShape(Answer):
    """Sizes of a decoder: counts of units, not bytes."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    num_experts: int = 1
    tie_word_embeddings: bool = False
    total_parameters: int
    dtype: str = "float32"


def linear_layers(shape: ModelShape) -> dict[str, tuple[int, int, int]]:
    """`(inputs, outputs, copies per decoder layer)` of each linear layer, by the names that LoRA targets."""
    attention, key_value = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    hidden, inner, experts = shape.hidden_size, shape.intermediate_size, shape.num_experts
    return {
        "q_proj": (hidden, attention, 1),
        "k_proj": (hidden, key_value, 1),
        "v_proj": (hidden, key_value, 1),
        "o_proj": (attention, hidden, 1),
        "gate_proj": (hidden, inner, experts),
        "up_proj": (hidden, inner, experts),
        "down_proj": (inner, hidden, experts),
    }


def read_shape(config: Mapping[str, Any], total_parameters: int, dtype: str) -> ModelShape:
    """The shape that a config.json states. Errors: StageError(InvalidModel) for one that lacks a size."""
    text = {**config, **config.get("text_config", {})}
    try:
        hidden = int(_first(text, "hidden_size", "n_embd", "d_model"))
        heads = int(_first(text, "num_attention_heads", "n_head"))
        return ModelShape(
            hidden_size=hidden,
            intermediate_size=int(_first(text, "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)),
            num_hidden_layers=int(_first(text, "num_hidden_layers", "n_layer")),
            num_attention_heads=heads,
            num_key_value_heads=int(_first(text, "num_key_value_heads", default=heads)),
            head_dim=int(_first(text, "head_dim", default=hidden // heads)),
            vocab_size=int(_first(text, "vocab_size")),
            num_experts=int(_first(text, "num_local_experts", "num_experts", "n_routed_experts", default=1)),
            tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
            total_parameters=total_parameters,
            dtype=dtype,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise StageError(Reason.INVALID_MODEL, f"config.json lacks a usable {error}; use a decoder model's folder") from error


def _first(config: Mapping[str, Any], *names: str, default: int | None = None) -> Any:
    for name in names:
        if config.get(name) is not None:
            return config[name]
    if default is None:
        raise KeyError(names[0])
    return default


def count_parameters(folder: Path) -> tuple[int, str]:
    """`(number of parameters, their most frequent dtype)` of a folder's model*.safetensors, from their headers alone.

    Errors: StageError(InvalidModel) for a file that is no safetensors file or is cut short.
    Source: https://github.com/huggingface/safetensors#format
    """
    by_dtype: dict[str, int] = {}
    for path in sorted(folder.glob("model*.safetensors")):  # beside them may lie the same weights in another layout
        for tensor in _tensors(path):
            by_dtype[tensor["dtype"]] = by_dtype.get(tensor["dtype"], 0) + prod(tensor["shape"])
    most = max(by_dtype, key=lambda name: by_dtype[name], default="F32")
    return sum(by_dtype.values()), FLOATS.get(most, most)


FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types that weights may have, by safetensors' names: what can be trained on, merged into and exported."""


def _tensors(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError("header too long")
            header = json.loads(file.read(length))
        tensors = [value for name, value in header.items() if name != "__metadata__"]
        end = max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        if path.stat().st_size != 8 + length + end:
            raise ValueError("cut short")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(Reason.INVALID_MODEL, f"{path.name} is not a whole safetensors file; fetch the model again") from error
    return tensors
